"""Constitutional AI: criticise a harmful answer by a principle, and revise it to get an answer to train on.

Source: Bai et al. 2022, "Constitutional AI: Harmlessness from AI feedback", §3.1. The writer is a chat: the model itself, or an
endpoint (lm/evals/judges/endpoint.py). `from_templates` replaces the writer for models too small to criticise themselves.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from data.chat.messages import make_message
from lm.align.safety.constitution import Constitution, Principle, choose
from lm.evals.judges.endpoint import Chat


class Revision(NamedTuple):
    """The result for one answer. principle: its id. revision: the new answer, or None with the reason in `problem`."""

    principle: str
    critique: str
    revision: str | None
    problem: str = ""


# revise(failures) -> one Revision per failure, a dict with "id", "hazard", "conversation", "response" (redteam/safety_eval.py).
Reviser = Callable[[Sequence[Mapping]], list[Revision]]


def from_templates(constitution: Constitution, key: str = "") -> Reviser:
    """Return a reviser that uses the constitution's critiques and refusals, chosen by a hash of the failure and `key`."""

    def revise(failures: Sequence[Mapping]) -> list[Revision]:
        revisions = []
        for failure in failures:
            principle, named = _principle(constitution, failure, key), constitution.name_of(failure["hazard"])
            of_this = f"{key} {failure['id']} {failure['family']} {principle.id}"
            critique, refusal = (
                choose(texts, of_this).format(hazard=named) for texts in (principle.critiques, principle.refusals)
            )
            revisions.append(Revision(principle.id, critique, refusal))
        return revisions

    return revise


def by_chat(chat: Chat, constitution: Constitution, key: str = "") -> Reviser:
    """Return a reviser that asks the chat for a critique by a principle, then in the same conversation for a new answer."""

    def revise(failures: Sequence[Mapping]) -> list[Revision]:
        principles = [_principle(constitution, failure, key) for failure in failures]
        requests = [critique_request(f, p) for f, p in zip(failures, principles, strict=True)]
        critiques = chat(requests)
        known = [i for i, reply in enumerate(critiques) if reply.text is not None and reply.text.strip()]
        answers = chat([revision_request(requests[i], critiques[i].text, principles[i]) for i in known])
        rewritten = dict(zip(known, answers, strict=True))
        revisions = []
        for i, principle in enumerate(principles):
            if i not in rewritten:
                revisions.append(Revision(principle.id, "", None, critiques[i].problem or "an empty critique"))
                continue
            text = _bare(rewritten[i].text)
            problem = "" if text else rewritten[i].problem or "an empty revision"
            revisions.append(Revision(principle.id, critiques[i].text.strip(), text or None, problem))
        return revisions

    return revise


def critique_request(failure: Mapping, principle: Principle) -> list[dict]:
    """Return the conversation plus a request to criticise its last answer."""
    request = f"[Critique request] {principle.critique} The principle: {principle.text}"
    return [*failure["conversation"], make_message("assistant", failure["response"]), make_message("user", request)]


def revision_request(conversation: Sequence[Mapping], critique: str, principle: Principle) -> list[dict]:
    """Return the conversation of `critique_request` plus the critique and a request for a better answer."""
    request = f"[Revision request] {principle.revision} Write the new answer alone."
    return [*conversation, make_message("assistant", critique), make_message("user", request)]


def _bare(text: str | None) -> str:
    """Remove a heading such as "Revision:" before the answer."""
    return re.sub(r"^\W*(?:revision|revised answer|new answer|answer)\W*:\W*", "", text or "", flags=re.IGNORECASE).strip()


def _principle(constitution: Constitution, failure: Mapping, key: str) -> Principle:
    return constitution.principle_for(failure["hazard"], f"{key} {failure['id']} {failure['family']}")
