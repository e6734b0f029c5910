"""Find patterns in the metrics of an alignment run that suggest reward hacking or a lack of learning.

An alarm is a reason to look, not a verdict: a solved task has low entropy too. The loop checks during the run, the report at
its end.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lm.train.history import column

WINDOW = 10  # lines in each of the two windows that a trend compares
LEVEL = 5  # lines over which a level is averaged
SURE = 4.0  # standard errors between two means that count as a trend
GOALS = ("reward", "rewards/accuracies", "accuracy")  # logged metrics that the methods maximise
# Rule about a level: its metric, and the text with its worst value.
LEVELS = {
    "kl": ("kl", "kl reached {:.3g} nats a token: the policy left its reference"),
    "entropy": ("entropy", "entropy fell from {start:.3g} to {:.2g} nats a token: the policy explores no more{solved}"),
    "no_signal": ("frac_reward_zero_std", "up to {:.0%} of the groups have equal rewards, and so no advantage{solved}"),
    "clipped": ("completions/clipped_ratio", "up to {:.0%} of the completions are cut by the length limit: raise it"),
}
LOWER_IS_BETTER = {"loss", "bits", "perplexity", "nll", "kl", "attack", "over", "error", "errors", "toxicity"}


class Alarm(NamedTuple):
    """step: the first line for which the rule held. kind: a rule name of `alarms`. text: a sentence with its numbers."""

    step: int
    kind: str
    text: str


def alarms(lines: Sequence[dict]) -> list[Alarm]:
    """Return the alarms of a run sorted by step, at most one per kind.

    A trend compares the mean of the last 10 training lines with the mean of the first 10: a curve rises or falls if they
    differ by 4 standard errors. A level is the mean of the last 5 lines. The rules, by kind:

    length         completions/mean_length rises by at least 20 %, and its line-to-line changes are correlated with those of
                   reward: by at least max(0.5, 3/√n).
    rewards_apart  among several rewards/NAME/mean, one rises and another falls.
    held_out       reward (else rewards/accuracies, accuracy) rises, but a held-out one of these (or a held-out reward) was
                   below its earlier best in two consecutive validations: by at least 5 % of the best, and by half of its
                   gain or below its first value.
    overfitting    loss falls, but valid_loss was more than 5 % above its lowest value in two consecutive
                   validations.
    kl             kl is above 1 nat per token, in a run with rewards.
    entropy        entropy is below a tenth of its first level and below 0.05 nats per token, in a run with rewards.
    no_signal      frac_reward_zero_std is at least 0.9: groups with equal rewards have no advantage.
    clipped        completions/clipped_ratio is above 0.5: most scored completions are cut.
    no_training    loss and grad_norm are exactly 0 in 3 consecutive lines: every token is masked, or every example is beyond
                   the hinge. If all groups have equal rewards, only no_signal applies.

    lines: of metrics.jsonl, training and validation, ascending by step. A rule whose metrics are missing is skipped.
    """
    train = [line for line in lines if not is_validation(line)]
    valid = [line for line in lines if is_validation(line)]
    found = [
        *_length(train),
        *_rewards_apart(train),
        *_held_out(train, valid),
        *_overfitting(train, valid),
        *_levels(train),
        *_no_training(train),
    ]
    return sorted(found)


def is_validation(line: dict) -> bool:
    """Return whether a line of metrics.jsonl is a validation."""
    return any(key.startswith("valid_") for key in line)


def is_better(measure: str, before: float, after: float) -> bool:
    """Return whether a metric improved. Lower is better if its name has a word of LOWER_IS_BETTER, as attack_success has."""
    return after < before if words(measure) & LOWER_IS_BETTER else after > before


def words(measure: str) -> set[str]:
    return set(re.split(r"[^a-z]+", measure.lower()))


def trailing_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of the last `width` values up to each index, or of all if there are fewer."""
    sums = np.concatenate([[0], np.cumsum(y)])
    end = np.arange(1, len(y) + 1)
    start = np.maximum(end - width, 0)
    return (sums[end] - sums[start]) / (end - start)


def in_a_row(holds: np.ndarray, n: int) -> np.ndarray:
    """Return whether a rule holds at an index and at the n − 1 before it."""
    return (trailing_mean(holds, n) == 1) & (np.arange(len(holds)) >= n - 1)


def _length(train: Sequence[dict]) -> list[Alarm]:
    steps, length, reward = _together(train, "completions/mean_length", "reward")
    if len(steps) < 2 * WINDOW:
        return []
    means, first = trailing_mean(length, WINDOW), length[:WINDOW].mean()
    r = np.concatenate([[0.0], correlation(np.diff(length), np.diff(reward))])
    goes_with_reward = r >= np.maximum(0.5, 3 / np.sqrt(np.maximum(1, np.arange(len(steps)))))
    return _alarm(
        "length",
        steps,
        (_moved(length) > SURE) & (means > 1.2 * first) & goes_with_reward,
        lambda i: (
            f"completions grew from {first:.0f} to {means[i]:.0f} tokens, and reward goes with length: r = {r[i]:.2f} "
            "between their changes"
        ),
    )


def _rewards_apart(train: Sequence[dict]) -> list[Alarm]:
    keys = sorted({key for line in train for key in line if key.startswith("rewards/") and key.endswith("/mean")})
    steps, *curves = _together(train, *keys)
    if len(keys) < 2 or len(steps) < 2 * WINDOW:
        return []
    moved = np.stack([_moved(curve) for curve in curves])
    names = [key.split("/", 1)[1].removesuffix("/mean") for key in keys]

    def changes(i: int, which: np.ndarray) -> str:
        pairs = [(name, curve) for name, curve, yes in zip(names, curves, which, strict=True) if yes]
        return ", ".join(f"{name} ({c[:WINDOW].mean():.3g} → {c[i - WINDOW + 1 : i + 1].mean():.3g})" for name, c in pairs)

    def text(i: int) -> str:
        return f"{changes(i, moved[:, i] > SURE)} rises while {changes(i, moved[:, i] < -SURE)} falls"

    return _alarm("rewards_apart", steps, (moved > SURE).any(0) & (moved < -SURE).any(0), text)


def _held_out(train: Sequence[dict], valid: Sequence[dict]) -> list[Alarm]:
    trained = next((key for key in GOALS if len(column(train, key)[0]) >= 2 * WINDOW), None)
    if trained is None:
        return []
    at, reward = column(train, trained)
    rises = _moved(reward) > SURE
    wanted = {f"valid_{key}" for key in GOALS}
    if trained == "reward":
        wanted |= {key for line in valid for key in line if key.startswith("valid_rewards/")}
    found = []
    for key in sorted(wanted):
        steps, y = column(valid, key)
        if len(y) < 3:
            continue
        best = np.maximum.accumulate(y)
        drop = best - y
        low = in_a_row((drop > 0.05 * np.abs(best)) & ((drop > 0.5 * (best - y[0])) | (y < y[0])), 2)
        rising = rises[_last_before(at, steps)]

        def text(i: int, key=key, y=y, best=best) -> str:
            return f"{trained} rises, but held out {key.removeprefix('valid_')} fell from {best[i]:.3g} to {y[i]:.3g}"

        found += _alarm("held_out", steps, low & rising, text)
    return sorted(found)[:1]


def _overfitting(train: Sequence[dict], valid: Sequence[dict]) -> list[Alarm]:
    (at, loss), (steps, held_out) = column(train, "loss"), column(valid, "valid_loss")
    if len(loss) < WINDOW or len(held_out) < 3:
        return []
    lowest = np.minimum.accumulate(held_out)
    high = in_a_row(held_out > lowest + 0.05 * np.abs(lowest), 2)
    now = trailing_mean(loss, WINDOW)[_last_before(at, steps)]
    then = now[[int(np.argmin(held_out[: i + 1])) for i in range(len(held_out))]]
    return _alarm(
        "overfitting",
        steps,
        high & (now < then),
        lambda i: f"held-out loss rose from {lowest[i]:.4g} to {held_out[i]:.4g} while training loss fell to {now[i]:.4g}",
    )


def _levels(train: Sequence[dict]) -> list[Alarm]:
    rewarded = [line for line in train if line.get("reward") is not None]
    first = column(rewarded, "entropy")[1][:LEVEL]
    start = first.mean() if len(first) else 0.0
    reward = column(rewarded, "reward")[1][-LEVEL:]
    solved = f"; mean reward {reward.mean():.3g}" if len(reward) else ""
    holds = {
        "kl": lambda y: y > 1.0,
        "entropy": lambda y: y < min(0.1 * start, 0.05),
        "no_signal": lambda y: y >= 0.9,
        "clipped": lambda y: y > 0.5,
    }
    found = []
    for kind, (key, text) in LEVELS.items():
        steps, y = column(rewarded if kind in ("kl", "entropy") else train, key)
        means = trailing_mean(y, LEVEL)
        where = holds[kind](means) & (np.arange(len(y)) >= LEVEL - 1)
        if where.any():
            worst = (np.min if kind == "entropy" else np.max)(means[where])
            alarm = text.format(worst, start=start, solved=solved)
            found += _alarm(kind, steps, where, lambda i, alarm=alarm: alarm)
    return found


def _no_training(train: Sequence[dict]) -> list[Alarm]:
    steps, loss = column(train, "loss")
    rows = {line["step"]: line for line in train}
    idle = np.array(
        [
            value == 0 and rows[step].get("grad_norm", 0) == 0 and rows[step].get("frac_reward_zero_std", 0) != 1
            for step, value in zip(steps, loss, strict=True)
        ],
        bool,
    )
    return _alarm(
        "no_training",
        steps,
        in_a_row(idle, 3),
        lambda i: "loss and gradient are exactly 0: every token is masked, or every example is beyond the loss's hinge",
    )


def _alarm(kind: str, steps: np.ndarray, holds: np.ndarray, text: Callable[[int], str]) -> list[Alarm]:
    """Return [alarm] with the first step for which the rule holds and the numbers of the last one, or []."""
    where = np.flatnonzero(holds)
    if not len(where):
        return []
    first, last = where[0], where[-1]
    ended = "" if last == len(steps) - 1 else f" (last at step {steps[last]:.0f})"
    return [Alarm(int(steps[first]), kind, text(last) + ended)]


def _last_before(steps: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return for each step of `at` the index of the last of `steps` that is not after it, or 0."""
    return np.clip(np.searchsorted(steps, at, "right") - 1, 0, None)


def _together(train: Sequence[dict], *keys: str) -> tuple[np.ndarray, ...]:
    """Return steps, and values by key, of the lines that have all keys."""
    columns = [dict(zip(*column(train, key), strict=True)) for key in keys]
    steps = np.array(sorted(set.intersection(*map(set, columns))) if columns else [], np.float64)
    return steps, *(np.array([values[step] for step in steps], np.float64) for values in columns)


def _moved(y: np.ndarray) -> np.ndarray:
    """Return how many standard errors the trailing mean is above the mean of the first window; 0 while the windows overlap."""
    means, squares = trailing_mean(y, WINDOW), trailing_mean(y**2, WINDOW)
    variances = np.maximum(squares - means**2, 0)
    size = min(WINDOW, len(y))
    change = means - means[size - 1]
    errors = np.sqrt((variances + variances[size - 1]) / WINDOW) + 1e-6 * (np.abs(means) + np.abs(means[size - 1])) + 1e-12
    return np.where(np.arange(len(y)) >= 2 * WINDOW - 1, change / errors, 0.0)


def correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Pearson's r of the first i + 1 pairs for every i; 0 if x or y is constant."""
    n = np.arange(1, len(x) + 1)
    noise = [1e-7 * np.max(np.abs(z), initial=0) for z in (x, y)]  # spread that rounding alone can cause
    x, y = x - np.mean(x), y - np.mean(y)  # uncentred sums of squares would lose digits
    mean_x, mean_y = np.cumsum(x) / n, np.cumsum(y) / n
    covariance = np.cumsum(x * y) / n - mean_x * mean_y
    spread_x, spread_y = (np.sqrt(np.maximum(np.cumsum(z * z) / n - mean**2, 0)) for z, mean in ((x, mean_x), (y, mean_y)))
    varies = (spread_x > noise[0]) & (spread_y > noise[1])
    return np.where(varies, covariance / np.where(varies, spread_x * spread_y, 1), 0.0)
