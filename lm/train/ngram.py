"""Byte n-gram models: baselines for a language model's bits per byte.

An n-gram model predicts a byte from the n-1 bytes before it. Smoothing is interpolated modified Kneser-Ney, the strongest
classical method (Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", Computer Speech &
Language 13). It interpolates through every shorter context down to the uniform 1/256.

A window of n symbols is one uint64 (nine bits per symbol, the predicted one lowest), so counting is sorting. Sorted windows are
grouped by context, and a bit mask gives every shorter window. Text is counted in chunks that are merged, so memory grows with
the number of distinct windows, not with the length of the text.

Document starts: n-1 padding symbols precede a document, so its first byte is predicted from "start of document". Document ends:
the n-gram does not predict them. A language model also pays for its end-of-document token over the same number of bytes, so the
comparison favours the n-gram by that much.

Axes: U distinct windows, C distinct contexts, S symbols, N windows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.errors import UserError

PAD = 256  # the symbol before the first byte of a document
BITS = 9  # a byte or PAD
MAX_ORDER = 64 // BITS


class Counts(NamedTuple):
    """Occurrences of each window of `order` symbols: keys_U uint64, ascending and distinct; counts_U int64."""

    order: int
    keys_U: np.ndarray
    counts_U: np.ndarray


class Level(NamedTuple):
    """One order of a model: the probability of each seen window, and the backoff weight of each seen context.

    keys_U, contexts_C: uint64, ascending; probabilities_U, backoff_C: float64.
    """

    keys_U: np.ndarray
    probabilities_U: np.ndarray
    contexts_C: np.ndarray
    backoff_C: np.ndarray


def baselines(
    train: Iterable[bytes],
    valid: Iterable[bytes],
    orders: Sequence[int] = (1, 3, 5),
    progress: Callable[[int], object] | None = None,
) -> dict[str, float]:
    """Return bits per byte on `valid` of n-grams fitted on `train`: {"unigram": …, "3-gram": …, "5-gram": …}.

    Both are documents. Each is read once, because the counts of the highest order give the lower ones. `progress` and errors
    are those of `count`.
    """
    fitted, scored = (count(texts, max(orders), progress=progress) for texts in (train, valid))
    return {
        "unigram" if n == 1 else f"{n}-gram": bits_per_byte(estimate(shorten(fitted, n)), shorten(scored, n)) for n in orders
    }


def count(texts: Iterable[bytes], order: int, chunk: int = 1 << 23, progress: Callable[[int], object] | None = None) -> Counts:
    """Count the windows of `order` symbols in `texts`, in one pass.

    Args:
        texts: documents; each starts from padding, so windows never span two of them.
        order: symbols per window, 1 … MAX_ORDER: a window fits 64 bits.
        chunk: windows sorted at a time; each needs about 30 bytes of working memory.
        progress: called with the number of bytes counted since its last call (as `tqdm.update` is).

    Raises: UserError if `texts` is empty (0 bytes).
    """
    keys_U, counts_U = np.empty(0, np.uint64), np.empty(0, np.int64)
    for symbols_S in _chunks(texts, order, chunk):
        keys_N = np.sort(_windows(symbols_S, order))
        starts = _starts(keys_N)
        keys_U, counts_U = _merge(keys_U, counts_U, keys_N[starts], np.diff(starts, append=len(keys_N)))
        if progress is not None:
            progress(len(keys_N))
    if not len(keys_U):
        raise UserError("n-gram baselines: the texts hold no bytes; give at least one non-empty document")
    return Counts(order, keys_U, counts_U)


def shorten(counts: Counts, order: int) -> Counts:
    """Return the counts for a smaller `order`: counts of windows with the same suffix are summed."""
    suffixes_U = counts.keys_U & _mask(order)
    by_suffix = np.argsort(suffixes_U)
    suffixes_U = suffixes_U[by_suffix]
    starts = _starts(suffixes_U)
    return Counts(order, suffixes_U[starts], np.add.reduceat(counts.counts_U[by_suffix], starts))


def estimate(counts: Counts) -> list[Level]:
    """Return an interpolated modified Kneser-Ney model, the level of each order 1 … n, from the counts of order n.

    With h a context, b a byte, h' the context without its oldest symbol:

        p(b|h) = (c(hb) - D(c(hb))) / c(h)  +  γ(h) p(b|h'),     γ(h) = Σ_b D(c(hb)) / c(h),     p(b) over nothing 1/256

    At the highest order c counts occurrences. Below it c(hb) is the number of distinct symbols seen before hb, because a
    shorter context is used only when the longer one fails (Kneser & Ney 1995). D depends on the count (1, 2, 3 or more) and on
    the order; see `discounts`.
    """
    tables = [(counts.keys_U, counts.counts_U)]
    for order in range(counts.order - 1, 0, -1):
        suffixes_U = np.sort(tables[-1][0] & _mask(order))
        starts = _starts(suffixes_U)
        tables.append((suffixes_U[starts], np.diff(starts, append=len(suffixes_U))))
    levels = list[Level]()
    for order, (keys_U, counts_U) in enumerate(reversed(tables), 1):
        if levels:  # every suffix of a seen window was itself seen
            at = np.searchsorted(levels[-1].keys_U, keys_U & _mask(order - 1))
            shorter_U = levels[-1].probabilities_U[at]
        else:
            shorter_U = np.full(len(keys_U), 1 / 256)
        levels.append(_level(keys_U, counts_U, shorter_U))
    return levels


def discounts(counts_U: np.ndarray) -> np.ndarray:
    """Return the discounts of a count of 0, 1, 2, 3 or more: float64 [4].

    Chen & Goodman 1999, equation 17: with n_i the number of windows seen i times and Y = n_1 / (n_1 + 2 n_2),
    D_i = i - (i+1) Y n_{i+1} / n_i. If one of n_1 … n_4 is 0, or a D_i is outside 0 … i, they are ½, 1, 1½ instead, as in
    KenLM's `--discount_fallback`.
    """
    fallback = np.array([0, 0.5, 1, 1.5])
    n = np.array([np.count_nonzero(counts_U == i) for i in range(1, 5)], np.float64)
    if not n.all():
        return fallback
    i = np.arange(1, 4)
    d = i - (i + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:3]
    return np.concatenate([[0], d]) if ((d > 0) & (d <= i)).all() else fallback


def probabilities(model: Sequence[Level], keys_N: np.ndarray) -> np.ndarray:
    """Return p(last symbol | the symbols before it), float64 [N], of windows: uint64 [N], BITS bits a symbol."""
    p_N = np.full(len(keys_N), 1 / 256)
    for order, level in enumerate(model, 1):
        suffixes_N = keys_N & _mask(order)
        p_N *= _look_up(level.contexts_C, level.backoff_C, suffixes_N >> BITS, np.ones(len(keys_N)))
        p_N = _look_up(level.keys_U, level.probabilities_U, suffixes_N, p_N)
    return p_N


def bits_per_byte(model: Sequence[Level], counts: Counts) -> float:
    """Return -Σ log2 p(byte) / Σ bytes over the counted text; `counts` have the model's order."""
    bits_U = -np.log2(probabilities(model, counts.keys_U))
    return float(bits_U @ counts.counts_U / counts.counts_U.sum())


def _chunks(texts: Iterable[bytes], order: int, chunk: int) -> Iterator[np.ndarray]:
    """Yield the documents as one stream of uint16 symbols, in pieces of about `chunk` that overlap by order-1 symbols."""
    padding = np.full(order - 1, PAD, np.uint16)
    pieces, size = [], 0
    for text in texts:
        pieces.append(padding)
        for start in range(0, len(text), chunk):
            pieces.append(np.frombuffer(text, np.uint8, min(chunk, len(text) - start), start).astype(np.uint16))
            size += len(pieces[-1])
            if size >= chunk:
                symbols_S = np.concatenate(pieces)
                yield symbols_S
                pieces, size = [symbols_S[len(symbols_S) - (order - 1) :]], 0
    if size:
        yield np.concatenate(pieces)


def _windows(symbols_S: np.ndarray, order: int) -> np.ndarray:
    """Return the keys (uint64) of all windows of the stream whose last symbol is a byte, not padding."""
    n = len(symbols_S) - order + 1
    keys_N = np.zeros(n, np.uint64)
    for i in range(order):
        keys_N <<= BITS
        keys_N |= symbols_S[i : i + n]
    return keys_N[symbols_S[order - 1 :] != PAD]


def _merge(
    keys_U: np.ndarray, counts_U: np.ndarray, more_keys: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the merged (keys, counts), ascending by key. Both inputs are ascending; counts_U is overwritten."""
    at = np.searchsorted(keys_U, more_keys)
    known = np.zeros(len(at), bool)
    inside = at < len(keys_U)
    known[inside] = keys_U[at[inside]] == more_keys[inside]
    counts_U[at[known]] += more_counts[known]
    new = ~known
    return np.insert(keys_U, at[new], more_keys[new]), np.insert(counts_U, at[new], more_counts[new])


def _level(keys_U: np.ndarray, counts_U: np.ndarray, shorter_U: np.ndarray) -> Level:
    """Return one level of the recursion in `estimate`; shorter_U is p(b|h') for each window hb."""
    contexts_U = keys_U >> BITS
    starts = _starts(contexts_U)
    followers_C = np.diff(starts, append=len(keys_U))
    discount_U = discounts(counts_U)[np.minimum(counts_U, 3)]
    total_C = np.add.reduceat(counts_U, starts)
    backoff_C = np.add.reduceat(discount_U, starts) / total_C
    p_U = (counts_U - discount_U) / np.repeat(total_C, followers_C) + np.repeat(backoff_C, followers_C) * shorter_U
    return Level(keys_U, p_U, contexts_U[starts], backoff_C)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, default: np.ndarray) -> np.ndarray:
    """Return values[where keys == wanted], else default."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], default)


def _starts(ascending: np.ndarray) -> np.ndarray:
    """Return the index of the first element of each run of equal values."""
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]])[: len(ascending)])


def _mask(order: int) -> np.uint64:
    return np.uint64((1 << BITS * order) - 1)
