"""What training tells of a classifier: figures on held-out documents, and the n-grams that decide most.

Axes: N documents.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data.filters.classifier.linear import Features, Settings, grams
from data.filters.words import Words

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
SHOWN = 20  # n-grams of each side
MIN_DOCUMENTS, MIN_SHARE = 5, 0.01  # rarer n-grams can have large weights, and decide little


def measure(score_N: np.ndarray, good_N: np.ndarray) -> dict[str, Any]:
    """Return the figures of probabilities score_N in [0, 1], float, for labels good_N, bool. Both labels must occur.

    good, bad: documents. auc, auc_error: see `auc`. accuracy: at the threshold 0.5. thresholds: see `at`.
    """
    area, error = auc(score_N, good_N)
    return {
        "good": int(good_N.sum()),
        "bad": int((~good_N).sum()),
        "auc": area,
        "auc_error": error,
        "accuracy": float(((score_N >= 0.5) == good_N).mean()),
        "thresholds": [at(score_N, good_N, threshold) for threshold in THRESHOLDS],
    }


def auc(score_N: np.ndarray, good_N: np.ndarray) -> tuple[float, float]:
    """Return the area under the ROC curve and its standard error.

    The area is the probability that a good document scores higher than a bad one, equal scores counting one half: a
    Mann-Whitney statistic. The error is that of Hanley and McNeil (1982), equation 2.
    """
    from scipy.stats import rankdata

    good = int(good_N.sum())
    bad = len(good_N) - good
    area = float((rankdata(score_N)[good_N].sum() - good * (good + 1) / 2) / (good * bad))
    two_good, two_bad = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (good - 1) * (two_good - area**2) + (bad - 1) * (two_bad - area**2)
    return area, float(np.sqrt(max(variance, 0.0) / (good * bad)))


def at(score_N: np.ndarray, good_N: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Return what happens if documents with a score below `threshold` are dropped.

    good_kept: share of the good documents that stay, the recall. bad_kept: share of the bad ones that stay.
    precision: share of good documents among those that stay, with this part's numbers of good and bad ones; None: none stays.
    """
    stay = score_N >= threshold
    kept = int(stay.sum())
    return {
        "threshold": threshold,
        "good_kept": float(stay[good_N].mean()),
        "bad_kept": float(stay[~good_N].mean()),
        "precision": float(good_N[stay].mean()) if kept else None,
    }


def telling(
    batches: Iterable[Sequence[str]], weights: np.ndarray, features: Features, good_N: np.ndarray, settings: Settings
) -> dict[str, list[dict]]:
    """Return {"good", "bad"}: for each side up to SHOWN of {ngram, weight, good, bad}, the highest weights first.

    A bucket does not say which n-grams fall into it; the training text does.
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
