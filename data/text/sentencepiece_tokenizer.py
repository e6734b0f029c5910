"""SentencePiece byte-pair tokenizer that reproduces every text byte for byte.

There is no normalisation, no dummy prefix and no trimming. Digits are single tokens, and a character outside the
vocabulary falls back to its UTF-8 bytes. SentencePiece cannot distinguish a space from a literal `▁`, because it writes
spaces as `▁`. So a literal `▁` is always encoded as its three bytes, and our own table of bytes decodes ids.

Source: Kudo and Richardson 2018, "SentencePiece"; Sennrich et al. 2016 for byte-pair encoding.
"""

import collections
import hashlib
import heapq
import io
import os
import random
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from lm.errors import UserError
from lm.files import saving
from lm.files.untrusted import content

MAX_MODEL = 64 << 20  # bytes
PAD, EOS, BOS, UNK = "<pad>", "</s>", "<s>", "<unk>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
RESERVED = tuple(f"<|reserved_{i}|>" for i in range(7))
CONTROLS = (PAD, EOS, BOS, UNK, *ROLES, *RESERVED)
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")

MIN = 256 + len(CONTROLS) + 1  # ids of a vocabulary: bytes, control symbols and a character

SPACE = "▁"  # U+2581, SentencePiece's spelling of a space in a piece
CHUNK = 4096  # maximum characters of a sampled chunk of text
BREAK = "\0"  # the trainer makes no piece that contains it
COVERAGE = 0.9995  # share of the sample's characters that get a piece; the rest are encoded as bytes
SEGMENT = 1024  # characters encoded at a time: the merge queue then fits the cache (1.5 times as fast)


class Decoder:
    """Decode ids by the bytes of each within a text; control symbols have none."""

    _bytes: list[bytes]
    bytes_per_token: np.ndarray  # int32 [V]

    def set_bytes(self, table: list[bytes]) -> None:
        self._bytes = table
        self.bytes_per_token = np.asarray([len(b) for b in table], np.int32)
        self.bytes_per_token.setflags(write=False)

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Return the bytes of `ids`, one after the other; control symbols give none.

        So a space that a tokenizer puts before a text stays, because it cannot be told from the first space of a completion.

        Raises: ValueError: an id is outside [0, vocab_size).
        """
        ids, size = np.asarray(ids, np.int64).reshape(-1), len(self._bytes)
        if ids.size and not 0 <= ids.min() <= ids.max() < size:
            raise ValueError(f"token ids span [{ids.min()}, {ids.max()}], outside a vocabulary of {size}")
        return b"".join([self._bytes[i] for i in ids.tolist()])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`. Invalid UTF-8, as after a cut inside a character, becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")


class SentencePieceTokenizer(Decoder):
    """A trained tokenizer, loaded from the SentencePiece model at `path`.

    Attributes:
        vocab_size: V, the number of ids.
        bos_id, eos_id: the begin and the end symbol. pad_id: the padding. unk_id: never in an encoded text.
        stop_ids: the ids that end a completion. A chat turn also ends at `<|end|>`.
        controls: control symbol -> id. Text never encodes to these ids.
        special_tokens: the special tokens by their names in chat templates, such as `bos_token`.
        chat_template: the Jinja template that belongs to the tokenizer.
        is_harmony: whether it has the symbols of harmony, the format of gpt-oss (data/chat/harmony.py).
        bytes_per_token: int32 [V], the UTF-8 bytes of an id within a text; 0 for a control symbol. The sum over the ids of a
            text is exactly its length in bytes, which converts nats per token to bits per byte.
        fingerprint: hex digest; equal for equal tokenizers.
        model: the bytes of the SentencePiece model.

    Raises: UserError: `path` is missing, is no SentencePiece model, or was not made by `train`.
    """

    pad_id, eos_id, bos_id, unk_id = 0, 1, 2, 3
    stop_ids = (eos_id,)
    special_tokens = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
    chat_template = CHAT_TEMPLATE
    is_harmony = False

    def __init__(self, path: str | os.PathLike):
        try:
            model = content(path, MAX_MODEL)
        except OSError as error:
            raise UserError(
                f"tokenizer: cannot read {path} ({error.strerror}); give the path of a trained tokenizer"
            ) from error
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
            self.vocab_size = self._pieces.vocab_size()
        except (RuntimeError, OSError, ValueError, TypeError):
            self.vocab_size = 0
        if not self.vocab_size:
            raise UserError(f"tokenizer: {path} is not a SentencePiece model; give the path of a trained tokenizer")

        pieces = [self._pieces.id_to_piece(i) for i in range(self.vocab_size)]
        ours = tuple(pieces[: len(CONTROLS)]) == CONTROLS and "<0x00>" in pieces and SPACE in pieces
        # `_segments` cuts before a space, which is exact only if no piece continues over a space.
        if not ours or any(SPACE in piece.lstrip(SPACE) for piece in pieces):
            raise UserError(
                f"tokenizer: {path} was not trained by data/text/sentencepiece_tokenizer.py, whose control symbols and "
                "byte-exact settings the model relies on; train one here"
            )
        self.controls = {symbol: i for i, symbol in enumerate(CONTROLS)}
        self.set_bytes([self._bytes_of(i, piece) for i, piece in enumerate(pieces)])
        self._literal_space = np.asarray([pieces.index(f"<0x{b:02X}>") for b in SPACE.encode()], np.int32)
        self.fingerprint = hashlib.sha256(model).hexdigest()[:16]
        self.model = model

    def _bytes_of(self, i: int, piece: str) -> bytes:
        if i < len(CONTROLS):
            return b""
        if self._pieces.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without begin and end symbols. A lone surrogate is encoded as U+FFFD."""
        ids: list[int] = []
        for segment in _segments(text):  # a batched call starts a thread pool: ten times slower for a short text
            ids += self._literal_space.tolist() if segment == SPACE else self._pieces.encode(segment)
        return ids

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of a prompt: the begin symbol and the ids of `text`."""
        return [self.bos_id, *self.encode(text)]

    def chat_symbols(self, template: str) -> dict[str, int]:
        """Return the symbols that only a chat template may write: all control symbols."""
        return self.controls

    def encode_spans(self, text: str, symbols: Collection[str] = ()) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of `text`, with `symbols` encoded as plain text, and the character span [begin, end) of each id."""
        ids = self.encode(text)
        codes = np.frombuffer(scrub(text).encode("utf-32-le"), np.uint32)
        character = np.repeat(np.arange(len(codes)), 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000))
        lengths = self.bytes_per_token[ids]
        ends = np.cumsum(lengths)
        return ids, list(zip(character[ends - lengths].tolist(), (character[ends - 1] + 1).tolist(), strict=True))

    def encode_many(self, texts: Iterable[str], *, threads: int | None = None) -> list[np.ndarray]:
        """Return the ids of many texts, each int32 [n], encoded by `threads` threads (default: one per core)."""
        segments, counts = [], []
        for text in texts:
            before = len(segments)
            segments.extend(_segments(text))
            counts.append(len(segments) - before)
        encoded = self._pieces.encode(segments, num_threads=threads or os.cpu_count() or 1, return_type="numpy")
        encoded = [self._literal_space if s == SPACE else ids for s, ids in zip(segments, encoded, strict=True)]
        ends = np.cumsum(counts, dtype=np.int64)
        nothing = np.zeros(0, np.int32)
        return [np.concatenate([nothing, *encoded[end - n : end]]) for n, end in zip(counts, ends, strict=True)]

    def pieces(self) -> Iterator[tuple[int, str, float | None]]:
        """Yield (id, text, score) of each id; the score is None for bytes and control symbols, which no merge produces."""
        for i in range(self.vocab_size):
            piece = self._pieces.id_to_piece(i)
            if i < len(CONTROLS) or self._pieces.is_byte(i):
                yield i, piece, None
            else:
                yield i, piece.replace(SPACE, " "), self._pieces.get_score(i)

    def save(self, folder: Path) -> None:
        """Writes the model as `folder/tokenizer.model`, whole or not at all."""
        saving.write(folder / "tokenizer.model", self.model)


def train(
    texts: Iterable[str], path: str | os.PathLike, *, vocab_size: int, sample_bytes: int, seed: int, threads: int
) -> SentencePieceTokenizer:
    """Train as `fit` does, on a sample of `texts`, which are read once and not kept in memory.

    sample_bytes: limit on the UTF-8 bytes of text to train on, and to keep in memory. seed: of the sample, if texts are longer.
    """
    return fit(sample(texts, sample_bytes, seed), path, vocab_size=vocab_size, threads=threads)


def check_vocab_size(vocab_size: int) -> None:
    """Raise UserError if the vocabulary size is too small for a tokenizer."""
    if vocab_size < MIN:
        raise UserError(
            f"model.vocab_size={vocab_size} is too small for 256 bytes, {len(CONTROLS)} control symbols "
            f"and a character; the least is {MIN}"
        )


def fit(chunks: list[str], path: str | os.PathLike, *, vocab_size: int, threads: int) -> SentencePieceTokenizer:
    """Train byte-pair merges on chunks of text, and write the model to `path`, whose folder is created, atomically.

    The result depends only on the arguments. If the text has too few distinct merges for `vocab_size` ids, the vocabulary is
    smaller.

    Args: vocab_size: target number of ids, at least 256 bytes + the control symbols + 1. threads: of the trainer.
    Raises: UserError: `vocab_size` is too small, or there is no text.
    """
    check_vocab_size(vocab_size)
    counts = collections.Counter()
    for chunk in chunks:
        counts.update(chunk)
    for char in (SPACE, BREAK):
        counts.pop(char, None)
    if not counts:
        raise UserError("data.input: no text to train a tokenizer on; check that the input holds documents")

    # Every covered character costs an id, so characters get at most half of the free ids: merges are worth more. The
    # trainer would cover at least 98 %, too many for a tiny vocabulary, so it only sees the covered characters.
    ranked = sorted(counts, key=lambda char: (-counts[char], char))
    total = np.cumsum([counts[char] for char in ranked])
    enough = int(np.searchsorted(total, COVERAGE * total[-1])) + 1
    covered = ranked[: min(enough, max(1, (vocab_size - MIN) // 2))]
    if " " not in covered:  # a space without a piece would be encoded as the bytes of SPACE
        covered = [" ", *covered[:-1]]
    rare = re.compile(f"[^{re.escape(''.join(covered))}]+")
    chunks = [rare.sub(BREAK, chunk) for chunk in chunks]
    if " " not in counts:
        chunks.append(" ")
    try:
        model = _fit(chunks, vocab_size, threads)
    except RuntimeError as error:
        most = re.search(r"too high .*<= (\d+)", str(error))
        if not most:
            raise
        model = _fit(chunks, int(most[1]), threads)

    saving.write(Path(path), model)
    return SentencePieceTokenizer(path)


def _fit(chunks: Sequence[str], vocab_size: int, threads: int) -> bytes:
    """Run the SentencePiece trainer once. Raises: RuntimeError with the trainer's message."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(chunks),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece=PAD,
        eos_piece=EOS,
        bos_piece=BOS,
        unk_piece=UNK,
        control_symbols=[*ROLES, *RESERVED],
        max_sentence_length=4 * CHUNK + 1,
        num_threads=threads,
        minloglevel=2,
    )
    return model.getvalue()


def sample(texts: Iterable[str], sample_bytes: int, seed: int) -> list[str]:
    """Return a uniform sample of the chunks of `texts`, in reading order, of at most `sample_bytes` UTF-8 bytes."""
    drawn = Sample(sample_bytes, seed)
    for text in texts:
        drawn.add(text)
    return drawn.chunks(sample_bytes)


class Sample:
    """A uniform sample of the chunks of a stream of texts, of at most `max_bytes` UTF-8 bytes.

    Every chunk draws a random number and is kept if it is below a threshold. If the sample exceeds `max_bytes`, the
    chunk with the largest number is removed and the threshold sinks to this number. So the probability of a chunk does
    not depend on its position, and a stream that fits is kept completely. At least one chunk is always kept.
    """

    def __init__(self, max_bytes: int, seed: int):
        self._max_bytes, self._draw = max_bytes, random.Random(seed).random
        # (−number, place, chunk, bytes, hash), the largest number first
        self._held: list[tuple[float, int, str, int, int]] = []
        self._size, self._threshold, self._place = 0, 1.0, 0

    def add(self, text: str, hash: int = 0) -> None:
        """Draw a number for each chunk of a text. `hash`: of its document; `chunks` can exclude documents by it."""
        for chunk in _chunks(text):
            number = self._draw()
            if number >= self._threshold:
                continue
            self._place += 1
            weight = len(chunk.encode())
            heapq.heappush(self._held, (-number, self._place, chunk, weight, hash))
            self._size += weight
            while self._size > self._max_bytes and len(self._held) > 1:
                top, _, _, weight, _ = heapq.heappop(self._held)
                self._size, self._threshold = self._size - weight, -top

    def chunks(self, max_bytes: int, above: int = -1) -> list[str]:
        """Return the chunks with the smallest numbers that fit, in reading order, of documents with a hash above `above`."""
        kept, size = [], 0
        for item in sorted((item for item in self._held if item[4] > above), reverse=True):
            size += item[3]
            if size > max_bytes and kept:
                break
            kept.append(item)
        return [chunk for _, _, chunk, _, _ in sorted(kept, key=lambda item: item[1])]


def _chunks(text: str) -> Iterator[str]:
    """Cut a text into chunks of at most `CHUNK` characters, after line ends where possible."""
    text, start = scrub(text), 0
    while start < len(text):
        end = start + CHUNK
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _segments(text: str) -> Iterator[str]:
    """Cut a text at places that no piece can cross, so that the ids do not depend on the cuts.

    These places are around a literal `▁`, and before a space after another character, because pieces have spaces only
    at their start.
    """
    for i, part in enumerate(scrub(text).split(SPACE)):
        if i:
            yield SPACE
        start = 0
        while start < len(part):
            end = start + SEGMENT
            if end >= len(part):
                end = len(part)
            else:
                # The whole run of spaces around the last space goes to the next segment.
                cut = part.rfind(" ", start, end)
                while cut > start and part[cut - 1] == " ":
                    cut -= 1
                if cut <= start:
                    match = _WORD_END.search(part, end - 1)
                    cut = match.end() if match else len(part)
                end = cut
            yield part[start:end]
            start = end


_WORD_END = re.compile(r"[^ ](?= )")
_SURROGATE = re.compile("[\ud800-\udfff]")


def scrub(text: str) -> str:
    """Replace lone surrogates, which JSON escapes can make and UTF-8 cannot encode, by U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
