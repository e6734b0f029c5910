"""What bias tasks share: rows of data, items in them, prompts without few-shot examples, and likelihoods of choices."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.stats.joining import Problems, key, unique
from lm.evals.task import Continuation, Likelihood, Outcome, Subject, TaskSettings
from lm.evals.tasks.items import open_data

SPLITS = ("test", "validation", "dev", "train")  # the first one present
Item = TypeVar("Item")


class Measure(NamedTuple):
    """A task of lm/evals/task.py, without few-shot examples, which evaluate(task, subject, problems) runs.

    versions: SHA-256 of its data, split, prompt, settings. rows: of its data. kinds: of problems found while reading them.
    """

    name: str
    versions: dict[str, Any]
    rows: Sequence[dict]
    kinds: dict[str, dict]
    values: Mapping[str, Any]
    settings: TaskSettings
    evaluate: Callable[["Measure", Subject, Problems], tuple[dict, list[dict]]]

    def run(self, subject: Subject) -> Outcome:
        problems = Problems(self.kinds)
        results, samples = self.evaluate(self, subject, problems)
        samples = [{"task": self.name} | sample | {"split": self.versions["split"]} for sample in samples]
        return Outcome(results | {"problems": problems.kinds, "num_fewshot": 0}, samples)

    def items(self, problems: Problems, read_item: Callable[[dict], tuple[Hashable, Item]]) -> list[tuple[int, Item]]:
        """Return (row number, item) for each usable row, see `unique`. read_item: maps a row to its key, or None, and the
        item."""
        return list(unique(self.rows, problems, lambda _, row: read_item(row))[0].items())


def open_measure(
    name: str,
    values: Mapping[str, Any],
    settings: TaskSettings,
    evaluate: Callable[[Measure, Subject, Problems], tuple[dict, list[dict]]],
    *,
    recorded: Mapping[str, Any] | None = None,
    expand: Callable[[list[dict]], list[dict]] = list,
    **readers: Callable,
) -> Measure:
    """Return the task on the rows of the first of SPLITS that exists.

    Args: recorded: what its versions hold beside those of the data. expand: maps the rows of its files to rows of one item
      each, of which settings.limit are taken. readers: `find` and `read` of `open_data`.
    Raises: UserError for missing data.
    """
    problems = Problems()
    data = open_data(name, values, settings, problems, **readers)
    split = next(split for split in (*SPLITS, *data.rows) if split in data.rows)
    rows = outcomes.limited(expand(data.rows[split]()), settings.limit)
    versions = {"data": data.checksum, "split": split} | dict(recorded or {})
    return Measure(name, versions, rows, problems.kinds, values, settings, evaluate)


def check_template(name: str, template: str, fields: Sequence[str]) -> None:
    """Raise UserError if a prompt has other braces than those of `fields`."""
    try:
        template.format(**dict.fromkeys(fields, ""))
    except (LookupError, ValueError):
        allowed = ", ".join(f"{{{field}}}" for field in fields)
        raise UserError(f"task {name}: prompt: {template!r} may hold {allowed} and no other braces") from None


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


def scored(
    subject: Subject,
    items: Sequence[tuple[int, Item]],
    prompts: Sequence[tuple],
    choices: Sequence[Sequence[str]],
    problems: Problems,
    label: Callable[[Item], str] | None = None,
) -> Iterator[tuple[Item, dict, list[Likelihood]]]:
    """Yield each item whose choices all have finite likelihoods, with the fields of its sample, and the likelihoods.

    Args:
      items: (row number, item). prompts: of each item, as `prompt_of` returns them. choices: continuations of each.
      label: returns what a problem names an item with, beside its row.
    """
    requests = [[Continuation(prompt, choice) for choice in own] for (prompt, *_), own in zip(prompts, choices, strict=True)]
    answers = outcomes.grouped_likelihoods(subject, requests)
    for (number, item), (prompt, messages, *_), own, likelihoods in zip(items, prompts, choices, answers, strict=True):
        where = f"row {number}" + (f": {label(item)}" if label else "")
        if outcomes.all_finite(likelihoods, problems, where):
            sample = {"doc_id": number, "prompt": prompt, "choices": list(own), "target": None}
            sample |= outcomes.message_fields(messages) | outcomes.choice_fields(likelihoods)
            yield item, sample, likelihoods
