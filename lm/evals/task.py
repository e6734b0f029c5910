"""The interfaces of an evaluation: the model under evaluation as tasks ask it, the task, and its outcome.

Tasks use only the Subject. So they run on our models (lm/evals/engine/model_subject.py), on test oracles with known answers, or
on a model behind an API that returns no likelihoods.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from data.media.parts import Medium
from lm.evals.stats.joining import Problems
from lm.evals.stats.measures import mean

T = TypeVar("T")


class Continuation(NamedTuple):
    """A request for the likelihood of `continuation` after `context`. An empty context means the start of a document."""

    context: str
    continuation: str


class Likelihood(NamedTuple):
    """logp: Σ log p of the continuation's tokens, nats. greedy: whether each token was the most likely one. tokens: the
    continuation's ids. context_tokens: the context's ids as the model read them. cut: whether the context was too long, so that
    the model did not read its beginning."""

    logp: float
    greedy: bool
    tokens: tuple[int, ...] = ()
    context_tokens: tuple[int, ...] = ()
    cut: bool = False


class Rolled(NamedTuple):
    """The likelihood of a whole text. logps: of each token after the first context, nats, in order."""

    logps: tuple[float, ...]
    tokens: tuple[int, ...]


class Prompt(NamedTuple):
    """A text to continue until one of the strings `stops` (which is cut off), an end symbol, or max_new_tokens.

    temperature 0 is greedy. A sample depends only on the prompt, the settings and `seed`. media: images and sound that the text
    has tokens for, as `Subject.chat_prompt` writes them.
    """

    text: str
    stops: tuple[str, ...] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    media: tuple[Medium, ...] = ()


class Generated(NamedTuple):
    """text: without the stop string. ended: by a stop or an end symbol, not by the length. problem: why there is no text. cut:
    whether the prompt was too long, so that the model did not read its beginning."""

    text: str
    ended: bool = True
    tokens: tuple[int, ...] = ()
    prompt_tokens: tuple[int, ...] = ()
    problem: str = ""
    cut: bool = False


class Subject(Protocol):
    """Each method answers in the order of the requests. An answer does not depend on the other requests of the call."""

    name: str

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]: ...

    def rolled(self, texts: Sequence[str]) -> list[Rolled]: ...

    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]: ...

    def chat_prompt(self, messages: Sequence[dict[str, Any]], prefill: str = "") -> str:
        """Return messages as the text that the model continues with its answer. It uses the model's chat template; a model
        without one gets a plain "User: … Assistant:" form. prefill: the beginning of the answer.

        Messages may have `media`, with placeholders in their content (data/media/parts.py). Raises: UserError if the model
        cannot read them.
        """
        ...


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


def means(samples: Sequence[dict], metrics: Sequence[str]) -> dict[str, Any]:
    """Return the mean of each metric with its standard error over the samples that have it, and their number `n`."""
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
