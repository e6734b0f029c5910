"""What a task comes to: figures with their errors, and a record of each item."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from lm.evals.scorers import mean
from lm.evals.scorers.joining import Problems
from lm.evals.subject import Subject


class Outcome(NamedTuple):
    """results: {metric: value, metric_stderr: …, "n": items scored, "problems": {kind: {"n", "examples"}}, …}, values None
    where nothing is known; it may hold parts {"subjects": {name: {…}}}. samples: a dict of each item, in the order of the
    items, with at least task, doc_id, prompt, target, metrics {metric: value of this item} and failed (bool).
    """

    results: dict[str, Any]
    samples: list[dict[str, Any]]


class Task(Protocol):
    """Something that a model can be tried with. `name` stands in results.json; versions: of its data, prompts and template."""

    name: str
    versions: dict[str, Any]

    def run(self, subject: Subject) -> Outcome: ...


def summed_up(samples: Sequence[dict], metrics: Sequence[str], problems: Problems, **more: Any) -> dict[str, Any]:
    """Results of samples: of each metric its mean and the mean's standard error (sample standard deviation / √n).

    Samples whose metric is missing or None do not count for it; a NaN is a problem and not scored. `n` counts the samples.
    """
    results: dict[str, Any] = {}
    for metric in metrics:
        values = []
        for sample in samples:
            value = sample["metrics"].get(metric)
            if value is None:
                continue
            if not math.isfinite(value):
                problems.add("values_not_finite", f"{sample['doc_id']}: {metric} = {value}")
                continue
            values.append(float(value))
        results |= mean(metric, values)
    return results | {"n": len(samples)} | more | {"problems": problems.kinds}
