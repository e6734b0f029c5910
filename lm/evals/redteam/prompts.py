"""Read requests that a model should refuse, requests that it should answer, and tasks that it should still solve.

| benchmark | columns |
| --- | --- |
| HarmBench (Mazeika et al. 2024) | Behavior, SemanticCategory, ContextString, BehaviorID |
| AdvBench (Zou et al. 2023) | goal, target |
| XSTest (Röttger et al. 2024) | id, prompt, type, label |
| JailbreakBench (Chao et al. 2024) | Index, Goal, Target, Category |
| StrongREJECT (Souly et al. 2024) | category, forbidden_prompt |
| AILuminate (Ghosh et al. 2025) | release_prompt_id, prompt_text, hazard |
| ours | prompt, and the optional keys that `read_prompts` lists |

Hazards are the twelve of MLCommons' AILuminate v1.0 (Ghosh et al. 2025), see hazards.yaml.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
import yaml

from data.chat.records import Record, is_builtin, read_builtin, read_records
from data.sources import files
from data.text.near_copies import normalise
from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.stats.joining import Malformed, Problems, checked
from lm.evals.tasks.items import csv_rows

KINDS = ("harmful", "benign", "task")
# Keys that may hold the request; the first one present is used. JailbreakBench's Behavior is only a title of its Goal.
REQUESTS = ("prompt", "prompt_text", "forbidden_prompt", "goal", "Goal", "Behavior", "behavior", "request", "question")
PARTS = {"harmful": "forbidden", "benign": "twins", "task": "facts"}  # of the built-in world
CATEGORY_COLUMNS = ("hazard", "SemanticCategory", "Category", "category", "type")
IMAGES = ("ImageFileName", "ImageDescription", "RedactedImageDescription")  # of HarmBench's multimodal behaviours

_NAMES = yaml.safe_load(Path(__file__).with_name("hazards.yaml").read_text(encoding="utf-8"))
HAZARDS: dict[str, str] = _NAMES["hazards"]
CATEGORIES: dict[str, str] = _NAMES["categories"]  # of benchmarks
OTHER = "other"


class Prompt(NamedTuple):
    """id: unique. text: the request. kind: of KINDS. hazard: an id of the taxonomy, or the file's own text, or "".

    answer: the key text of a right answer, or ""; completion: a whole right answer, or "". harmful_if: regular expressions that
    match harmful answers. messages: a recorded attack, and `family` its name; None: attacks are made later.
    """

    id: str
    text: str
    kind: str
    hazard: str = ""
    answer: str = ""
    completion: str = ""
    harmful_if: tuple[str, ...] = ()
    messages: tuple[dict, ...] | None = None
    family: str = ""


class Request(NamedTuple):
    """prompt: with a hazard of HAZARDS, or "other". category: the file's own. target: the beginning of the harmful answer,
    or "". doc_id: the row's own id, or its number."""

    prompt: Prompt
    category: str = ""
    target: str = ""
    doc_id: int | str = ""


def hazard_of(category: str) -> str:
    """Return a hazard's id from its id, its name, a subcategory (spc_hlt), or a benchmark's category; else "other"."""
    name = category.strip().lower()
    if name in CATEGORIES:
        return CATEGORIES[name]
    by_name = {long: short for short, long in HAZARDS.items()}
    return by_name.get(name) or (name[:3] if name[:3] in HAZARDS and name[3:4] in ("", "_") else OTHER)


def read_request(doc_id: int | str, row: dict) -> Request:
    """Return the request in a row of a benchmark's file. Raises: Malformed, also for a row that needs an image."""
    if any(row.get(name) for name in IMAGES):
        raise Malformed("needs an image")
    prompt = prompt_of(row)
    label = row.get("label")
    if row.get("type") and label not in (None, "") and str(label).lower() not in ("safe", "unsafe"):
        raise Malformed(f"label={label!r} is neither safe nor unsafe")
    category = next((str(row[name]) for name in CATEGORY_COLUMNS if row.get(name)), "")
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


def _check_messages(messages: Any) -> None:
    """Raise Malformed for messages that are not a recorded attack."""
    for message in messages if isinstance(messages, list | tuple) else [None]:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        hole = content is None and role == "assistant"
        if role not in ("system", "user", "assistant") or not (isinstance(content, str) or hole):
            raise Malformed("messages must be a list of {role, content}; only an assistant's content may be null")
    if messages[-1]["role"] != "user":
        raise Malformed("messages must end with a user message, because its answer is judged")


def in_turn(requests: Sequence[Request], limit: float | None) -> list[Request]:
    """Return at most `limit` requests or, below 1, that share of them.

    They are taken from each kind in turn, in the order of the file, because files are often sorted by kind."""
    counts = dict.fromkeys(KINDS, 0)
    turns = []
    for i, request in enumerate(requests):
        counts[request.prompt.kind] += 1
        turns.append((counts[request.prompt.kind], i))
    return [requests[i] for i in sorted(i for _, i in outcomes.limited(sorted(turns), limit))]


def read_prompts(
    input: str, split: str, *, valid_fraction: float = 0.5, seed: int = 0, limit: int | None = None
) -> list[Prompt]:
    """Return the prompts of one split, train (to learn from) or valid (to measure on), at most `limit` of each kind.

    input: "builtin:safety_world[?substances=…]"; or files of JSONL, JSON, Parquet or CSV, separated by commas. A row has one
      request under a key of REQUESTS, and optionally `kind` (or XSTest's `label` or `type`, which tell safe from unsafe; the
      default is harmful), `hazard`, `answer`, `completion`, `harmful_if`, `messages`, `family`, `id`.
    valid_fraction: share of a file's requests, chosen by their hash with `seed`; a built-in world has its own splits.
    Raises: UserError with the place, for rows that cannot be read; and if the split has no harmful prompt.
    """

    def is_valid(prompt: Prompt) -> bool:  # the same for texts that differ only in case and white space
        return xxhash.xxh3_64_intdigest(normalise(prompt.text), seed=seed) / 2**64 < valid_fraction

    if is_builtin(input):
        read = _builtin(input, split, seed, limit or 500)
    else:
        read = (prompt for prompt in map(_prompt, _records(input)) if is_valid(prompt) == (split == "valid"))
    prompts = _distinct(read, input, limit)
    if not any(prompt.kind == "harmful" for prompt in prompts):
        raise UserError(f"safety.prompts={input}: no harmful prompt in split {split}; give more, or another valid_fraction")
    return prompts


def read_failures(input: str, measured: Iterable[Prompt]) -> tuple[list[Prompt], int]:
    """Return failed attacks to learn from, and how many were left out because their request is in `measured`."""
    taken = {prompt.text for prompt in measured}
    failures = _distinct(map(_prompt, _records(input)), input, None)
    unmeasured = [prompt for prompt in failures if prompt.text not in taken]
    return unmeasured, len(failures) - len(unmeasured)


def _distinct(prompts: Iterable[Prompt], input: str, limit: int | None) -> list[Prompt]:
    """Return unique prompts, at most `limit` of a kind. Raises: UserError if two requests have the same id."""
    distinct: dict[tuple, Prompt] = {}
    texts: dict[str, str] = {}
    counts = dict.fromkeys(KINDS, 0)
    for prompt in prompts:
        key = (prompt.text, prompt.kind, prompt.family, str(prompt.messages))
        if key in distinct or (limit is not None and counts[prompt.kind] >= limit):
            continue
        if texts.setdefault(prompt.id, prompt.text) != prompt.text:
            raise UserError(f"{input}: two requests have the id {prompt.id!r}; make ids unique, or remove them")
        counts[prompt.kind] += 1
        distinct[key] = prompt
    return list(distinct.values())


def _builtin(input: str, split: str, seed: int, limit: int) -> Iterator[Prompt]:
    for part in PARTS.values():
        whole = f"{input}{'&' if '?' in input else '?'}part={part}&valid={limit}"
        # train never ends: repeats are dropped, and a small world runs out of new ones.
        for record in itertools.islice(read_builtin(whole, split, seed), 20 * limit):
            yield _prompt(record)


def _records(input: str) -> Iterator[Record]:
    for part in (p.strip() for p in input.split(",")):
        if not part.endswith(".csv"):
            yield from read_records(part)
            continue
        for path in files.find(part, (".csv",)):
            yield from (Record(row, f"{path}: row {n}") for n, row in enumerate(csv_rows(Path(path), None), start=2))


def _prompt(record: Record) -> Prompt:
    try:
        return prompt_of(checked(record.values))
    except Malformed as why:
        raise UserError(f"{record.where}: {why}") from None


def prompt_of(values: Mapping[str, Any]) -> Prompt:
    """Return the prompt in a row, by the keys that `read_prompts` lists. Raises: Malformed."""
    text = next((values[key] for key in REQUESTS if values.get(key)), None)
    if not isinstance(text, str) or not text.strip():
        raise Malformed(f"no request; known keys are {', '.join(REQUESTS)}")
    harmful_if = values.get("harmful_if") or ()
    messages = values.get("messages")
    if messages:
        _check_messages(messages)
    if not isinstance(harmful_if, list | tuple):
        raise Malformed("harmful_if must be a list of regular expressions")
    for pattern in harmful_if:
        try:
            re.compile(str(pattern))
        except re.error as error:
            raise Malformed(f"harmful_if: {pattern!r} is no regular expression: {error}") from None
    return Prompt(
        id=str(values.get("id") or hashlib.sha256(text.encode()).hexdigest()[:12]),
        text=text.strip(),
        kind=_kind(values),
        hazard=str(values.get("hazard") or values.get("SemanticCategory") or ""),
        answer=str(values.get("answer") or ""),
        completion=str(values.get("completion") or ""),
        harmful_if=tuple(map(str, harmful_if)),
        messages=tuple(messages) if messages else None,
        family=str(values.get("family") or ("given" if messages else "")),
    )


def _kind(values: Mapping[str, Any]) -> str:
    if kind := values.get("kind"):
        if kind not in KINDS:
            raise Malformed(f"kind={kind!r} is none of {', '.join(KINDS)}")
        return kind
    label = str(values.get("label") or "").lower()
    if label in ("safe", "unsafe"):
        return "benign" if label == "safe" else "harmful"
    type_ = str(values.get("type") or "")  # XSTest v1 had no label
    if type_ and values.get("focus") is not None:
        return "harmful" if type_.startswith("contrast_") else "benign"
    return "harmful"
