"""Name the n-grams that decide most: a bucket does not say which n-gram falls into it, the training text does."""

from collections.abc import Iterable, Sequence

import numpy as np

from data.filters.classifier.linear import Features, Settings, grams
from data.filters.words import Words

SHOWN = 20  # of each side
MIN_DOCUMENTS, MIN_SHARE = 5, 0.01  # rarer n-grams can have large weights, and decide little


def telling(
    batches: Iterable[Sequence[str]], weights: np.ndarray, features: Features, good_N: np.ndarray, settings: Settings
) -> dict[str, list[dict]]:
    """Return {"good", "bad"}: for each side up to SHOWN of {ngram, weight, good, bad}, the highest weights first.

    good, bad: how many documents have the bucket. Only buckets in at least MIN_DOCUMENTS documents and in MIN_SHARE of all
    documents count.

    Args:
      batches: the training documents. features, good_N: their buckets and labels. weights: float32 [2^bits].
    """
    label_F = np.repeat(good_N, features.count_N)
    good, bad = (np.bincount(features.bucket_F[label_F == side], minlength=len(weights)) for side in (True, False))
    often = np.flatnonzero(good + bad >= max(MIN_DOCUMENTS, MIN_SHARE * len(good_N)))
    often = often[np.argsort(-weights[often], kind="stable")]
    chosen = {
        "good": [b for b in often[:SHOWN].tolist() if weights[b] > 0],
        "bad": [b for b in often[::-1][:SHOWN].tolist() if weights[b] < 0],
    }
    names = named(batches, {bucket for some in chosen.values() for bucket in some}, settings)
    return {
        side: [
            {"ngram": names[b], "weight": round(float(weights[b]), 3), "good": int(good[b]), "bad": int(bad[b])} for b in some
        ]
        for side, some in chosen.items()
    }


def named(batches: Iterable[Sequence[str]], wanted: set[int], settings: Settings) -> dict[int, str]:
    """Return {bucket: its most frequent n-gram} for the wanted buckets that occur; the earliest n-gram wins ties."""
    is_wanted = np.zeros(1 << settings.bits, bool)
    is_wanted[sorted(wanted)] = True
    counts: dict[int, int] = {}  # by the n-gram's hash of 64 bits
    spelt: dict[int, str] = {}
    for words in map(Words, batches):
        for some in grams(words, settings, bits=64):
            hit = np.flatnonzero(is_wanted[some.hash_P >> np.uint64(64 - settings.bits)])
            found, first, count = np.unique(some.hash_P[hit], return_index=True, return_counts=True)
            for k in np.argsort(first).tolist():
                hash, p = int(found[k]), hit[first[k]]
                counts[hash] = counts.get(hash, 0) + int(count[k])
                if hash not in spelt:
                    document = int(some.document_P[p])
                    spelt[hash] = _spelt(words, document, int(some.at_P[p] - some.begin_N[document]), some.n)
    best: dict[int, int] = {}
    for hash, count in counts.items():
        bucket = hash >> 64 - settings.bits
        if bucket not in best or count > counts[best[bucket]]:
            best[bucket] = hash
    return {bucket: spelt[hash] for bucket, hash in best.items()}


def _spelt(words: Words, document: int, place: int, n: int) -> str:
    """Return the n-gram of a document at a place. n: its words; below 0: minus its characters."""
    if n < 0:
        return " ".join(words.texts[document].split())[place : place - n]
    return " ".join(words.spelled(document)[place : place + n])
