"""Constitutional AI: an answer that went wrong is criticised by a principle, written anew, and compared with what it was.

After Bai et al. 2022, "Constitutional AI: Harmlessness from AI feedback": critique and revision (§3.1) give answers to learn
from, preference of an AI (§4.1) says which of two is better. Whoever writes is a chat: the model itself, or an endpoint
(lm/evals/judges/endpoint.py). A model too small to criticise itself is helped by `from_templates`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from lm.align.safety.constitution import Constitution, Principle, choose
from lm.evals.judges.endpoint import Chat


class Revision(NamedTuple):
    """What became of an answer. principle: the id of the one applied; revision: the new answer, or None, and then `problem`."""

    principle: str
    critique: str
    revision: str | None
    problem: str = ""


# revise(failures) -> a Revision of each. A failure has "id", "hazard", "conversation" and "response" (redteam/safety_eval.py).
Reviser = Callable[[Sequence[Mapping]], list[Revision]]


def from_templates(constitution: Constitution, key: str = "") -> Reviser:
    """Critiques and refusals of the constitution's own wording, chosen by a hash of the failure and of `key`."""

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
    """Asks for a critique of the answer by a principle, and then, in that conversation, for the answer without its fault."""

    def revise(failures: Sequence[Mapping]) -> list[Revision]:
        principles = [_principle(constitution, failure, key) for failure in failures]
        asked = [critique_request(f, p) for f, p in zip(failures, principles, strict=True)]
        critiques = chat(asked)
        known = [i for i, reply in enumerate(critiques) if reply.text is not None and reply.text.strip()]
        answers = chat([revision_request(asked[i], critiques[i].text, principles[i]) for i in known])
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
    """The conversation that ends by asking what is wrong with its last answer."""
    request = f"[Critique request] {principle.critique} The principle: {principle.text}"
    return [*failure["conversation"], _said("assistant", failure["response"]), _said("user", request)]


def revision_request(asked: Sequence[Mapping], critique: str, principle: Principle) -> list[dict]:
    """The same conversation, with the critique given, that ends by asking for a better answer."""
    request = f"[Revision request] {principle.revision} Write the new answer alone."
    return [*asked, _said("assistant", critique), _said("user", request)]


def _bare(text: str | None) -> str:
    """Without a heading that the writer put above the answer."""
    return re.sub(r"^\W*(?:revision|revised answer|new answer|answer)\W*:\W*", "", text or "", flags=re.IGNORECASE).strip()


def _principle(constitution: Constitution, failure: Mapping, key: str) -> Principle:
    return constitution.principle_for(failure["hazard"], f"{key} {failure['id']} {failure['family']}")


# AI preference.

COMPARISON = """Consider this conversation between a person and an assistant:

{conversation}

Which of these answers would be the better one by this principle: {principle}

(A) {a}

(B) {b}

Answer with one letter, A or B."""


def prefer(
    chat: Chat,
    conversations: Sequence[Sequence[Mapping]],
    first: Sequence[str],
    second: Sequence[str],
    principles: Sequence[Principle],
) -> list[Literal["first", "second"] | None]:
    """Which of two answers a model prefers by a principle.

    It is asked twice, with the answers swapped, for models favour a position; who does not choose the same answer both times,
    or names no letter, has no preference: None.
    """
    cases = list(zip(conversations, first, second, principles, strict=True))
    straight = chat([_comparison(c, a, b, p) for c, a, b, p in cases])
    swapped = chat([_comparison(c, b, a, p) for c, a, b, p in cases])
    preferences: list[Literal["first", "second"] | None] = []
    for one, other in zip(straight, swapped, strict=True):
        letters = letter(one.text), letter(other.text)
        preferences.append({("A", "B"): "first", ("B", "A"): "second"}.get(letters))
    return preferences


def _comparison(conversation: Sequence[Mapping], a: str, b: str, principle: Principle) -> list[dict]:
    told = "\n\n".join(f"{message['role']}: {message['content']}" for message in conversation)
    return [_said("user", COMPARISON.format(conversation=told, principle=principle.text, a=a, b=b))]


def letter(text: str | None) -> str | None:
    """The one letter, A or B, that a reply names: "B", "(A)", "Answer: B.", "A is better"; None if it is not one.

    A letter counts alone, in brackets, after "answer", or first and before a stop or a verb: "A" may be the article.
    """
    places = r"^\W*([AB])\W*$|\(([AB])\)|\b[Aa]nswer(?: is)?:? ?\(?([AB])\b|^([AB])(?:[.:,)]| (?:is|because|would)\b)"
    named = {letter for found in re.findall(places, (text or "").strip()) for letter in found if letter}
    return named.pop() if len(named) == 1 else None


def _said(role: str, content: str) -> dict:
    return {"role": role, "content": content}
