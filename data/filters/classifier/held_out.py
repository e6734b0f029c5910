"""How well probabilities tell good documents from bad ones: figures on a part that training did not see.

Axes: N documents.
"""

from typing import Any

import numpy as np

from data.filters.classifier.fit import class_weights

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
BINS = 10


def measure(score_N: np.ndarray, good_N: np.ndarray) -> dict[str, Any]:
    """Return the figures of probabilities score_N in [0, 1], float, for labels good_N, bool. Both labels must occur.

    good, bad: documents. auc, auc_error: see `auc`. accuracy: at the threshold 0.5. thresholds: see `at`.
    calibration, calibration_error: see `calibration`.
    """
    area, error = auc(score_N, good_N)
    bins, gap = calibration(score_N, good_N)
    return {
        "good": int(good_N.sum()),
        "bad": int((~good_N).sum()),
        "auc": area,
        "auc_error": error,
        "accuracy": float(((score_N >= 0.5) == good_N).mean()),
        "thresholds": [at(score_N, good_N, threshold) for threshold in THRESHOLDS],
        "calibration": bins,
        "calibration_error": gap,
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


def calibration(score_N: np.ndarray, good_N: np.ndarray) -> tuple[list[dict[str, float]], float]:
    """Return bins of the score, and the expected calibration error (Guo et al. 2017, equation 3) with BINS equal bins.

    A bin has {from, to, documents, predicted, good}: the mean score, and the share of good documents. Each class has the same
    total weight, as in training.
    """
    weight_N = class_weights(good_N) / len(good_N)
    bin_N = np.minimum((score_N * BINS).astype(int), BINS - 1)
    total = np.bincount(bin_N, weight_N, BINS)
    predicted = np.bincount(bin_N, weight_N * score_N, BINS)
    good = np.bincount(bin_N, weight_N * good_N, BINS)
    count = np.bincount(bin_N, minlength=BINS)
    bins = [
        {
            "from": k / BINS,
            "to": (k + 1) / BINS,
            "documents": int(count[k]),
            "predicted": float(predicted[k] / total[k]),
            "good": float(good[k] / total[k]),
        }
        for k in np.flatnonzero(count).tolist()
    ]
    return bins, float(np.abs(predicted - good).sum())
