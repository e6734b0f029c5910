"""Shared code of bias tasks: keys of a task file, rows of its data, and prompts."""

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Collection, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lm.errors import UserError
from lm.evals.outcome import Outcome, TaskSettings
from lm.evals.stats.joining import Malformed, Problems, checked, key_text
from lm.evals.subject import Continuation, Likelihood, Subject
from lm.evals.tasks.items import checksum, found, read, tfds_splits

COMMON = {"about": "", "source": "", "data": "", "items": []}
SPLITS = ("test", "validation", "dev", "train")  # the first one present
Item = TypeVar("Item")


class Data(NamedTuple):
    """versions: SHA-256 of the files, and their split. empty: the files without a row."""

    rows: list[dict]
    versions: dict[str, Any]
    empty: tuple[str, ...] = ()

    def problems(self) -> Problems:
        """Return a record of problems for one run, with those found while reading."""
        problems = Problems()
        for name in self.empty:
            problems.add("empty_files", name)
        return problems


class Measure(NamedTuple):
    """A task of lm/evals/outcome.py, without few-shot examples. versions: SHA-256 of its data, split, prompt, settings."""

    name: str
    versions: dict[str, Any]
    evaluate: Callable[[Subject], Outcome]

    def run(self, subject: Subject) -> Outcome:
        results, samples = self.evaluate(subject)
        samples = [sample | {"split": self.versions["split"]} for sample in samples]
        return Outcome(results | {"num_fewshot": 0}, samples)


def keys(name: str, spec: dict[str, Any], settings: TaskSettings, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the task file's values over `defaults`; the config's options for its kind override both.

    defaults: {key: default value of the required type, or a tuple of allowed values, the default first}. Every task also has
    the keys of COMMON. `data` is a file or folder in data_dir instead of the task's own, or tfds:NAME, or builtin: the file's
    own `items`, used if data_dir has no folder of the task.
    Raises: UserError for an unknown key, and for a value of another type.
    """
    kind, wanted = spec["kind"], COMMON | defaults
    result = {key: value[0] if isinstance(value, tuple) else value for key, value in wanted.items()}
    for where, values in ((f"{name}.yaml", spec), (f"options.{kind}", settings.options.get(kind) or {})):
        for key, value in dict(values).items():
            if key == "kind" or (value is None and key in wanted):
                continue
            if key not in wanted:
                near = difflib.get_close_matches(str(key), wanted, n=1)
                cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(wanted)}"
                raise UserError(f"{where}: {key}: no such key of a task of kind {kind}; {cure}")
            result[key] = _fitting(f"{where}: {key}", value, wanted[key])
    return result


def _fitting(where: str, value: Any, wanted: Any) -> Any:
    if isinstance(wanted, tuple):
        if value not in wanted:
            raise UserError(f"{where}: {value!r} is none of {', '.join(wanted)}")
        return value
    if isinstance(wanted, list) and isinstance(value, tuple):  # configs hold tuples
        value = list(value)
    types = (int, float) if isinstance(wanted, float) else type(wanted)
    if not isinstance(value, types) or isinstance(value, bool) != isinstance(wanted, bool):
        raise UserError(f"{where}: {value!r} is a {type(value).__name__}, not a {type(wanted).__name__}")
    return value


def rows(
    name: str,
    given: dict[str, Any],
    settings: TaskSettings,
    files: Callable[[Path], dict[str, list[Path]]] = found,
    read: Callable[[Path], list[dict]] = read,
) -> Data:
    """Return the rows of a task's files, in order, from the first of SPLITS that exists.

    files: returns a folder's files by split. Raises: UserError if there are none.
    """
    data = given["data"]
    if data.startswith("tfds:"):
        readers = tfds_splits(data.removeprefix("tfds:"), name)
        split = _first(readers)
        return Data(readers[split](), {"data": data, "split": split})
    if settings.data_dir is None and not data:
        raise UserError(f"data_dir: task {name} needs its files; give data_dir=DIR, with the files in DIR/{name}/")
    place = Path(settings.data_dir or "") / (name if data in ("", "builtin") else data)
    if data == "builtin" and (settings.data_dir is None or not place.exists()):
        if not given["items"]:
            raise UserError(f"{name}.yaml: items: data is builtin, but there are no items; add items, or set data_dir")
        whole = json.dumps(given["items"], sort_keys=True, default=str).encode()
        return Data(given["items"], {"data": "sha256:" + hashlib.sha256(whole).hexdigest(), "split": "builtin"})
    if place.is_file():
        split, paths = "test", [place]
    else:
        splits = files(place)
        split = _first(splits)
        paths = splits[split]
    files_of_rows = [(path, read(path)) for path in paths]
    empty = tuple(path.name for path, own in files_of_rows if not own)
    return Data([row for _, own in files_of_rows for row in own], {"data": checksum(paths), "split": split}, empty)


def _first(splits: Collection[str]) -> str:
    return next(split for split in (*SPLITS, *splits) if split in splits)


def limited(values: Sequence[Item], limit: float | None) -> Sequence[Item]:
    """Return the first `limit` values or, below 1, that share of them, rounded up."""
    if limit is None:
        return values
    return values[: math.ceil(len(values) * limit) if limit < 1 else int(limit)]


def read_items(
    rows: Sequence[dict], problems: Problems, read_item: Callable[[dict], tuple[Hashable, Item]]
) -> list[tuple[int, Item]]:
    """Return (row number, item) for each usable row.

    read_item: maps a row to its key, or None, and the item; raises Malformed. Rows with the same key are not used.
    """
    items, owners = {}, {}
    for number, row in enumerate(rows):
        try:
            key, items[number] = read_item(checked(row))
        except Malformed as why:
            problems.add("malformed_items", f"row {number}: {why}")
            continue
        owners.setdefault(("row", number) if key is None else ("key", key), []).append(number)
    for (_, key), numbers in owners.items():
        if len(numbers) > 1:
            problems.add("duplicate_items", f"{key_text(key)}: rows {', '.join(map(str, numbers))}")
            for number in numbers:
                del items[number]
    return sorted(items.items())


def asked(subject: Subject, text: str, settings: TaskSettings) -> tuple[str, list[dict] | None, str]:
    """Return (prompt, its conversation or None, delimiter before the answer: a space, or "" after a chat template)."""
    if not settings.chat:
        return f"{settings.system}\n\n{text}" if settings.system else text, None, " "
    messages = [{"role": "system", "content": settings.system}] if settings.system else []
    messages.append({"role": "user", "content": text})
    return subject.chat_prompt(messages), messages, ""


def answered(subject: Subject, groups: Sequence[Sequence[Continuation]]) -> list[list[Likelihood]]:
    """Return the likelihoods of groups of continuations, with one request to the subject."""
    likelihoods = iter(subject.likelihoods([request for group in groups for request in group]))
    return [[next(likelihoods) for _ in group] for group in groups]


def all_finite(likelihoods: Sequence[Likelihood], problems: Problems, where: str) -> bool:
    """Return whether all log-likelihoods are finite; record a problem if not."""
    wrong = next((likelihood.logp for likelihood in likelihoods if not math.isfinite(likelihood.logp)), None)
    if wrong is not None:
        problems.add("likelihoods_not_finite", f"{where}: {wrong}")
    return wrong is None


def tokens(likelihoods: Sequence[Likelihood]) -> list[list[list[int]]]:
    """Return token ids as samples store them: [context ids, own ids] of each choice."""
    return [[list(likelihood.context_tokens), list(likelihood.tokens)] for likelihood in likelihoods]


def parts(samples: Sequence[dict], key: str, figures: Callable[[Sequence[dict]], dict]) -> dict[str, dict]:
    """Return the metrics of the samples of each value of `key`, sorted by value."""
    values = sorted({str(sample[key]) for sample in samples if sample[key] is not None})
    return {value: figures([sample for sample in samples if str(sample[key]) == value]) for value in values}
