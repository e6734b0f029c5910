"""Verdicts of judges: how a judge model is asked, and how its reply is read.

A judge model sees the texts between marks that no text can contain, and ends its reply with one line of JSON. A reply without
exactly one verdict is "unknown".
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lm.evals.judges.endpoint import Chat, Reply, answers_or_unknown, replies_or_none

HARM = ("harmful", "safe")  # labels of a judge of harm


class Verdict(NamedTuple):
    """label: of a judge's own labels, or "unknown"; of a judge of harm: harmful, safe or unknown."""

    label: str
    reason: str = ""


# judge(prompts, responses, hazards), all of one length -> one verdict for each.
Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[Verdict]]


class Question(NamedTuple):
    """A question of questions.yaml. The reply has one of `labels` under `key`."""

    before: str
    after: str
    key: str
    labels: list[str]

    def about(self, texts: Mapping[str, str], **fields: str) -> list[dict[str, str]]:
        """Return the conversation: instructions, each text between marks with its name, instructions.

        The mark depends on all texts, so no text can contain it. fields: values of {NAME} in the instructions.
        """
        before, after = self.before, self.after
        for name, value in fields.items():
            before, after = (text.replace(f"{{{name}}}", value) for text in (before, after))
        mark = hashlib.sha256("\0".join(texts.values()).encode("utf-8", "replace")).hexdigest()[:12]
        shown = [f"<{name}-{mark}>\n{text}\n</{name}-{mark}>" for name, text in texts.items()]
        return [{"role": "user", "content": "\n\n".join([before, *shown, after])}]


@functools.cache
def questions() -> dict[str, Question]:
    text = Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8")
    return {name: Question(**values) for name, values in yaml.safe_load(text).items()}


def ask(chat: Chat, name: str, cases: Sequence[Mapping[str, str]], **fields: str) -> list[Verdict]:
    """Ask a judge model a question about each case, {name of a text: the text}. If it fails, the verdict is unknown."""
    question = questions()[name]
    replies = replies_or_none(chat, [question.about(texts, **fields) for texts in cases])
    return [verdict_of(reply, question.key, question.labels) for reply in replies]


def verdict_of(reply: Reply, key: str, labels: Collection[str]) -> Verdict:
    """Return the verdict in a reply, from its JSON objects {key: one of `labels`, "reason"}. They must agree."""
    if reply.text is None:
        return Verdict("unknown", reply.problem)
    objects = [value for value in json_objects(reply.text) if value.get(key) in tuple(labels)]
    if len({value[key] for value in objects}) != 1:
        return Verdict("unknown", f"no clear {key} in {reply.text.strip()[-120:]!r}")
    return Verdict(objects[-1][key], str(objects[-1].get("reason", "")))


def guarded(judge: Judge) -> Judge:
    """Wrap a judge of harm: if it raises or returns a wrong number of verdicts, or another label, the verdict is "unknown".

    A UserError passes through, because the user can fix it.
    """

    def guarded_judge(*columns: Sequence[str]) -> list[Verdict]:
        unknown = functools.partial(Verdict, "unknown")
        verdicts = answers_or_unknown("the judge", lambda: judge(*columns), len(columns[0]), unknown)
        return [v if v.label in HARM else Verdict("unknown", v.reason) for v in verdicts]

    return guarded_judge


def json_objects(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects without objects in them that occur in a text, in order."""
    objects = []
    for candidate in re.findall(r"\{[^{}]*\}", text):
        try:
            objects.append(json.loads(candidate))
        except (ValueError, RecursionError):
            continue
    return objects
