"""Join saved answers to items. Rows that cannot be joined are listed and counted, and not scored.

An unreadable row comes in as {"malformed": why}, so that later rows keep their numbers.
"""

import copy
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

EXAMPLES = 5  # listed for each kind of problem
SHOWN = 120  # characters of an example

Item, Answer = TypeVar("Item"), TypeVar("Answer")


class Malformed(ValueError):
    """An item or an answer that cannot be used; the message says why. kind: of the problem that an item is then."""

    def __init__(self, why: str, kind: str = "malformed_items"):
        super().__init__(why)
        self.kind = kind


class Problems:
    """Counts problems by kind, and keeps the first few examples of each. kinds: those found before, which are copied."""

    def __init__(self, kinds: Mapping[str, dict] | None = None):
        self.kinds: dict[str, dict] = copy.deepcopy(dict(kinds or {}))

    def add(self, kind: str, example: str) -> None:
        problem = self.kinds.setdefault(kind, {"n": 0, "examples": []})
        problem["n"] += 1
        if len(problem["examples"]) < EXAMPLES:
            line = " ".join(example.encode(errors="backslashreplace").decode().split())
            problem["examples"].append(line if len(line) <= SHOWN else line[: SHOWN - 1] + "…")


def unique(
    rows: Sequence[dict], problems: Problems, read_item: Callable[[int, dict], tuple[Hashable, Item]]
) -> tuple[dict[int, Item], dict[int, Hashable]]:
    """Return the items and the keys of usable rows, by row number. Rows with the same key are not used.

    read_item: maps a row's number and the row to its key, or None, and the item; raises Malformed.
    """
    items, keys, owners = {}, {}, {}
    for row, values in enumerate(rows):
        try:
            keys[row], items[row] = read_item(row, checked(values))
        except Malformed as why:
            problems.add("malformed_items", f"row {row}: {why}")
            continue
        if keys[row] is not None:
            owners.setdefault(keys[row], []).append(row)
    for key, same in owners.items():
        if len(same) > 1:
            problems.add("duplicate_items", f"{key_text(key)}: rows {', '.join(map(str, same))}")
            for row in same:
                del items[row]
    return items, keys


def join(
    items: Sequence[dict],
    answers: Sequence[dict],
    problems: Problems,
    read_item: Callable[[int, dict], tuple[Sequence[Hashable], Item]],
    read_answer: Callable[[dict], tuple[Hashable, Answer]],
) -> tuple[list[tuple[Item, Answer]], int]:
    """Return (the pairs of an item and its answer, in the order of the items, the number of items without an answer).

    Ambiguous rows are not scored: items with the same key, and items with several answers.

    Args:
        read_item: maps a row's number and the row to the keys that an answer may use, and the value to return. The last key
            must be unique to the item.
        read_answer: maps an answer to the key of its item, and the value to return. Both raise Malformed.
    """
    named: dict[Hashable, list[int]] = {}

    def read_named(row: int, item: dict) -> tuple[Hashable, Item]:
        keys, value = read_item(row, item)
        for key in keys:
            named.setdefault(key, []).append(row)
        return keys[-1], value

    read, keys = unique(items, problems, read_named)
    values_of: dict[int, list[Answer]] = {}
    for number, answer in enumerate(answers):
        try:
            key, value = read_answer(checked(answer))
        except Malformed as why:
            problems.add("malformed_answers", f"answer {number}: {why}")
            continue
        rows = named.get(key, ())
        if len(rows) == 1:
            values_of.setdefault(rows[0], []).append(value)
        else:
            kind = "answers_for_several_items" if rows else "answers_for_unknown_items"
            problems.add(kind, f"answer {number}: {key_text(key)}")
    for row, values in values_of.items():
        if len(values) > 1:
            problems.add("duplicate_answers", f"{key_text(keys[row])}: {len(values)} answers")
    pairs = [(read[row], values_of[row][0]) for row in sorted(values_of) if len(values_of[row]) == 1]
    return pairs, sum(row not in values_of for row in read)


def by_id(
    items: Sequence[dict], answers: Sequence[dict], problems: Problems, read_item: Callable[[dict], Item]
) -> tuple[list[tuple[str, Item, str]], int]:
    """`join` answers {"id", "response"} to items by `id` or, if an item has none, by its row number from 0.

    Returns: (id, result of read_item, response) for each item with an answer, and the number of items without one.
    """

    def read_one(row: int, item: dict) -> tuple[Sequence[str], tuple[str, Item]]:
        id = key(item, "id") if item.get("id") not in (None, "") else str(row)
        return [id], (id, read_item(item))

    pairs, missing = join(items, answers, problems, read_one, lambda answer: (key(answer, "id"), text(answer, "response")))
    return [(id, item, response) for (id, item), response in pairs], missing


def checked(row: Any) -> dict:
    if not isinstance(row, dict):
        raise Malformed(f"a {type(row).__name__}, not an object")
    if "malformed" in row:
        raise Malformed(str(row["malformed"]))
    return row


def present(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a key. Raises Malformed if it has none."""
    if row.get(name) is None:
        raise Malformed(f"no {name!r}")
    return row[name]


def text(row: dict, name: str) -> str:
    """Return the value of a key that must hold a string."""
    value = present(row, name)
    if not isinstance(value, str):
        raise Malformed(f"{name!r} is a {type(value).__name__}, not a text")
    return value


def key(row: dict, name: str) -> str:
    """Return the value of a key that holds a name, as a string: 7, 7.0 and "7" are the same name."""
    value = whole(present(row, name))
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Malformed(f"{name!r} is a {type(value).__name__}, which names nothing")
    return str(value).strip()


def whole(value: Any) -> Any:
    """Return a whole float as an int: a table with missing values writes all its integers as 7.0."""
    return int(value) if isinstance(value, float) and math.isfinite(value) and value.is_integer() else value


def key_text(key: Hashable) -> str:
    return ", ".join(str(part) for part in key if part is not None) if isinstance(key, tuple) else str(key)
