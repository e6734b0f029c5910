"""Repetition within a text.

Words are lower-case runs of letters and digits, or single marks. They are not tokens, so that models with different tokenizers
can be compared. All metrics depend on a text's length: compare texts of similar length.
"""

import re
import zlib
from collections.abc import Sequence

WINDOW = 128  # words
PRIME, BASE = 2**61 - 1, 1_000_003
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts whose characters count as words
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
METRICS = (
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "repetition_2",
    "repetition_3",
    "seq_repetition_4",
    "token_repetition_128",
    "repeated_span",
    "compression_ratio",
)


def repetition(text: str) -> dict[str, float | None]:
    """Return metrics of a text, all in 0…1; None if the text is too short:

    distinct_n             different n-grams / n-grams (Li et al. 2016)
    repetition_n           1 − distinct_n; seq_repetition_4 is seq-rep-4 (Welleck et al. 2020, "Neural Text Generation with
                           Unlikelihood Training", section 6)
    token_repetition_128   share of words that are among the 128 before them (rep/ℓ there, on the text instead of predictions)
    repeated_span          words of the longest span that occurs twice without overlap, both times / words
    compression_ratio      bytes after DEFLATE / bytes before, at most 1; lower with more repetition
    """
    words = split(text)
    distinct = {n: _distinct(words, n) for n in (1, 2, 3, 4)}
    repeated = {n: None if share is None else 1 - share for n, share in distinct.items()}
    last: dict[str, int] = {}
    seen = []
    for at, word in enumerate(words):
        seen.append(at - last.get(word, -WINDOW - 1) <= WINDOW)
        last[word] = at
    raw = text.encode("utf-8", "replace")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)  # without header and checksum
    packed = len(packer.compress(raw) + packer.flush())
    values = (
        distinct[1],
        distinct[2],
        distinct[3],
        repeated[2],
        repeated[3],
        repeated[4],
        sum(seen) / len(seen) if seen else None,
        2 * longest_repeated(words) / len(words) if words else None,
        min(1.0, packed / len(raw)) if raw else None,
    )
    return dict(zip(METRICS, values, strict=True))


def split(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _distinct(words: Sequence[str], n: int) -> float | None:
    grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def longest_repeated(words: Sequence[str]) -> int:
    """Return the length in words of the longest span that occurs twice without overlap, in O(n log n).

    If a span repeats, so does its beginning, so binary search finds the length. Spans are compared by polynomial hashes of word
    numbers modulo 2⁶¹ − 1; collisions are very unlikely.
    """
    number: dict[str, int] = {}
    sums, powers = [0], [1]
    for word in words:
        sums.append((sums[-1] * BASE + number.setdefault(word, len(number) + 1)) % PRIME)
        powers.append(powers[-1] * BASE % PRIME)

    def repeats(length: int) -> bool:
        first: dict[int, int] = {}
        for at in range(len(words) - length + 1):
            value = (sums[at + length] - sums[at] * powers[length]) % PRIME
            if first.setdefault(value, at) + length <= at:
                return True
        return False

    low, high = 0, len(words) // 2
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if repeats(middle) else (low, middle - 1)
    return low
