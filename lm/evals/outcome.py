"""Interfaces of a task: its settings, and its outcome with metrics, standard errors and one record per item."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lm.evals.stats.joining import Problems
from lm.evals.stats.measures import mean
from lm.evals.subject import Generated, Subject


class Outcome(NamedTuple):
    """results: {metric: value, metric_stderr: …, "n": items scored, "problems": {kind: {"n", "examples"}}, …}. A value is None
    if it is unknown. Parts are optional: {"subjects": {name: {…}}}. samples: one dict per item, in the order of the items, with
    at least task, doc_id, prompt, target, metrics {metric: value of this item} and failed (bool); and, where the item has
    problems, flags: their kinds.
    """

    results: dict[str, Any]
    samples: list[dict[str, Any]]


class Task(Protocol):
    """An evaluation task. name: its key in results.json. versions: of its data, prompts and template."""

    name: str
    versions: dict[str, Any]

    def run(self, subject: Subject) -> Outcome: ...


class TaskSettings(NamedTuple):
    """Settings of a task. None means the value of the task's file.

    data_dir: the files are DIR/<task>/*. limit: the maximum number of items or, below 1, the share of them. chat: whether to
    apply the chat template. fewshot_as_multiturn: send the examples as separate turns. judge: a name from judges/judges.py.
    options: config.options, by task kind.
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


def flag(sample: dict[str, Any], problems: Problems, kind: str, why: object) -> None:
    """Count a problem of a sample, and add its kind to the sample's `flags`."""
    problems.add(kind, f"{sample['doc_id']}: {why}")
    sample.setdefault("flags", []).append(kind)


def cuts(answers: Sequence[Generated]) -> list[str]:
    """Return the flags of answers to prompts that were too long for the model, and of those that end at the maximum length."""
    found = ["prompts_cut"] if any(answer.cut for answer in answers) else []
    return found if all(answer.ended for answer in answers) else [*found, "generations_cut_by_length"]


def flag_cuts(sample: dict[str, Any], problems: Problems, answers: Sequence[Generated]) -> None:
    for kind in cuts(answers):
        flag(sample, problems, kind, f"…{answers[0].text[-40:]}")


def summed_up(samples: Sequence[dict], metrics: Sequence[str], problems: Problems, **more: Any) -> dict[str, Any]:
    """Return results of samples: the mean of each metric and its standard error (sample standard deviation / √n).

    A sample whose metric is missing or None does not count for that metric. A NaN is recorded as a problem and not scored.
    `n` counts the samples.
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
