"""Pack documents into rows of T+1 tokens with almost no padding, and cut only documents longer than a row.

A document is `[begin, tokens..., end]`. A document longer than a row is cut into pieces of at most T+1 tokens. Each
piece starts with the last token of the previous one, so every token after `begin` is a target exactly once. Pieces are
packed best fit: the longest first, each into the fullest row with room.

A row is stored as its tokens and one bit per token: whether it continues the piece of the previous token. A piece has at
least two tokens, so a token that neither continues a piece nor is continued is padding. Segments and positions follow from
these bits (`layout` of data/text/batches.py).

Source: Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (best-fit packing).
Letters: N documents, T the sequence length.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

BUFFER_TOKENS = 1 << 20  # tokens packed at a time; more gives fuller rows and takes more memory
FULL_ENOUGH = 64  # a row with at most 1/64 of its slots free leaves the buffer


@dataclasses.dataclass
class Counts:
    """Running counts of a packer. Targets are the tokens to predict: all except the first of a document."""

    documents: int = 0
    tokens_in: int = 0  # targets read: the tokens and the end symbol of each document
    tokens_packed: int = 0  # targets in emitted rows; equal to `tokens_in` at the end
    tokens_padded: int = 0  # padding slots of emitted rows
    rows: int = 0  # emitted


def row_dtype(sequence_length: int, vocab_size: int) -> np.dtype:
    """Return the structured dtype of a row: `tokens`, unsigned [T+1], and the bits `joined`, uint8 [⌈(T+1)/8⌉]."""
    width = sequence_length + 1
    return np.dtype(
        [("tokens", np.uint16 if vocab_size <= 1 << 16 else np.uint32, (width,)), ("joined", np.uint8, (-(-width // 8),))]
    )


class Packer:
    """Pack a stream of documents into rows; it holds about `buffer_tokens` tokens and one document in memory.

    When the buffer is full its pieces are packed, and full rows are emitted. The other pieces stay in the buffer. If
    they would fill more than half of it, the fullest of their rows are emitted too, so a piece is packed at most twice
    on average.

    Rows are scalars of `row_dtype`. Their order is arbitrary but deterministic.

    Args:
        counts: updated with every added document and every emitted row. sequence_length: T, at least 1.
        vocab_size: determines the dtype of tokens, see `row_dtype`.
    """

    def __init__(
        self,
        counts: Counts,
        *,
        sequence_length: int,
        vocab_size: int,
        bos_id: int,
        eos_id: int,
        pad_id: int,
        buffer_tokens: int = BUFFER_TOKENS,
    ):
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, not {sequence_length}")
        self.counts, self._width, self._dtype = counts, sequence_length + 1, row_dtype(sequence_length, vocab_size)
        self._bos_id, self._eos_id, self._pad_id = bos_id, eos_id, pad_id
        self._buffer_tokens = buffer_tokens
        self._waiting: list[np.ndarray] = []
        self._held = 0  # tokens in `_waiting`

    def add(self, document: np.ndarray) -> Iterator[np.ndarray]:
        """Add a document: ids, int [n], without begin and end symbols. Yields the rows that are ready."""
        self.counts.documents += 1
        self.counts.tokens_in += len(document) + 1
        for piece in pieces(document, self._width, self._bos_id, self._eos_id):
            if len(piece) >= self._width - 1:  # one free slot is useless: a piece has at least two tokens
                yield self._row([piece])
            else:
                self._waiting.append(piece)
                self._held += len(piece)
        if self._held < self._buffer_tokens:
            return
        bins = sorted(best_fit(self._waiting, self._width), key=_tokens)
        self._waiting, self._held = [], 0
        for bin_ in bins:
            used = _tokens(bin_)
            full = self._width - used <= max(1, self._width // FULL_ENOUGH)
            if full or self._held + used > self._buffer_tokens // 2:
                yield self._row(bin_)
            else:
                self._waiting.extend(bin_)
                self._held += used

    def finish(self) -> Iterator[np.ndarray]:
        """Yield the rows of the remaining pieces."""
        waiting, self._waiting, self._held = self._waiting, [], 0
        for bin_ in best_fit(waiting, self._width):
            yield self._row(bin_)

    def _row(self, bin_: list[np.ndarray]) -> np.ndarray:
        row = np.zeros((), self._dtype)
        row["tokens"] = self._pad_id
        continues = np.zeros(self._width, bool)
        at = 0
        for piece in bin_:
            end = at + len(piece)
            row["tokens"][at:end] = piece
            continues[at + 1 : end] = True
            at = end
        row["joined"] = np.packbits(continues, bitorder="little")
        self.counts.rows += 1
        self.counts.tokens_packed += at - len(bin_)
        self.counts.tokens_padded += self._width - at
        return row


def _tokens(bin_: list[np.ndarray]) -> int:
    return sum(map(len, bin_))


def pieces(document: np.ndarray, width: int, bos_id: int, eos_id: int) -> Iterator[np.ndarray]:
    """Cut `[begin, document, end]` into int32 pieces of 2 to `width` tokens; neighbours share one token."""
    whole = np.empty(len(document) + 2, np.int32)
    whole[0], whole[1:-1], whole[-1] = bos_id, document, eos_id
    if len(whole) <= width:
        yield whole
        return
    for start in range(0, len(whole) - 1, width - 1):
        yield whole[start : start + width].copy()  # a view would keep the whole document in memory


def best_fit(items: list[np.ndarray], width: int) -> list[list[np.ndarray]]:
    """Pack items by best-fit-decreasing: the longest first, each into the fullest bin with room, else into a new one.

    Bins are in lists by their free slots, and the bits of one integer mark the lists that are not empty. So the fullest
    bin with room is the lowest set bit at or above the item's length: O(T/64) machine words.
    """
    bins: list[list[np.ndarray]] = []
    by_free: list[list[int]] = [[] for _ in range(width + 1)]
    open_ = 0
    for item in sorted(items, key=len, reverse=True):
        fits = open_ >> len(item)
        if fits:
            free = len(item) + (fits & -fits).bit_length() - 1
            at = by_free[free].pop()
            if not by_free[free]:
                open_ &= ~(1 << free)
        else:
            free, at = width, len(bins)
            bins.append([])
        bins[at].append(item)
        free -= len(item)
        by_free[free].append(at)
        open_ |= 1 << free
    return bins
