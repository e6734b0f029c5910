"""Verdicts of judges: how a judge model is asked, and how its reply is read.

A judge model sees the texts between marks that no text can contain, and ends its reply with one line of JSON. A reply without
exactly one verdict is "unknown".
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from lm.evals.judges.endpoint import Reply, answers_or_unknown

HARM = ("harmful", "safe")  # labels of a judge of harm


class Verdict(NamedTuple):
    """label: of a judge's own labels, or "unknown"; of a judge of harm: harmful, safe or unknown."""

    label: str
    reason: str = ""


# judge(prompts, responses, hazards), all of one length -> one verdict for each.
Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[Verdict]]


def question(before: str, texts: Mapping[str, str], after: str) -> list[dict[str, str]]:
    """Return the conversation that asks about texts: instructions, each text between marks with its name, instructions.

    The mark depends on all texts, so no text can contain it.
    """
    mark = hashlib.sha256("\0".join(texts.values()).encode("utf-8", "replace")).hexdigest()[:12]
    shown = [f"<{name}-{mark}>\n{text}\n</{name}-{mark}>" for name, text in texts.items()]
    return [{"role": "user", "content": "\n\n".join([before, *shown, after])}]


def verdict_of(reply: Reply, key: str, labels: Collection[str]) -> Verdict:
    """Return the verdict in a reply, from its JSON objects {key: one of `labels`, "reason"}. They must agree."""
    if reply.text is None:
        return Verdict("unknown", reply.problem)
    objects = [value for value in json_objects(reply.text) if value.get(key) in tuple(labels)]
    if len({value[key] for value in objects}) != 1:
        return Verdict("unknown", f"no clear {key} in {reply.text.strip()[-120:]!r}")
    return Verdict(objects[-1][key], str(objects[-1].get("reason", "")))


def guarded(judge: Callable[..., list[Verdict]], labels: Collection[str] = HARM) -> Callable[..., list[Verdict]]:
    """Wrap a judge: if it raises or returns a wrong number of verdicts, or another label, the verdict is "unknown".

    The judge takes lists of one length. A UserError passes through, because the user can fix it.
    """

    def guarded_judge(*columns: Sequence) -> list[Verdict]:
        unknown = functools.partial(Verdict, "unknown")
        verdicts = answers_or_unknown("the judge", lambda: judge(*columns), len(columns[0]), unknown)
        return [v if v.label in labels else Verdict("unknown", v.reason) for v in verdicts]

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
