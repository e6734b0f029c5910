"""What a task is, how it is set, and what it comes to: figures with their errors, and a record of each item."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lm.evals.stats.joining import Problems
from lm.evals.stats.measures import mean
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


class TaskSettings(NamedTuple):
    """How a task is to be run; None: as its file says.

    data_dir: files are DIR/<task>/*. limit: items at most, or, below 1, the share of them. chat: whether prompts go through the
    chat template, and as several turns where there are examples (fewshot_as_multiturn). judge: as judges/judges.py names
    them. options: of the config, by task kind.
    """

    data_dir: Path | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    chat: bool = False
    system: str = ""
    fewshot_as_multiturn: bool = False
    seed: int = 1234
    judge: str = "rules"
    options: dict[str, Any] = {}


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
