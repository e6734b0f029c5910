"""The work on one unit: read its files, run the stages whose results are missing, write what a corpus-wide stage needs.

Results lie in WORKDIR/stages/NAME-KEY/UNIT.parquet, see data/recipe/plan.py for KEY. A text there is null if its stage did not
change it.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.recipe import tables
from data.recipe.batch import ORIGINS, Batch
from data.recipe.corpus import TABLE, scores
from data.recipe.inputs import Unit
from data.recipe.plan import Planned
from data.recipe.rules import Rule, reasons
from data.sources.source import Document, Quarantined
from lm.files import saving

LISTED = 100  # faults of a file for one reason; more are counted, so that a file of bad lines does not fill the memory
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 19, 4096  # a batch ends with the document that reaches one; its arrays fit a cache


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to know beside the unit.

    stages: of the recipe up to the end of this pass, the first one reads.  gathers: the corpus-wide stage behind them
    """

    workdir: Path
    stages: tuple[Planned, ...]
    gathers: Planned | None = None

    def path(self, stage: Planned, unit: Unit) -> Path:
        return self.workdir / "stages" / stage.folder / f"{unit.name}.parquet"

    def table(self, stage: Planned) -> Path:
        """Return the file of what a corpus-wide stage found."""
        return self.workdir / "stages" / stage.folder / TABLE

    def part(self, unit: Unit) -> Path:
        """Return the folder of what the corpus-wide stage gathers from the unit."""
        return self.workdir / "stages" / self.gathers.folder / "parts" / unit.name

    @property
    def rules(self) -> list[Rule]:
        return [rule for stage in self.stages for rule in stage.rules]


def run(job: Job, unit: Unit) -> dict[str, int]:
    """Make the missing results of a unit. Returns {documents, characters}."""
    gathers = job.gathers is not None and not (job.part(unit) / "done.json").exists()
    counts = {"documents": 0, "characters": 0}
    with contextlib.ExitStack() as stack:
        part = stack.enter_context(job.gathers.stage.part(job.part(unit), job.gathers.options)) if gathers else None
        for batch, _ in batches(job, unit):
            first = counts["documents"]
            counts["documents"] += len(batch)
            counts["characters"] += sum(map(len, batch.texts))
            if part is not None:
                stays = np.flatnonzero(reasons(job.rules, batch.columns, len(batch)) < 0)
                numbers = (unit.number << 32) + first + stays
                part.add([batch.texts[n] for n in stays], numbers, scores(batch, job.gathers.options, stays))
    if gathers:
        saving.write_json(job.part(unit) / "done.json", counts)
    return counts


def batches(job: Job, unit: Unit) -> Iterator[tuple[Batch, Batch]]:
    """Yield the unit's batches with the columns of all stages, and as they were read.

    Results that are missing are computed, and written when all batches have been taken; others are read.
    """
    paths, missing = [job.path(stage, unit) for stage in job.stages], _missing(job, unit)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(tables.writing(path)) if new else None for path, new in zip(paths, missing)]
        readers = [None if new else stack.enter_context(contextlib.closing(tables.read(p))) for p, new in zip(paths, missing)]
        row = 0
        for columns in readers[0] or _read(job, unit):
            batch = first = Batch(columns)
            if writers[0]:
                writers[0](columns)
            numbers = (unit.number << 32) + np.arange(row, row + len(batch))
            row += len(batch)
            for stage, reader, write in zip(job.stages[1:], readers[1:], writers[1:]):
                if write:
                    more = {"numbers": numbers, "table": job.table(stage)} if stage.compares else {}
                    columns = dict(stage.stage.run(batch, stage.options | more))
                    changed = [None if new == old else new for new, old in zip(columns.get("text", ()), batch.texts)]
                    write(columns | ({"text": changed} if "text" in columns else {}))
                else:
                    columns = next(reader)
                    if "text" in columns:
                        columns["text"] = [old if new is None else new for new, old in zip(columns["text"], batch.texts)]
                batch = batch.replaced(columns)
            yield batch, first


def _missing(job: Job, unit: Unit) -> list[bool]:
    """Return for each stage whether its result is missing."""
    missing = [not job.path(stage, unit).exists() for stage in job.stages]
    return [missing[0] or not _quarantine(job, unit).exists(), *missing[1:]]


def is_done(job: Job, unit: Unit) -> bool:
    """Return whether the unit has the results of all stages."""
    return not any(_missing(job, unit))


def _read(job: Job, unit: Unit) -> Iterator[dict[str, list]]:
    """Read the unit's files. Yields columns; what cannot be read goes into a list beside the stage's result."""
    from data.sources.archives import Options, read

    options = Options(**job.stages[0].options)
    columns: dict[str, list] = {name: [] for name in ORIGINS}
    size, unread, empty = 0, Unread(), True
    for path, id in unit.files:
        source, _, inside = id.partition("/")
        documents = 0
        for found in read(path, inside, options):
            if isinstance(found, Quarantined):
                unread.add(found, path, id)
                continue
            documents += 1
            for name, value in zip(ORIGINS, _origins(found, source)):
                columns[name].append(value)
            size += len(found.text)
            if size >= BATCH_CHARACTERS or len(columns["id"]) >= BATCH_DOCUMENTS:
                yield columns
                columns, size, empty = {name: [] for name in ORIGINS}, 0, False
        unread.end_file(path, id, documents)
    if columns["id"] or empty:  # a unit without documents has one empty batch, so its files have all columns
        yield columns
    saving.write_lines(_quarantine(job, unit), unread.rows, ensure_ascii=True)


class Unread:
    """Collects {"file", "path", "where", "reason", "place", "count", "documents"} of what could not be read.

    file: the id in the input. place: [first, end), bytes of the file, or None. count: faults that the entry stands for.
    documents: how many the file gave; 0: nothing of it could be read.
    """

    def __init__(self):
        self._rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._of_file: list[dict[str, Any]] = []
        self._faults = 0

    def add(self, found: Quarantined, path: str, id: str) -> None:
        """Add a fault. path, id: of the file, source tree or repository that is being read."""
        self._faults += 1
        inside = os.path.relpath(found.path, path) if found.path.startswith(path + os.sep) else ""
        file = f"{id}/{inside}" if inside else id
        rows = self._rows.setdefault((file, found.reason), [])
        if len(rows) > LISTED:
            rows[-1]["count"] += 1
            rows[-1]["where"] = f"and {rows[-1]['count']:,} more"
            return
        where, place = (found.where, found.place) if len(rows) < LISTED else ("and 1 more", None)
        about = {"file": file, "path": found.path, "where": where, "reason": found.reason, "place": place}
        rows.append(about | {"count": 1, "documents": 0})
        if not inside:
            self._of_file.append(rows[-1])

    def end_file(self, path: str, id: str, documents: int) -> None:
        """Say how many documents the file gave whose faults were added last. A file without any is a fault, too."""
        if not documents and not self._faults:
            self.add(Quarantined(path, "", "no documents"), path, id)
        for row in self._of_file:
            row["documents"] = documents
        self._of_file, self._faults = [], 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for rows in self._rows.values() for row in rows]


def _origins(document: Document, source: str) -> tuple[str | None, ...]:
    metadata = (document.metadata or {}) | ({"split_key": document.split_key} if document.split_key else {})
    about = json.dumps(metadata, sort_keys=True, ensure_ascii=False) if metadata else None
    return document.id, document.text, source, document.url, document.language, document.date, document.licence, about


def _quarantine(job: Job, unit: Unit) -> Path:
    return job.path(job.stages[0], unit).with_suffix(".quarantined.jsonl")


def quarantined(job: Job, unit: Unit) -> list[dict[str, Any]]:
    """Return all that could not be read in a unit, see `Unread`."""
    with _quarantine(job, unit).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
