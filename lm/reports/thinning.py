"""Curves of fewer points for a page: the extremes of each stretch, and the trend of a noisy curve."""

import numpy as np

from lm.train.history import Curve

POINTS = 600  # maximum number of points per curve


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> Curve:
    """Return at most `points` of a curve: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(x) <= points:
        return x, y
    keep = [0, len(x) - 1]
    for stretch in np.array_split(np.arange(len(x)), points // 2 - 1):
        keep += [stretch[y[stretch].argmin()], stretch[y[stretch].argmax()]]
    keep = np.unique(keep)
    return x[keep], y[keep]


def trend(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> Curve:
    """Return the trend of a noisy curve at no more than `points` positions: at each, a line fitted to its neighbours.

    The fit is least squares over a fiftieth of the curve on either side (Cleveland 1979, with equal weights). For evenly spaced
    points it is their mean. At both ends the window keeps its width and lies to one side; the line's slope prevents a lag. A
    straight line is unchanged. x must ascend.
    """
    n = len(x)
    half = min(max(1, n // 50), (n - 1) // 2)
    at = np.unique(np.linspace(0, n - 1, min(n, points)).round().astype(int))
    fitted = np.empty(len(at))
    for k, i in enumerate(at):
        begin = min(max(i - half, 0), n - 1 - 2 * half)
        near = slice(begin, begin + 2 * half + 1)
        mean_x, mean_y = x[near].mean(), y[near].mean()
        away = x[near] - mean_x
        spread = away @ away
        fitted[k] = mean_y + (x[i] - mean_x) * (away @ (y[near] - mean_y)) / spread if spread else mean_y
    return x[at], fitted
