"""Multiple choice by likelihood: which continuation of a context is the most likely?

With doc_to_choice an item has choices. The metrics use the choices' log-likelihoods ℓ given the context:
  acc              argmax ℓ is right; acc_norm: argmax ℓ / characters, acc_bytes: argmax ℓ / UTF-8 bytes, both of the choice
                   without its delimiter; acc_per_token: argmax ℓ / tokens, with the delimiter
  acc_mutual_info  argmax ℓ(choice | context) − ℓ(choice | nothing); needs likelihoods twice
  mc1, mc2         of TruthfulQA (Lin et al. 2022): argmax ℓ is right; Σ p of the right choices / Σ p of all
In a tie the first choice counts, as in lm-evaluation-harness, which defines these metrics. Without doc_to_choice the target is
the only continuation. Then acc is whether each of its tokens was the most likely one, and perplexity is exp(−mean ℓ).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.stats.joining import Malformed, Problems, whole
from lm.evals.stats.measures import mean
from lm.evals.task import Continuation, Likelihood, Outcome, Subject, TaskSettings
from lm.evals.tasks import file_task, prompting
from lm.evals.tasks.documents import TaskItem
from lm.evals.tasks.file_task import FileTask, metrics_of, open_file_task, readable
from lm.evals.tasks.settings import resolved

KEYS = file_task.KEYS | {"metric_list": list, "areas": dict}


class Scores(NamedTuple):
    """Scores of one item: ℓ of each choice, ℓ of each without context (or empty), right choices, choices, tokens per choice."""

    logps: Sequence[float]
    alone: Sequence[float]
    right: Sequence[int]
    choices: Sequence[str]
    tokens: Sequence[int]

    def hit(self, divisors: Sequence[int]) -> float:
        return float(best([logp / n for logp, n in zip(self.logps, divisors)]) in self.right)

    def mass(self) -> float:
        largest = max(self.logps)
        masses = [math.exp(logp - largest) for logp in self.logps]
        return sum(masses[i] for i in set(self.right)) / sum(masses)


METRICS: dict[str, Callable[[Scores], float]] = {
    "acc": lambda s: float(best(s.logps) in s.right),
    "acc_norm": lambda s: s.hit([len(choice) for choice in s.choices]),
    "acc_bytes": lambda s: s.hit([len(choice.encode("utf-8", "surrogatepass")) for choice in s.choices]),
    "acc_per_token": lambda s: s.hit(s.tokens),
    "acc_mutual_info": lambda s: float(best([given - alone for given, alone in zip(s.logps, s.alone)]) in s.right),
    "mc1": lambda s: float(best(s.logps) in s.right),
    "mc2": Scores.mass,
}
CONTINUATION_METRICS = ("acc", "perplexity")


class Question(NamedTuple):
    """An item and its requests. right: indices of the right choices. choices: as texts, without the delimiter."""

    item: TaskItem
    contexts: list[prompting.Context]
    choices: list[str]
    right: list[int]
    requests: list[Continuation]


def evaluate(metrics: tuple[str, ...], task: FileTask, subject: Subject) -> Outcome:
    problems = task.documents.new_problems()
    read = readable(task.documents.items, lambda item: question_of(task, item, subject, metrics), problems)
    questions = [question for _, question in read]
    answers = outcomes.grouped_likelihoods(subject, [question.requests for question in questions])
    samples = [sample_of(task, question, own, metrics, problems) for question, own in zip(questions, answers, strict=True)]
    return Outcome(summary(task, samples, metrics, problems), samples)


def question_of(task: FileTask, item: TaskItem, subject: Subject, metrics: Sequence[str]) -> Question:
    """Return an item's question and requests. Raises: Malformed."""
    contexts = task.prompts.contexts(item, subject)
    with prompting.reading():
        choices, answer = task.prompts.form.choices(item.doc), task.prompts.form.answer(item.doc)
        if choices is None:
            if not isinstance(answer, str) or not answer:
                raise Malformed(f"the target is {answer!r}, not a text")
            return Question(item, contexts, [answer], [0], [Continuation(contexts[0].text, answer)])
        delimiter = task.prompts.delimiter()
        index = task.prompts.form.question(item.doc)
        if isinstance(index, int):
            requests = [Continuation(context.text, f"{delimiter}{answer}") for context in contexts]
            right = _right(index, choices)
        else:
            requests = [Continuation(contexts[0].text, f"{delimiter}{choice}") for choice in choices]
            right = _right(answer, choices)
    if "acc_mutual_info" in metrics:
        requests += [Continuation("", f"{delimiter}{choice}") for choice in choices]
    return Question(item, contexts, choices, right, requests)


def sample_of(
    task: FileTask, question: Question, answers: list[Likelihood], names: Sequence[str], problems: Problems
) -> dict[str, Any]:
    item, n = question.item, len(question.choices)
    logps = [answer.logp for answer in answers]
    known = [logp if isinstance(logp, int | float) and math.isfinite(logp) else None for logp in logps]
    several = len(question.contexts) > 1
    sample = {
        **task.about(item),
        "prompt": [context.text for context in question.contexts] if several else question.contexts[0].text,
        "choices": [request.continuation for request in question.requests[:n]],
        **outcomes.choice_fields(answers[:n]) | {"loglikelihoods": known[:n]},
        "target": question.right if len(question.right) > 1 else question.right[0],
        "metrics": dict.fromkeys(names),
        "failed": False,
    }
    if not several:
        sample["reference"] = question.choices[question.right[0]]
    sample |= outcomes.message_fields(question.contexts[0].messages)
    if len(known) > n:
        sample["loglikelihoods_alone"] = known[n:]
    if any(answer.cut for answer in answers):
        outcomes.flag(sample, problems, "prompts_cut", "the model did not read the beginning of its prompt")
    if None in known:
        outcomes.flag(sample, problems, "loglikelihoods_not_finite", logps)
        return sample
    if task.prompts.form.choice is None:
        sample |= {"target": question.choices[0], "metrics": {"acc": float(answers[0].greedy), "logp": logps[0]}}
        return sample | {"failed": not answers[0].greedy}
    tokens = [len(answer.tokens) for answer in answers[:n]]
    if "acc_per_token" in names and not all(tokens):
        outcomes.flag(sample, problems, "choices_without_tokens", "the model returns no tokens")
        return sample
    if len(set(logps[:n])) < n and logps[:n].count(max(logps[:n])) > 1:
        outcomes.flag(sample, problems, "tied_choices", logps[:n])
    scores = Scores(logps[:n], logps[n:], question.right, question.choices, tokens)
    prediction = best(scores.logps)
    metrics = {name: METRICS[name](scores) for name in names}
    return sample | {"metrics": metrics, "prediction": prediction, "failed": prediction not in question.right}


def summary(task: FileTask, samples: list[dict], metrics: Sequence[str], problems: Problems) -> dict[str, Any]:
    scored = [sample for sample in samples if None not in sample["metrics"].values()]
    if task.prompts.form.choice is not None:
        chance = mean("chance", [len({*_listed(s["target"])}) / len(s["choices"]) for s in scored])["chance"]
        counts = {"n": len(scored), "num_fewshot": task.documents.num_fewshot, "chance": chance}
        return counts | task.summary(scored, metrics, problems)
    mean_logp = mean("logp", [sample["metrics"]["logp"] for sample in scored])
    value = None if mean_logp["logp"] is None or mean_logp["logp"] < -700 else math.exp(-mean_logp["logp"])
    error = None if value is None or mean_logp["logp_stderr"] is None else value * mean_logp["logp_stderr"]
    return task.summary(scored, ["acc"], problems) | {"perplexity": value, "perplexity_stderr": error}


def build(name: str, spec: dict, settings: TaskSettings) -> FileTask:
    """Build the task. Raises: UserError for an invalid key or missing data."""
    values = resolved(name, spec, settings, KEYS, needed=("doc_to_text", "doc_to_target", "metric_list"))
    known = METRICS if "doc_to_choice" in values else CONTINUATION_METRICS
    metrics = tuple(metrics_of(name, values, {metric: {} for metric in known}))
    if "doc_to_choice" not in values and set(metrics) != set(CONTINUATION_METRICS):
        raise UserError(f"task {name}: metric_list: without doc_to_choice it is [{', '.join(CONTINUATION_METRICS)}]")
    return open_file_task(name, values, settings, functools.partial(evaluate, metrics))


def best(values: Sequence[float]) -> int:
    """Return the index of the largest value, the first in a tie."""
    return max(range(len(values)), key=values.__getitem__)


def _right(answer: Any, choices: Sequence[str]) -> list[int]:
    numbers = []
    for target in _listed(answer):
        target = whole(target)
        if isinstance(target, str):
            target = choices.index(target) if target in choices else target
        if not isinstance(target, int) or not 0 <= target < len(choices):
            raise Malformed(f"target {target!r} of {len(choices)} choices", "targets_out_of_range")
        numbers.append(int(target))
    if not numbers:
        raise Malformed("no target")
    return numbers


def _listed(target: Any) -> list:
    return target if isinstance(target, list) else [target]
