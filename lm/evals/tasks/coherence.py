"""Coherence of continuations: a judge model compares them with the references, and repetition is counted.

The judge sees each pair in both orders, because models prefer one position. Only a preference that holds in both orders counts;
otherwise it is a tie, marked as inconsistent (Zheng et al. 2023, "Judging LLM-as-a-Judge", section 3.4).
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.judges.endpoint import Chat, endpoint
from lm.evals.judges.verdict import Verdict, ask
from lm.evals.stats.joining import Malformed, Problems
from lm.evals.stats.repetition import repetition, split_words
from lm.evals.task import Outcome, Subject, TaskSettings
from lm.evals.tasks import file_task
from lm.evals.tasks.file_task import FileTask, open_file_task
from lm.evals.tasks.settings import check_least, resolved

KEYS = file_task.KEYS | {
    "prompt_words": 48,  # words of a text that are the prompt; at most half of it
    "temperature": 0.0,
    "top_p": 1.0,
    "until": [],
    "max_new_tokens": 200,
    "degenerate": 0.5,  # a continuation with at least this seq_repetition_4 counts as failed
    "judge": "",  # openai:URL; empty: the config's, if it is one, else none
    "judge_model": "",
}
METRICS = ("judge_win_rate", "judge_inconsistent", "seq_repetition_4")
POINTS = {"first": 1.0, "tie": 0.5, "second": 0.0}


def evaluate(task: FileTask, subject: Subject) -> Outcome:
    """Return judge_win_rate: of continuations against the references, ties ½; judge_inconsistent: share of pairs whose
    preference changed with the order; seq_repetition_4 (lm/evals/stats/repetition.py).
    """
    problems, values = task.documents.new_problems(), task.values
    sampling = {"temperature": float(values["temperature"]), "top_p": float(values["top_p"]), "seed": task.seed}
    samples, pairs = [], []
    for item, context, answer in task.answers(subject, problems, **sampling):
        repeated = repetition(split_words(answer.text))
        sample = task.sample(item, context, answer) | {"reference": item.doc["reference"] or None, "target": None}
        sample |= {"metrics": dict.fromkeys(METRICS) | {"seq_repetition_4": repeated}}
        samples.append(sample | {"failed": (repeated or 0.0) >= values["degenerate"]})
        if item.doc["reference"]:
            pairs.append((samples[-1], item.doc["prompt"]))
    if task.chat is not None:
        _judge(task.chat, pairs, problems)
    return Outcome(outcomes.means(samples, METRICS) | {"problems": problems.kinds}, samples)


def _judge(chat: Chat, pairs: Sequence[tuple[dict, str]], problems: Problems) -> None:
    """Write the judge's preferences into samples. pairs: samples and their prompts."""
    cases = [(prompt, sample["generation"], sample["reference"]) for sample, prompt in pairs]
    for (sample, _), (verdict, consistent) in zip(pairs, preferences(chat, cases), strict=True):
        sample |= {"verdict": verdict.label, "reason": verdict.reason}
        if verdict.label == "unknown":
            problems.add("unknown_judgements", f"{sample['doc_id']}: {verdict.reason}")
            continue
        sample["metrics"] |= {"judge_win_rate": POINTS[verdict.label], "judge_inconsistent": float(not consistent)}
        sample["failed"] |= verdict.label == "second"


def preferences(chat: Chat, cases: Sequence[tuple[str, str, str]]) -> list[tuple[Verdict, bool]]:
    """Return which of two continuations a judge prefers: first, second, tie or unknown, and whether both orders agree.

    cases: (beginning, first, second). If the chat fails, all are unknown.
    """
    orders = [(context, *pair) for context, a, b in cases for pair in ((a, b), (b, a))]
    verdicts = ask(chat, "coherent", [{"beginning": context, "A": a, "B": b} for context, a, b in orders])
    return [_preference(*pair) for pair in zip(verdicts[::2], verdicts[1::2])]


def _preference(straight: Verdict, swapped: Verdict) -> tuple[Verdict, bool]:
    """Return the preference of both orders. In the second order, A is the second text."""
    for verdict in (straight, swapped):
        if verdict.label == "unknown":
            return verdict, False
    first = {"A": "first", "B": "second"}.get(straight.label, "tie")
    second = {"A": "second", "B": "first"}.get(swapped.label, "tie")
    if first != second:
        return Verdict("tie", f"{first} in one order, {second} in the other"), False
    return Verdict(first, f"{first} in both orders"), True


def build(name: str, spec: Mapping[str, Any], settings: TaskSettings) -> FileTask:
    """Build the task. Items have text (its beginning is the prompt, the rest the reference), or prompt and optionally
    reference; optionally id. Raises: UserError for an invalid task file, judge or data.
    """
    values = resolved(name, spec, settings, KEYS, needed=("doc_to_text",))
    check_least(name, values, prompt_words=1)
    if values["judge"] and not values["judge"].startswith("openai:"):
        raise UserError(f"task {name}: judge: {values['judge']!r} cannot compare texts; set it to openai:URL")
    url = (values["judge"] or settings.judge).partition("openai:")[2]
    chat = endpoint(url, values["judge_model"]) if url else None
    values["judge"] = f"openai:{url}" if url else ""
    read = functools.partial(_read, values["prompt_words"])
    return open_file_task(name, values, settings, evaluate, read=read, chat=chat)


def _read(words: int, doc: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with its prompt and its reference ("" without one)."""
    for key in ("text", "prompt", "reference"):
        if doc.get(key) is not None and not isinstance(doc[key], str):
            raise Malformed(f"{key!r} is a {type(doc[key]).__name__}, not a text")
    prompt, reference = (doc.get("prompt") or "").strip(), doc.get("reference") or ""
    if not prompt:
        text = (doc.get("text") or "").strip()
        count = min(words, len(text.split()) // 2)
        if not count:
            raise Malformed("neither a 'prompt' nor a 'text' of two words")
        prompt = re.match(rf"(?:\S+\s+){{{count - 1}}}\S+", text)[0]
        reference = text[len(prompt) :]
    return {**doc, "prompt": prompt, "reference": reference.strip()}
