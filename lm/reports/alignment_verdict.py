"""The verdict of an alignment run: one sentence about its method's own measure, with n and what chance could do."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.align.alarms import is_better
from lm.evals.stats.intervals import wilson
from lm.evals.stats.significance import mcnemar, paired
from lm.reports.metric_groups import meaning, own_measure
from lm.reports.page import number
from lm.runs.workdir import kept_json

HELD_OUT = "held_out.json"  # see lm/align/validation.py
ALPHA = 0.05
SHARES = ("rewards/accuracies", "accuracy")  # of pairs, or of labelled steps
FEW = 30  # held-out examples or batches, below which no difference is the fault of their number
Values = list[tuple[float, float]]  # (mean, weight) of each held-out example or batch
Held = Mapping[str, Mapping[str, Values]]


def alignment_verdict(report: Mapping[str, Any], workdir: Path | None = None) -> str | None:
    """Return the sentence, or None if the run has measured nothing yet.

    workdir: has the measures of each held-out example or batch, without which nothing is called better or worse.
    """
    before, after = report.get("before") or {}, report.get("after") or {}
    if report.get("finished") and not after:
        return "Nothing was measured: the run held out no examples."
    measure, method = own_measure(after), str(report.get("method") or "")
    if measure is None:
        return None
    held = (kept_json(workdir / HELD_OUT, _is_held) if workdir else None) or {}
    description = meaning(measure, report.get("measures") or {}, method)
    what = f"{description[0].upper()}{description[1:]} ({measure})" if description else measure
    values = held.get("after", {}).get(measure, [])
    unmoved = all(margin == 0 for margin, _ in held.get("after", {}).get("rewards/margins", [(1.0, 1.0)]))
    if measure in SHARES and values and not before.get(measure) and not unmoved:
        return _against_chance(what, values)
    if before.get(measure) is None:
        return f"{what} is {number(after[measure])}."
    if number(after[measure]) == number(before[measure]):  # as printed: 0.1131 -> 0.113 is no news
        return f"{what} stayed at {number(after[measure])}."
    moved = "rose" if after[measure] > before[measure] else "fell"
    sentence = f"{what} {moved} from {number(before[measure])} to {number(after[measure])}"
    examples = ((report.get("data") or {}).get("valid") or {}).get("examples")
    return f"{sentence}{_judged(measure, held, is_better(measure, before[measure], after[measure]), examples)}."


def _judged(measure: str, held: Held, better: bool, examples: int | None) -> str:
    """Return what the paired difference of the held-out examples says, or "" if they are not known."""
    sides = [held.get(side, {}).get(measure, []) for side in ("before", "after")]
    weights = [[weight for _, weight in side] for side in sides]
    if not weights[0] or weights[0] != weights[1]:
        return ""
    mean = sum(weights[0]) / len(weights[0])
    row = paired(*([value * weight / mean for value, weight in side] for side in sides))
    n = f"n = {row['n']:,}" + (f" batches of {examples:,} examples" if examples and examples != row["n"] else "")
    if row["stderr"] is None or row["p"] >= ALPHA:
        return f": too few to tell ({n} held out)" if row["n"] < FEW else f": no more than chance (p = {row['p']:.2g}, {n})"
    interval = f"95 % interval of the change {number(row['low'])} to {number(row['high'])}, {n}"
    return f": {'better' if better else 'worse'} ({interval})"


def _against_chance(what: str, values: Values) -> str:
    """Return the sentence for a share that was 0 before by construction, since both answers of a pair had the reward 0."""
    n, hits = (round(sum(numbers)) for numbers in zip(*((weight, value * weight) for value, weight in values), strict=True))
    low, high = wilson(hits, n)
    p = mcnemar(n - hits, hits)
    verdict = "too few to tell" if p >= ALPHA else "better than chance" if hits > n / 2 else "worse than chance"
    interval = f"95 % interval {100 * low:.0f} % to {100 * high:.0f} %"
    return f"{what} is {number(100 * hits / n)} % of {n:,} ({interval}), where chance is 50 %: {verdict}."


def _is_held(value: Any) -> bool:
    """Return whether a JSON value is Held, with weights above 0."""
    try:
        rows = [row for measures in value.values() for values in measures.values() for row in values]
        return all(math.isfinite(x) and weight > 0 for x, weight in rows)
    except (AttributeError, TypeError, ValueError):
        return False
