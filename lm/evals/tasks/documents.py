"""Load a task's documents: the items to evaluate, their groups, and the few-shot examples of each.

Examples are drawn as in lm-evaluation-harness 0.4.13, so that prompts match: each group, a task of its own there, has a
generator random.Random(seed) that draws for one item after another, in the order of the rows. One difference: an item is never
its own example, whether the split of the examples is named or is a fallback.
"""

import collections
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.stats.joining import Malformed, Problems, checked, key
from lm.evals.task import TaskSettings
from lm.evals.tasks import items as files
from lm.evals.tasks.settings import FILE_KEYS, function

KEYS = FILE_KEYS | {
    "columns": list,
    "file_column": str,
    "id": str,
    "process": str,
    "training_split": str,
    "validation_split": str,
    "test_split": str,
    "fewshot_split": str,
    "fewshot_config": dict,
    "num_fewshot": int,
    "group_by": str,
}
EXAMPLES_FROM = ("fewshot_split", "training_split", "validation_split", "test_split")  # the first one present
SIBLINGS = {"validation": "dev", "dev": "validation"}  # each may replace the other if it is missing

DATA_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, SyntaxError)


class TaskItem(NamedTuple):
    """id: the benchmark's own, with the group before it if there are groups; else the row number from 0."""

    id: int | str
    group: str
    doc: dict[str, Any]
    shots: tuple[dict[str, Any], ...]


class Documents(NamedTuple):
    """problems: found while reading; each run adds to a copy. columns: all that occur in any document. folder: of
    the files, or None."""

    items: list[TaskItem]
    columns: frozenset[str]
    num_fewshot: int
    problems: Problems
    versions: dict[str, Any]
    folder: Path | None = None

    def new_problems(self) -> Problems:
        return Problems(self.problems.kinds)


def load(name: str, spec: Mapping[str, Any], settings: TaskSettings, endings: Sequence[str] = files.ENDINGS) -> Documents:
    """Load a task's documents from its data (lm/evals/tasks/items.py).

    Unreadable rows and rows that share an id are listed in `problems` and left out. Raises: UserError for missing data, or if
    there are fewer examples than num_fewshot.
    """
    problems = Problems()
    read = functools.partial(_read_file, name, spec, files.folder_of(name, spec, settings))
    data = files.open_data(name, spec, settings, problems, endings=endings, read=read)
    splits = data.rows
    process = function(name, "process", spec["process"]) if spec.get("process") else None
    wanted = spec.get("test_split") or spec.get("validation_split") or "test"
    evaluated = _present(wanted, splits) or _present("test", splits) or (next(iter(splits)) if len(splits) == 1 else None)
    if evaluated is None:
        raise UserError(f"task {name}: no files of split {wanted!r}, only of {', '.join(splits)}; name the file *_{wanted}.*")
    rows = _processed(splits[evaluated](), process)
    versions = {"task": spec.get("version", 1), "data": data.checksum, "split": evaluated}
    n = spec.get("num_fewshot") or 0
    if settings.num_fewshot is not None and spec.get("num_fewshot") != 0:  # a 0 in the task file is fixed, as in the harness
        n = settings.num_fewshot
    config, pool = spec.get("fewshot_config") or {}, []
    # If both are absent they are equal, as in the harness: with only a validation split, one more example is drawn.
    exclude = spec.get("fewshot_split") == spec.get("test_split")
    if n and not spec.get("fewshot_split") and config.get("samples"):
        pool, versions["fewshot_split"] = config["samples"], "samples"
    elif n:
        named = next((spec[k] for k in EXAMPLES_FROM if spec.get(k)), evaluated)
        source = _present(named, splits) or evaluated
        if source == evaluated and named not in (wanted, evaluated):
            problems.add(
                "examples_from_evaluated_split", f"no files of split {named!r}: other items of {evaluated!r} are shown"
            )
        pool = rows if source == evaluated else _processed(splits[source](), process)
        pool = [doc for doc in pool if "malformed" not in doc]
        exclude, versions["fewshot_split"] = exclude or source == evaluated, source
    draw = functools.partial(drawn, n=n, seed=settings.seed, first=config.get("sampler") == "first_n", exclude=exclude)
    items = _items(name, spec, settings.limit, rows, pool, draw, problems)
    columns = frozenset(column for doc in rows if "malformed" not in doc for column in doc)
    return Documents(items, columns, n, problems, versions, data.folder)


def _read_file(name: str, spec: Mapping[str, Any], folder: Path, path: Path) -> list[dict]:
    """Return the rows of a file, with the file's label in the column `file_column`."""
    column = spec.get("file_column")
    label = {column: files.label(path, folder, name)} if column else {}
    rows = files.read(path, tuple(spec.get("columns") or ()) or None)
    return [label | {key: value for key, value in row.items() if key != column or value is not None} for row in rows]


def drawn(
    pool: Sequence[dict], docs: Sequence[dict], n: int, *, seed: int, first: bool, exclude: bool
) -> list[tuple[dict, ...]]:
    """Draw n examples of the pool for each document, like ContextSampler or FirstNSampler of lm-evaluation-harness.

    Args: exclude: a document, or an equal one, is never its own example. Then n + 1 are drawn first; if fewer than n remain, n
      are drawn again from the documents that differ.
    Raises: ValueError for a pool that is too small.
    """
    if not n:
        return [()] * len(docs)
    generator, shots = random.Random(seed), []
    for doc in docs:
        if first:
            some = [other for other in pool if other != doc][:n] if exclude else pool[:n]
        elif exclude:
            some = [other for other in generator.sample(pool, n + 1) if other != doc][:n]
            if len(some) < n:
                some = generator.sample([other for other in pool if other != doc], n)
        else:
            some = generator.sample(pool, n)
        if len(some) < n:
            raise ValueError(f"{len(some)} examples")
        shots.append(tuple(some))
    return shots


def _items(
    name: str,
    spec: Mapping[str, Any],
    limit: float | None,
    rows: Sequence[dict],
    pool: Sequence[dict],
    draw: Callable,
    problems: Problems,
) -> list[TaskItem]:
    """Return the items with their examples. The limit holds for each group, as for each task of a group in the harness."""
    by, pool_of_all = spec.get("group_by"), bool((spec.get("fewshot_config") or {}).get("samples"))

    def group(doc: dict) -> str:
        return str(doc.get(by, "")) if by else ""

    groups: dict[str, list[int]] = {}
    for number, doc in enumerate(rows):
        groups.setdefault(group(doc), []).append(number)
    items = []
    for called, numbers in groups.items():
        docs = [rows[number] for number in outcomes.limited(numbers, limit)]
        examples = pool if pool_of_all else [doc for doc in pool if group(doc) == called]
        try:
            shots = draw(examples, docs)
        except ValueError:
            raise UserError(
                f"task {name}: num_fewshot: only {len(examples)} examples are available"
                + (f" in {by} {called!r}" if by else "")
                + "; ask for fewer, or add files"
            ) from None
        for number, doc, some in zip(numbers, docs, shots):
            try:
                own = checked(doc).get(spec.get("id", "id"))
                if by and not called:
                    raise Malformed(f"no {by!r}")
                id = number if own is None else key(doc, spec.get("id", "id"))
            except Malformed as why:
                problems.add("malformed_items", f"row {number}: {why}")
                continue
            items.append((number, TaskItem(f"{called}/{id}" if by and isinstance(id, str) else id, called, doc, some)))
    items = [item for _, item in sorted(items, key=lambda pair: pair[0])]
    count = collections.Counter(item.id for item in items)
    for id, times in count.items():
        if times > 1:
            problems.add("duplicate_items", f"{id}: {times} rows")
    return [item for item in items if count[item.id] == 1]


def _present(split: str, splits: Mapping[str, Any]) -> str | None:
    return next((name for name in (split, SIBLINGS.get(split)) if name in splits), None)


def _processed(rows: Sequence[dict], process: Callable[[dict], dict] | None) -> list[dict]:
    """Return each row merged with `process(row)`; {"malformed": why} if it fails."""
    docs = []
    for row in rows:
        if process and "malformed" not in row:
            try:
                row = row | process(row)
            except Malformed as why:
                row = {**row, "malformed": str(why)}
            except DATA_ERRORS as error:
                row = {**row, "malformed": described(error)}
        docs.append(row)
    return docs


def described(error: Exception) -> str:
    """Return why a template or a function failed on a document."""
    if isinstance(error, KeyError):
        return f"no {error.args[0]!r}" if error.args else "a key is missing"
    return f"{type(error).__name__}: {error}"


def column(doc: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path such as answer.aliases; None if the path does not exist."""
    value: Any = doc
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def texts(value: Any, what: str, *, empty: bool = False) -> tuple[str, ...]:
    """Return a text, or a list of texts and numbers, as texts. Raises: Malformed, also if there is none and not `empty`."""
    parts = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int | float):
            raise Malformed(f"{what!r} holds a {type(part).__name__}, not a text")
    unique = tuple(dict.fromkeys(str(part) for part in parts if str(part).strip()))
    if not unique and not empty:
        raise Malformed(f"no {what!r}")
    return unique
