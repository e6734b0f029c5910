"""What goes into an Outcome: the fields that samples share, their flags, and metrics over samples and their parts."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from lm.evals.stats.joining import Problems
from lm.evals.stats.measures import mean
from lm.evals.task import Continuation, Generated, Likelihood, Subject

T = TypeVar("T")


def flag(sample: dict[str, Any], problems: Problems, kind: str, why: object) -> None:
    """Count a problem of a sample, and add its kind to the sample's `flags`."""
    problems.add(kind, f"{sample['doc_id']}: {why}")
    sample.setdefault("flags", []).append(kind)


def cuts(answers: Sequence[Generated]) -> list[str]:
    """Return the flags of answers to prompts that were too long for the model, and of those that end at the maximum length."""
    kinds = ["prompts_cut"] if any(answer.cut for answer in answers) else []
    return kinds if all(answer.ended for answer in answers) else [*kinds, "generations_cut_by_length"]


def flag_cuts(sample: dict[str, Any], problems: Problems, answers: Sequence[Generated]) -> None:
    for kind in cuts(answers):
        flag(sample, problems, kind, f"…{answers[0].text[-40:]}")


def grouped_likelihoods(subject: Subject, groups: Sequence[Sequence[Continuation]]) -> list[list[Likelihood]]:
    """Return the likelihoods of groups of continuations, with one request to the subject."""
    likelihoods = iter(subject.likelihoods([request for group in groups for request in group]))
    return [[next(likelihoods) for _ in group] for group in groups]


def all_finite(likelihoods: Sequence[Likelihood], problems: Problems, where: object) -> bool:
    """Return whether all log-likelihoods are finite; record a problem if not."""
    wrong = next((likelihood.logp for likelihood in likelihoods if not math.isfinite(likelihood.logp)), None)
    if wrong is not None:
        problems.add("likelihoods_not_finite", f"{where}: {wrong}")
    return wrong is None


def choice_fields(likelihoods: Sequence[Likelihood]) -> dict[str, list]:
    """Return the fields of a sample on its choices: `loglikelihoods`, and `tokens`: [context ids, own ids] of each."""
    return {
        "loglikelihoods": [likelihood.logp for likelihood in likelihoods],
        "tokens": [[list(likelihood.context_tokens), list(likelihood.tokens)] for likelihood in likelihoods],
    }


def message_fields(messages: Sequence[dict[str, Any]] | None) -> dict[str, list]:
    """Return the field `messages` of a sample, if its prompt is a conversation."""
    return {} if messages is None else {"messages": [dict(message) for message in messages]}


def limited(values: Sequence[T], limit: float | None) -> Sequence[T]:
    """Return the first `limit` values or, below 1, that share of them, rounded up."""
    if not limit:
        return values
    return values[: math.ceil(len(values) * limit) if limit < 1 else int(limit)]


def means(samples: Sequence[dict], metrics: Sequence[str]) -> dict[str, Any]:
    """Return the mean of each metric and its standard error (sample standard deviation / √n) over the samples that have it.

    A sample whose metric is missing or None does not count for that metric. `n` counts the samples.
    """
    figures: dict[str, Any] = {}
    for metric in metrics:
        figures |= mean(metric, [s["metrics"][metric] for s in samples if s["metrics"].get(metric) is not None])
    return figures | {"n": len(samples)}


def parts(
    samples: Sequence[dict], key: str, figures: Callable[[Sequence[dict]], dict], order: Iterable[str] | None = None
) -> dict[str, dict]:
    """Return figures(samples with that value) for each value of `key` but None and "", in `order`; None: sorted."""
    values = sorted({str(sample[key]) for sample in samples if sample[key] is not None}) if order is None else order
    return {value: figures([sample for sample in samples if str(sample[key]) == value]) for value in values if value}
