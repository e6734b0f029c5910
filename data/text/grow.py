"""Add pieces to a byte-pair tokenizer, learnt from the text of a domain; the ids of all old pieces stay.

A tokenizer by byte pairs is an ordered list of merges (Sennrich et al. 2016). The new merges come after all old ones, so a
text is cut as before and then cut pieces are joined further. They are learnt as the old ones were: join the pair of neighbours
that occurs most often in the text, again and again.
"""

import collections
import heapq
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data.text.hf_tokenizer import HFTokenizer
from data.text.sentencepiece_tokenizer import CONTROLS, SPACE, SentencePieceTokenizer, scrub
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.errors import UserError
from lm.files import saving

MIN = 4  # occurrences of a pair that becomes a piece
LONGEST = 32  # characters of a new piece

Word = tuple[str, ...]  # its pieces
Joins = Callable[[str, str], bool]


def grow(tokenizer: Tokenizer, chunks: Iterable[str], pieces: int, folder: Path) -> Tokenizer:
    """Write a tokenizer with up to `pieces` more pieces into `folder`, and return it. New ids follow the old ones.

    There are fewer new pieces if no pair occurs MIN times any more.

    Args: chunks: text to learn from. folder: exists; it gets the tokenizer's files.
    Raises: UserError if the tokenizer does not work by byte pairs.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        model = _grown_sentencepiece(tokenizer, chunks, pieces)
        saving.write(folder / "tokenizer.model", model)
    else:
        data = _grown_fast(tokenizer, chunks, pieces)
        tokenizer.save(folder)
        (folder / "tokenizer.model").unlink(missing_ok=True)  # of the old pieces; tokenizer.json is the one that is read
        saving.write(folder / "tokenizer.json", json.dumps(data, ensure_ascii=False))
    return load_tokenizer(folder)


def learn_merges(words: collections.Counter[Word], most: int, joins: Joins) -> list[tuple[str, str]]:
    """Return up to `most` merges (left, right), in the order in which they are learnt; of equal pairs the first by its text.

    Args: words: how often each word occurs, as its pieces. joins: whether two pieces may become one.
    """
    counted = sorted(words.items())
    texts, numbers = [list(word) for word, _ in counted], [number for _, number in counted]
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    places: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    for w, text in enumerate(texts):
        for pair in zip(text, text[1:]):
            counts[pair] += numbers[w]
            places[pair].add(w)
    waiting = [(-count, pair) for pair, count in counts.items() if joins(*pair)]
    heapq.heapify(waiting)
    merges: list[tuple[str, str]] = []
    while waiting and len(merges) < most:
        count, pair = heapq.heappop(waiting)
        if counts[pair] != -count:  # it has changed since
            if counts[pair] >= MIN:
                heapq.heappush(waiting, (-counts[pair], pair))
            continue
        if -count < MIN:
            break
        merges.append(pair)
        changed = set()
        for w in sorted(places.pop(pair)):
            text = texts[w]
            joined = _joined(text, pair)
            for old, sign in ((text, -1), (joined, 1)):
                for other in zip(old, old[1:]):
                    counts[other] += sign * numbers[w]
                    if sign > 0:
                        places[other].add(w)
                        changed.add(other)
            texts[w] = joined
        del counts[pair]
        for other in sorted(changed):
            if counts[other] >= MIN and joins(*other):
                heapq.heappush(waiting, (-counts[other], other))
    return merges


def _joined(text: Sequence[str], pair: tuple[str, str]) -> list[str]:
    joined, i = [], 0
    while i < len(text):
        if tuple(text[i : i + 2]) == pair:
            joined.append(pair[0] + pair[1])
            i += 2
        else:
            joined.append(text[i])
            i += 1
    return joined


def old_pieces(grown: Tokenizer, old: Tokenizer) -> list[list[int]]:
    """Return, for each new id in order, the ids of the old pieces whose text it joins.

    Raises: UserError if `grown` did not come from `old`.
    """
    if not extends(grown, old):
        raise UserError("tokenizer: the run's tokenizer is not that of init_from with new pieces; use another --workdir")
    if isinstance(grown, SentencePieceTokenizer):
        return [old.encode(grown.decode([i])) for i in range(old.vocab_size, grown.vocab_size)]
    data = json.loads(grown.json)
    named = {i: piece for piece, i in data["model"]["vocab"].items()}
    return [[token.id for token in old.pieces(named[i])] for i in range(old.vocab_size, grown.vocab_size)]


def extends(grown: Tokenizer, old: Tokenizer) -> bool:
    """Return whether `grown` has all pieces of `old` at their ids, and perhaps more."""
    if type(grown) is not type(old) or grown.vocab_size < old.vocab_size:
        return False
    if isinstance(grown, SentencePieceTokenizer):
        return all(a == b for a, b in zip(grown.pieces(), old.pieces()))
    new, before = json.loads(grown.json), json.loads(old.json)
    if new["model"].get("type") != "BPE" or before["model"].get("type") != "BPE":
        return False
    vocab = new["model"]["vocab"]
    same = all(vocab.get(piece) == i for piece, i in before["model"]["vocab"].items())
    merges = [_pair(merge) for merge in before["model"]["merges"]]
    return same and merges == [_pair(merge) for merge in new["model"]["merges"][: len(merges)]]


# tokenizer.json


def _grown_fast(tokenizer: HFTokenizer, chunks: Iterable[str], pieces: int) -> dict:
    data = json.loads(tokenizer.json)
    model = data["model"]
    if model.get("type") != "BPE" or "merges" not in model:
        raise UserError(
            f"data.new_pieces={pieces}: the tokenizer works by {model.get('type')}, and only a byte-pair (BPE) one can grow"
        )
    words: collections.Counter[Word] = collections.Counter()
    for word, number in tokenizer.words(chunks).items():
        words[tuple(token.value for token in tokenizer.pieces(word))] += number
    known = set(model["vocab"]) | {token["content"] for token in data["added_tokens"]}
    split = data.get("pre_tokenizer") is not None  # else nothing but these rules keeps a piece within a word

    def joins(a: str, b: str) -> bool:
        return len(a + b) <= LONGEST and a + b not in known and (split or _within_word(a, b))

    merges = learn_merges(words, pieces, joins)
    before = model["merges"]
    as_text = bool(before) and isinstance(before[0], str)
    model["merges"] = [*before, *(" ".join(pair) if as_text else list(pair) for pair in merges)]
    new = dict.fromkeys(a + b for a, b in merges)
    # `tokenizers` would number added tokens anew, after the larger vocabulary, if they were not in it.
    model["vocab"] |= {token["content"]: token["id"] for token in data["added_tokens"]}
    model["vocab"] |= {piece: tokenizer.vocab_size + n for n, piece in enumerate(new)}
    return data


def _pair(merge: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)


# tokenizer.model


def _grown_sentencepiece(tokenizer: SentencePieceTokenizer, chunks: Iterable[str], pieces: int) -> bytes:
    from sentencepiece import sentencepiece_model_pb2  # here, because it loads protobuf

    spelled = {i: piece.replace(" ", SPACE) for i, piece, _ in tokenizer.pieces()}
    found: collections.Counter[str] = collections.Counter()
    for chunk in chunks:
        found.update(re.findall(r" *[^ ]+", scrub(chunk)))
    words: collections.Counter[Word] = collections.Counter()
    texts = list(found)
    for text, ids in zip(texts, tokenizer.encode_many(texts), strict=True):
        words[tuple(spelled[i] for i in ids.tolist())] += found[text]
    unjoined = {piece for i, piece, score in tokenizer.pieces() if score is None} | set(CONTROLS)
    known = set(spelled.values())

    def joins(a: str, b: str) -> bool:
        fits = len(a + b) <= LONGEST and a + b not in known and a not in unjoined and b not in unjoined
        return fits and _within_word(a, b)

    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    lowest = min((score for _, _, score in tokenizer.pieces() if score is not None), default=0.0)
    for n, piece in enumerate(dict.fromkeys(a + b for a, b in learn_merges(words, pieces, joins))):
        # SentencePiece joins the pair whose piece has the highest score first.
        model.pieces.add(piece=piece, score=lowest - 1 - n, type=model.SentencePiece.NORMAL)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString()


def _within_word(a: str, b: str) -> bool:
    """Return whether a piece a + b has spaces only at its start, and then letters only, or no letters. Digits stay alone."""
    begin = a.lstrip(SPACE)
    if SPACE in b or any(c.isdecimal() for c in begin + b):
        return False
    return len({c.isalpha() or c in "'’" for c in begin + b}) == 1
