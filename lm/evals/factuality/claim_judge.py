"""A judge model for facts: it takes a text apart into claims, and says whether documents support or contradict a claim.

It must answer in a strict format. A judge that fails returns "unknown", which never counts as "supported" or as anything else.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import UserError
from lm.evals.judges.endpoint import Chat, Reply, endpoint, replies_or_none
from lm.evals.judges.verdict import Verdict, ask, json_objects, questions
from lm.evals.stats.joining import Problems
from lm.evals.tasks.documents import texts

CHARACTERS = 24_000  # maximum length of documents shown with a claim


def asking(doc: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document whose topic, prompt and reference are texts. Empty ones are left out; an empty reference is None."""
    stated = {key: " ".join(texts(doc.get(key), key, empty=True)) for key in ("topic", "prompt", "reference")}
    others = {key: value for key, value in doc.items() if key not in stated}
    return others | {key: text for key, text in stated.items() if text} | {"reference": stated["reference"] or None}


def claims_of(chat: Chat, written: Sequence[str], topics: Sequence[str]) -> list[tuple[list[str] | None, str]]:
    """Return the claims of each written text, unique and in order, and "". If the judge fails: None, and why."""
    cases = [{"topic": topic, "text": text} for text, topic in zip(written, topics, strict=True)]
    return [_claims(reply) for reply in replies_or_none(chat, [questions()["claims"].about(case) for case in cases])]


def judged(
    chat: Chat, groups: Sequence[Sequence[tuple[str, Sequence[str]]]], problems: Problems
) -> list[list[tuple[str, Verdict]]]:
    """Return each claim with a verdict by its documents: supported, contradicted, unsupported or unknown, which is a problem.

    groups: lists of (claim, documents), all judged together.
    """
    verdicts = ask(chat, "support", [shown(*pair) for group in groups for pair in group])
    for verdict in verdicts:
        if verdict.label == "unknown":
            problems.add("unknown_judgements", verdict.reason)
    following = iter(verdicts)
    return [[(claim, next(following)) for claim, _ in group] for group in groups]


def shown(claim: str, documents: Sequence[str]) -> dict[str, str]:
    """Return the texts that the judge sees of a claim, by name."""
    return {f"document-{n}": text for n, text in enumerate(nearest(claim, documents), start=1)} | {"claim": claim}


def nearest(claim: str, documents: Sequence[str], characters: int = CHARACTERS) -> list[str]:
    """Return the documents or, if they are too long, the paragraphs that share most words with the claim, in order."""
    if sum(map(len, documents)) <= characters:
        return list(documents)
    wanted = set(re.findall(r"\w+", claim.casefold()))
    paragraphs = [part for text in documents for part in re.split(r"\n\s*\n", text) if part.strip()]
    shared = [len(wanted.intersection(re.findall(r"\w+", part.casefold()))) for part in paragraphs]
    chosen, room = {}, characters
    for n in sorted(range(len(paragraphs)), key=lambda n: (-shared[n], n)):
        if room > 0:
            chosen[n] = paragraphs[n][:room]
            room -= len(chosen[n])
    return [chosen[n] for n in sorted(chosen)]


def open_chat(where: str, spec: str, model: str = "") -> Chat:
    """Open the judge openai:URL, which asks `model`.

    Args: where: the config key, for errors. Raises: UserError for another judge, which cannot judge claims.
    """
    url = spec.removeprefix("openai:")
    if url == spec or not url:
        raise UserError(f"{where}: {spec!r} cannot judge claims; set --config.judge=openai:URL")
    return endpoint(url, model)


def _claims(reply: Reply) -> tuple[list[str] | None, str]:
    lists = [value["claims"] for value in json_objects(reply.text or "") if isinstance(value.get("claims"), list)]
    if not lists or not all(isinstance(claim, str) for claim in lists[-1]):
        return None, reply.problem or f"no list of claims in {(reply.text or '').strip()[-120:]!r}"
    return [claim.strip() for claim in dict.fromkeys(lists[-1]) if claim.strip()], ""
