"""What bias tasks share: the rows of their data, the items in them, and prompts without few-shot examples."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lm.errors import UserError
from lm.evals.stats.joining import Problems, key, unique
from lm.evals.task import Outcome, Subject, TaskSettings
from lm.evals.tasks import items as files
from lm.evals.tasks.data import open_data

SPLITS = ("test", "validation", "dev", "train")  # the first one present
Item = TypeVar("Item")


class Rows(NamedTuple):
    """Rows of a task's data. versions: a checksum of the data, and their split. problems: kinds found while reading."""

    rows: list[dict]
    versions: dict[str, Any]
    problems: dict[str, dict]

    def new_problems(self) -> Problems:
        """Return a record of problems for one run, with those found while reading."""
        return Problems(self.problems)


class Measure(NamedTuple):
    """A task of lm/evals/task.py, without few-shot examples. versions: SHA-256 of its data, split, prompt, settings."""

    name: str
    versions: dict[str, Any]
    evaluate: Callable[[Subject], Outcome]

    def run(self, subject: Subject) -> Outcome:
        results, samples = self.evaluate(subject)
        samples = [sample | {"split": self.versions["split"]} for sample in samples]
        return Outcome(results | {"num_fewshot": 0}, samples)


def read_rows(
    name: str,
    values: Mapping[str, Any],
    settings: TaskSettings,
    find: Callable[[Path], dict[str, list[Path]]] | None = None,
    read: Callable[[Path], list[dict]] = files.read,
) -> Rows:
    """Return the rows of a task's data, in order, from the first of SPLITS that exists. See `open_data`."""
    problems = Problems()
    data = open_data(name, values, settings, problems, find=find, read=read)
    split = next(split for split in (*SPLITS, *data.rows) if split in data.rows)
    return Rows(data.rows[split](), {"data": data.checksum, "split": split}, problems.kinds)


def check_template(name: str, template: str, fields: Sequence[str]) -> None:
    """Raise UserError if a prompt has other braces than those of `fields`."""
    try:
        template.format(**dict.fromkeys(fields, ""))
    except (LookupError, ValueError):
        allowed = ", ".join(f"{{{field}}}" for field in fields)
        raise UserError(f"task {name}: prompt: {template!r} may hold {allowed} and no other braces") from None


def read_items(
    rows: Sequence[dict], problems: Problems, read_item: Callable[[dict], tuple[Hashable, Item]]
) -> list[tuple[int, Item]]:
    """Return (row number, item) for each usable row, see `unique`. read_item: maps a row to its key, or None, and the item."""
    return list(unique(rows, problems, lambda _, row: read_item(row))[0].items())


def id_of(row: dict) -> str | None:
    """Return the id of a row, or None if it has none. Raises: Malformed."""
    return key(row, "id") if row.get("id") not in (None, "") else None


def prompt_of(subject: Subject, text: str, settings: TaskSettings) -> tuple[str, list[dict] | None, str]:
    """Return (prompt, its conversation or None, delimiter before the answer: a space, or "" after a chat template)."""
    if not settings.chat:
        return f"{settings.system}\n\n{text}" if settings.system else text, None, " "
    messages = [{"role": "system", "content": settings.system}] if settings.system else []
    messages.append({"role": "user", "content": text})
    return subject.chat_prompt(messages), messages, ""
