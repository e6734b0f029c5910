"""Read prompts: requests that a model should refuse, requests that it should answer, and tasks that it should still solve."""

import csv
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import xxhash

from data.chat.records import Record, is_builtin, read_builtin, read_records
from data.sources import files
from data.text.near_copies import normalise
from lm.errors import UserError
from lm.evals.stats.joining import Malformed

KINDS = ("harmful", "benign", "task")
# Keys that may hold the request; the first one present is used. JailbreakBench's Behavior is only a title of its Goal.
REQUESTS = ("prompt", "prompt_text", "forbidden_prompt", "goal", "Goal", "Behavior", "behavior", "request", "question")
PARTS = {"harmful": "forbidden", "benign": "twins", "task": "facts"}  # of the built-in world


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
    if is_builtin(input):
        found = _builtin(input, split, seed, limit or 500)
    else:
        found = (p for p in map(_prompt, _records(input)) if (_hash(p.text, seed) < valid_fraction) == (split == "valid"))
    prompts = _distinct(found, input, limit)
    if not any(prompt.kind == "harmful" for prompt in prompts):
        raise UserError(f"safety.prompts={input}: no harmful prompt in split {split}; give more, or another valid_fraction")
    return prompts


def read_failures(input: str, measured: Iterable[Prompt]) -> tuple[list[Prompt], int]:
    """Return failed attacks to learn from, and how many were left out because their request is in `measured`."""
    taken = {prompt.text for prompt in measured}
    found = _distinct(map(_prompt, _records(input)), input, None)
    kept = [prompt for prompt in found if prompt.text not in taken]
    return kept, len(found) - len(kept)


def _distinct(prompts: Iterable[Prompt], input: str, limit: int | None) -> list[Prompt]:
    """Return unique prompts, at most `limit` of a kind. Raises: UserError if two requests have the same id."""
    kept: dict[tuple, Prompt] = {}
    texts: dict[str, str] = {}
    counts = dict.fromkeys(KINDS, 0)
    for prompt in prompts:
        key = (prompt.text, prompt.kind, prompt.family, str(prompt.messages))
        if key in kept or (limit is not None and counts[prompt.kind] >= limit):
            continue
        if texts.setdefault(prompt.id, prompt.text) != prompt.text:
            raise UserError(f"{input}: two requests have the id {prompt.id!r}; make ids unique, or remove them")
        counts[prompt.kind] += 1
        kept[key] = prompt
    return list(kept.values())


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
            try:
                with open(path, encoding="utf-8-sig", newline="") as file:
                    for number, row in enumerate(csv.DictReader(file), start=2):
                        yield Record(row, f"{path}: row {number}")
            except (UnicodeDecodeError, csv.Error) as error:
                raise UserError(f"{path}: not CSV in UTF-8: {error}") from error


def _prompt(record: Record) -> Prompt:
    try:
        return prompt_of(record.values)
    except Malformed as why:
        raise UserError(f"{record.where}: {why}") from None


def prompt_of(values: Mapping[str, Any]) -> Prompt:
    """Return the prompt in a row, by the keys that `read_prompts` lists. Raises: Malformed."""
    text = next((values[key] for key in REQUESTS if values.get(key)), None)
    if not isinstance(text, str) or not text.strip():
        raise Malformed(f"no request; known keys are {', '.join(REQUESTS)}")
    harmful_if = values.get("harmful_if") or ()
    messages = values.get("messages")
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


def _hash(text: str, seed: int) -> float:
    """Return a number in [0, 1), the same for texts that differ only in case and white space."""
    return xxhash.xxh3_64_intdigest(normalise(text), seed=seed) / 2**64
