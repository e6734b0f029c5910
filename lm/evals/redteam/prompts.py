"""Read requests in the formats of HarmBench, AdvBench, XSTest, JailbreakBench, StrongREJECT and AILuminate, or our own.

| benchmark | columns |
| --- | --- |
| HarmBench (Mazeika et al. 2024) | Behavior, SemanticCategory, ContextString, BehaviorID |
| AdvBench (Zou et al. 2023) | goal, target |
| XSTest (Röttger et al. 2024) | id, prompt, type, label |
| JailbreakBench (Chao et al. 2024) | Index, Goal, Target, Category |
| StrongREJECT (Souly et al. 2024) | category, forbidden_prompt |
| AILuminate (Ghosh et al. 2025) | release_prompt_id, prompt_text, hazard |
| ours | prompt, and the optional keys of lm/evals/redteam/safety_prompts.py |
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lm.evals.redteam.hazards import hazard_of
from lm.evals.redteam.safety_prompts import KINDS, Prompt, prompt_of
from lm.evals.stats.joining import Malformed, Problems, checked

CATEGORIES = ("hazard", "SemanticCategory", "Category", "category", "type")
IMAGES = ("ImageFileName", "ImageDescription", "RedactedImageDescription")  # of HarmBench's multimodal behaviours


class Request(NamedTuple):
    """prompt: with a hazard of hazards.py, or "other". category: the file's own. target: the beginning of the harmful answer,
    or "". doc_id: the row's own id, or its number."""

    prompt: Prompt
    category: str = ""
    target: str = ""
    doc_id: int | str = ""


def read_request(doc_id: int | str, row: dict) -> Request:
    """Return the request in a row of a benchmark's file. Raises: Malformed, also for a row that needs an image."""
    if any(row.get(name) for name in IMAGES):
        raise Malformed("needs an image")
    prompt = prompt_of(row)
    if prompt.messages is not None:
        _check_messages(prompt.messages)
    label = row.get("label")
    if row.get("type") and label not in (None, "") and str(label).lower() not in ("safe", "unsafe"):
        raise Malformed(f"label={label!r} is neither safe nor unsafe")
    category = next((str(row[name]) for name in CATEGORIES if row.get(name)), "")
    context = str(row.get("ContextString") or "").strip()
    text = f"{context}\n\n---\n\n{prompt.text}" if context else prompt.text
    target = str(row.get("target") or row.get("Target") or "")
    return Request(prompt._replace(text=text, hazard=hazard_of(category)), category, target, doc_id)


def read_requests(rows: Iterable[tuple[int | str, dict]], problems: Problems) -> list[Request]:
    """Return the requests in rows, each with its id; a row without one is a problem."""
    requests = []
    for doc_id, row in rows:
        try:
            requests.append(read_request(doc_id, checked(row)))
        except Malformed as why:
            problems.add("malformed_items", f"row {doc_id}: {why}")
    return requests


def _check_messages(messages: Sequence[Any]) -> None:
    """Raise Malformed for messages that are not a recorded attack."""
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        hole = content is None and role == "assistant"
        if role not in ("system", "user", "assistant") or not (isinstance(content, str) or hole):
            raise Malformed("messages must be a list of {role, content}; only an assistant's content may be null")
    if messages[-1]["role"] != "user":
        raise Malformed("messages must end with a user message, because its answer is judged")


def in_turn(requests: Sequence[Request], limit: float | None) -> list[Request]:
    """Return at most `limit` requests or, below 1, that share of them.

    They are taken from each kind in turn, in the order of the file, because files are often sorted by kind."""
    if limit is None:
        return list(requests)
    seen = dict.fromkeys(KINDS, 0)
    turns = []
    for i, request in enumerate(requests):
        seen[request.prompt.kind] += 1
        turns.append((seen[request.prompt.kind], i))
    most = math.ceil(limit * len(requests)) if limit < 1 else int(limit)
    return [requests[i] for i in sorted(i for _, i in sorted(turns)[:most])]
