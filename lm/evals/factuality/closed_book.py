"""Closed-book questions: accuracy, hallucination and abstention, and whether the model's confidence is calibrated.

Each answer is correct, incorrect (hallucinated), or abstains. Its confidence is its length-normalised likelihood, exp(1/n · Σ
log p), and optionally P(True): the model sees its own answer and is asked whether it is true (Kadavath et al. 2022, "Language
Models (Mostly) Know What They Know"). Both are compared with correctness (calibration.py).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.factuality.answers import f1, judged, normal
from lm.evals.factuality.calibration import calibration
from lm.evals.stats.joining import Malformed, Problems
from lm.evals.task import Continuation, Outcome, Subject, TaskSettings
from lm.evals.tasks import file_task
from lm.evals.tasks.documents import TaskItem, column, texts
from lm.evals.tasks.file_task import FileTask, open_file_task
from lm.evals.tasks.settings import OneOf, resolved

KEYS = file_task.KEYS | {
    "question": "question",  # column of the question; dots for nested columns
    "answers": "answers",  # column of all right answers, a text or a list
    "abstain": "I don't know",  # the prompt's phrase for abstaining; {abstain} in the description
    "match": OneOf(("exact", "contains")),  # see answers.judged
    "until": ["\n"],
    "max_new_tokens": 32,
    "confidence": ["likelihood"],  # and "p_true"
}
P_TRUE = "Question: {question}\nProposed answer: {answer}\nIs the proposed answer true or false?\nThe proposed answer is:"
METRICS = ("accuracy", "exact_match", "f1", "hallucination_rate", "abstention_rate", "truthful_score", "unanswerable_abstained")
FIGURES = ("ece_equal_width", "brier", "auroc", "aurc")


def evaluate(task: FileTask, subject: Subject) -> Outcome:
    """Return metrics over the scored items:

    accuracy, exact_match, f1: over items with an answer; an abstention is not right.
    hallucination_rate: incorrect answers among the attempted. abstention_rate: over all.
    truthful_score: the mean of 1 for a right answer (on an unanswerable question, an abstention), 0 for another abstention,
    −1 for an incorrect answer. unanswerable_abstained: share of abstentions on unanswerable questions.
    ece_equal_width, brier, auroc, aurc: over attempted answers, by likelihood; …_p_true by P(True).
    """
    problems, values = task.documents.new_problems(), task.values
    samples = []
    for item, context, answer in task.answers(subject, problems):
        samples.append(task.sample(item, context, answer) | _scored(item, answer.text, values))
    attempted = [s for s in samples if s["verdict"] != "abstained"]
    _confidences(attempted, subject, values["confidence"], problems)
    results = outcomes.means(samples, METRICS)
    curves: dict[str, Any] = {}
    for kind, ending in (("likelihood", ""), ("p_true", "_p_true")):
        if kind not in values["confidence"]:
            continue
        key = "confidence" if kind == "likelihood" else kind
        known = [s for s in attempted if s[key] is not None]
        figures = calibration([s[key] for s in known], [s["verdict"] == "correct" for s in known])
        results |= {f"{figure}{ending}": figures[figure] for figure in FIGURES}
        shown = {part: figures[part] for part in ("bins", "risk_coverage")} | {"of": figures["n"]}
        curves |= shown if kind == "likelihood" else {kind: shown}
    counts = {v: sum(s["verdict"] == v for s in samples) for v in ("correct", "incorrect", "abstained")}
    return Outcome(results | {"verdicts": counts, "calibration": curves, "problems": problems.kinds}, samples)


def _scored(item: TaskItem, text: str, values: Mapping[str, Any]) -> dict[str, Any]:
    aliases, answer = item.doc["aliases"], first_line(text)
    verdict = judged(answer, aliases, values["abstain"], values["match"])
    right = verdict == ("correct" if aliases else "abstained")
    metrics: dict[str, float | None] = {
        "accuracy": float(right) if aliases else None,
        "exact_match": float(normal(answer) in [normal(alias) for alias in aliases]) if aliases else None,
        "f1": f1(answer, aliases) if aliases else None,
        "hallucination_rate": None if verdict == "abstained" else float(verdict == "incorrect"),
        "abstention_rate": float(verdict == "abstained"),
        "truthful_score": 1.0 if right else 0.0 if verdict == "abstained" else -1.0,
        "unanswerable_abstained": None if aliases else float(right),
    }
    return {
        "answer": answer,
        "question": item.doc["asked"],
        "target": list(aliases),
        "reference": item.doc["reference"],
        "answerable": bool(aliases),
        "verdict": verdict,
        "confidence": None,
        "p_true": None,
        "metrics": metrics,
        "failed": verdict == "incorrect",
    }


def _confidences(attempted: Sequence[dict], subject: Subject, wanted: Sequence[str], problems: Problems) -> None:
    """Write confidence and p_true into the samples."""
    if "likelihood" in wanted:
        texts = [s["generation"][: s["generation"].index(s["answer"]) + len(s["answer"])] for s in attempted]
        likelihoods = subject.likelihoods([Continuation(s["prompt"], text) for s, text in zip(attempted, texts)])
        for s, text, likelihood in zip(attempted, texts, likelihoods, strict=True):
            length = len(likelihood.tokens) or len(text.split())
            if math.isfinite(likelihood.logp):
                s["confidence"] = min(1.0, math.exp(likelihood.logp / length))
            else:
                problems.add("likelihoods_not_finite", f"{s['doc_id']}: {likelihood.logp}")
    if "p_true" in wanted:
        texts = [P_TRUE.format(question=s["question"], answer=s["answer"]) for s in attempted]
        likelihoods = subject.likelihoods([Continuation(t, word) for t in texts for word in (" True", " False")])
        for s, true, false in zip(attempted, likelihoods[::2], likelihoods[1::2], strict=True):
            if math.isfinite(true.logp) and math.isfinite(false.logp):
                s["p_true"] = 1 / (1 + math.exp(min(700.0, false.logp - true.logp)))
            else:
                problems.add("likelihoods_not_finite", f"{s['doc_id']}: P(True) of {true.logp}, {false.logp}")


def first_line(text: str) -> str:
    """Return the first line of a text that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def build(name: str, spec: Mapping[str, Any], settings: TaskSettings) -> FileTask:
    """Build the task. Items have a question, answers (all right ones) or, if there is none, answerable: false.

    Raises: UserError for an invalid task file or data.
    """
    values = resolved(name, spec, settings, KEYS, needed=("doc_to_text",))
    if unknown := set(values["confidence"]) - {"likelihood", "p_true"}:
        raise UserError(f"task {name}: confidence: {min(unknown)!r} is none of likelihood, p_true")
    values["doc_to_target"] = "reference"
    return open_file_task(name, values, settings, evaluate, read=functools.partial(_read, values))


def _read(values: Mapping[str, Any], doc: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with `asked`, its question; `aliases`, all right answers; and `reference`, the expected answer."""
    answerable = doc.get("answerable")
    if answerable is not None and not isinstance(answerable, bool):
        raise Malformed(f"'answerable' is {answerable!r}, not true or false")
    (asked,) = texts(column(doc, values["question"]), values["question"])[:1]
    answers = column(doc, values["answers"]) if answerable is not False else None
    aliases = texts(answers, values["answers"], empty=answerable is False)
    return {**doc, "asked": asked, "aliases": aliases, "reference": aliases[0] if aliases else values["abstain"]}
