"""Text in, batches out: quality rules, near duplicates, a tokenizer, packed rows, and batches of (seed, n)."""

import ast
import functools
import hashlib
import io
import itertools
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"  # control symbols: no text is encoded to them
PAD_ID, EOS_ID, BOS_ID, UNK_ID = 0, 1, 2, 3
Row = list[list[int]]  # pieces of documents
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}


def definitions() -> Iterator[tuple[str, str]]:
    """Yield (name, docstring) of the public modules, classes and functions of this Python's standard library."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        for node in ast.walk(ast.parse(path.read_text(errors="replace"))):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                name = path.stem if isinstance(node, ast.Module) else f"{path.stem}.{node.name}"
                if "_" not in (name[0], name.partition(".")[2][:1]):
                    yield name, text


def is_good(text: str) -> bool:
    """Return whether a document passes rules of quality (Gopher: Rae et al. 2021, A.1.1)."""
    words, lines = re.findall(r"\w+|[^\w\s]+", text), text.splitlines()
    plain = [word for word in words if re.search(r"\w", word)]
    of_words, of_lines = max(1, len(words)), max(1, len(lines))
    filled = [line for line in text.split("\n") if line]
    bounds = [  # a measure, its least and its most
        (len(plain), 50, 100_000),
        (sum(map(len, plain)) / max(1, len(plain)), 3, 10),
        (text.count("#") / of_words, 0, 0.1),
        ((text.count("...") + text.count("…")) / of_words, 0, 0.1),
        (sum(line.lstrip().startswith(("•", "-", "*")) for line in lines) / of_lines, 0, 0.9),
        (sum(line.rstrip().endswith(("...", "…")) for line in lines) / of_lines, 0, 0.3),
        (len(STOP_WORDS & set(words)), 2, np.inf),
        (1 - len(set(filled)) / max(1, len(filled)), 0, 0.3),  # repeated lines
        ((len("".join(filled)) - len("".join(set(filled)))) / max(1, len(text)), 0, 0.2),  # their characters
    ]
    return all(least <= measure <= most for measure, least, most in bounds)


def shingles(text: str) -> set[int]:
    """Return 64-bit hashes of the runs of five words of a document; of all its words if it has fewer."""
    words = re.findall(r"[^\W_]+", text.lower())
    runs = {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))} if words else set()
    return {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()) for run in runs}


def without_near_duplicates(texts: list[str], bands: int = 28, rows: int = 4, threshold: float = 0.5) -> list[str]:
    """Return the texts without those that share at least half of their shingles with another one; the first stays.

    The minimum of a hash over two sets is equal with probability J = |A ∩ B| / |A ∪ B| (MinHash, Broder 1997). Texts
    are compared if all `rows` minima of one of the bands are equal: with probability 1 − (1 − J^rows)^bands.
    """
    random = np.random.default_rng(1)
    scale, shift = random.integers(0, 2**64, (2, bands * rows, 1), np.uint64)
    sets, first = [shingles(text) for text in texts], list(range(len(texts)))
    buckets: dict[tuple, list[int]] = {}

    def cluster(i: int) -> int:
        """Return the first text of the cluster of text i."""
        return i if first[i] == i else cluster(first[i])

    for i, own in enumerate(sets):
        if not own:
            continue
        minima = ((scale | np.uint64(1)) * np.array(list(own), np.uint64) + shift >> np.uint64(32)).min(axis=1)
        for band in range(bands):
            met = buckets.setdefault((band, *minima[band * rows : (band + 1) * rows].tolist()), [])
            for j in met:
                if cluster(i) != cluster(j) and len(own & sets[j]) >= threshold * len(own | sets[j]):
                    low, high = sorted((cluster(i), cluster(j)))
                    first[high] = low
            met.append(i)
    return [text for i, text in enumerate(texts) if first[i] == i]


def train_tokenizer(texts: list[str], vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """Return a byte-pair tokenizer (Sennrich et al. 2016; Kudo and Richardson 2018) that reproduces every text.

    A character without a piece is encoded as its UTF-8 bytes.
    """
    model = io.BytesIO()
    # fmt: off
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.split("\n") if line), model_writer=model,
        model_type="bpe", vocab_size=vocab_size, byte_fallback=True, split_digits=True, minloglevel=2,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        control_symbols=[USER, ASSISTANT, END], pad_id=PAD_ID, eos_id=EOS_ID, bos_id=BOS_ID, unk_id=UNK_ID,
    )
    # fmt: on
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def pack(documents: list[list[int]], length: int) -> list[Row]:
    """Return rows of pieces of documents, of at most length + 1 tokens together (best fit, Ding et al. 2024).

    A document is [begin, tokens, end]. A longer one is cut into pieces, each beginning with the last token of the one
    before, so every token is a target once. The longest piece goes first, each into the fullest row with room.
    """
    width, full, pieces = length + 1, [], []
    for document in documents:
        whole = [BOS_ID, *document, EOS_ID]
        cuts = [whole[i : i + width] for i in range(0, len(whole) - 1, width - 1)]
        full += [[piece] for piece in cuts if len(piece) >= width - 1]  # no other piece has room beside it
        pieces += [piece for piece in cuts if len(piece) < width - 1]
    rows: list[Row] = []
    by_room: list[list[int]] = [[] for _ in range(width + 1)]  # [n]: numbers of rows with n free places
    for piece in sorted(pieces, key=len, reverse=True):
        room = next((n for n in range(len(piece), width + 1) if by_room[n]), None)
        if room is None:  # a new row
            room = width
            by_room[width].append(len(rows))
            rows.append([])
        row = by_room[room].pop()
        rows[row].append(piece)
        by_room[room - len(piece)].append(row)
    return full + rows


def batch_of_rows(rows: list[Row], length: int) -> dict[str, np.ndarray]:
    """Return rows as arrays [B, length]: tokens, targets, segment_ids (from 1), positions, weights."""
    tokens, segments, positions = np.zeros((3, len(rows), length + 1), np.int32)
    for b, row in enumerate(rows):
        ends = list(itertools.accumulate(map(len, row)))
        for segment, (piece, end) in enumerate(zip(row, ends), start=1):
            place = slice(end - len(piece), end)
            tokens[b, place], segments[b, place], positions[b, place] = piece, segment, np.arange(len(piece))
    weights = ((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)).astype(np.float32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    return batch | {"segment_ids": segments[:, :-1], "positions": positions[:, :-1]}


def shuffled(items: Sequence, n: int, size: int, seed: int = 0) -> list:
    """Return items n·size … of an endless stream, which has all items in each epoch, in an order of (seed, epoch)."""
    order = functools.cache(lambda epoch: np.random.default_rng((seed, epoch)).permutation(len(items)))
    return [items[order(k // len(items))[k % len(items)]] for k in range(n * size, (n + 1) * size)]


if __name__ == "__main__":
    texts = [text for _, text in definitions()]
    good = [text for text in texts if is_good(text)]
    kept = without_near_duplicates(good)
    print(f"{len(texts)} docstrings, {len(good)} good ones, {len(kept)} without near duplicates; a row of batch 7:")
    tokenizer = train_tokenizer(kept, vocab_size=1024)
    rows = pack(tokenizer.encode(kept), length=128)
    print(tokenizer.decode(batch_of_rows(shuffled(rows, n=7, size=8), 128)["tokens"][0].tolist()))
