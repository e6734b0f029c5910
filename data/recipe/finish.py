"""Apply the thresholds to a unit: write the documents that stay, those that go with the reason, and what the report needs."""

import heapq
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import xxhash

from data.recipe import tables
from data.recipe.batch import ORIGINS, Batch
from data.recipe.index import saved_hash
from data.recipe.inputs import Unit
from data.recipe.rules import Rule, reasons
from data.recipe.units import Job, batches, is_done, quarantined
from lm.files import saving

KEPT, EMPTY = "kept", "empty"
SAMPLES, SAMPLE_CHARACTERS = 5, 600  # of each reason, and of the documents that stay
BINS = 50
FORMAT = 2  # of the files of figures; a change makes all anew


class Output(NamedTuple):
    """key: of the whole recipe, with its rules. audit: whether to count what is said near identity terms.

    choose: of each reason, how many documents a page to browse may show.
    """

    job: Job
    key: str
    audit: bool
    choose: int = 0

    def tables(self, unit: Unit) -> dict[str, Path]:
        """Return the paths of the unit's documents that stay and of those that go."""
        return {name: self.job.workdir / name / f"{unit.number:05d}.parquet" for name in ("documents", "dropped")}

    def stayed(self, unit: Unit) -> Path:
        """Return the path of the numbers of the documents that stay, a table of data/dedup/tables.py with one column."""
        return self.figures(unit).with_suffix(".stayed.u64")

    def figures(self, unit: Unit) -> Path:
        return self.job.workdir / "stages" / f"figures-{self.key}" / f"{unit.name}.json"


def run(output: Output, unit: Unit) -> dict[str, Any]:
    """Write the unit's two tables and return its figures, see `Figures`; or return those of a finished unit.

    Missing results of the last pass' stages are made on the way, so that documents are read once for both.
    "files" is added to them: {"documents", "dropped": {"rows", "xxh3_128"}}.
    """
    paths, done = output.tables(unit), output.figures(unit)
    if is_done(output.job, unit) and all(path.exists() for path in (done, output.stayed(unit), *paths.values())):
        figures = json.loads(done.read_text(encoding="utf-8"))
        if figures["files"] == _described(paths):
            return figures
    figures = Figures(output.job.rules, output.audit, output.choose)
    numbers, row = [], unit.number << 32
    with tables.writing(paths["dropped"]) as dropped, tables.writing(paths["documents"]) as documents:
        for batch, first in batches(output.job, unit):
            why = reasons(output.job.rules, batch.columns, len(batch))
            names = np.array([rule.column for rule in output.job.rules] + [EMPTY, KEPT], object)
            empty = np.array([not text or text.isspace() for text in batch.texts], bool)
            # Index −1 is KEPT. A document of which a stage left nothing goes too.
            why = names[np.where((why < 0) & empty, len(names) - 2, why)]
            stays = np.flatnonzero(why == KEPT)
            goes = np.flatnonzero(why != KEPT)
            numbers.append((row + stays).astype(np.uint64))
            documents.write(_rows(batch.columns, stays))
            dropped.write(_rows(batch.columns | {"text": first.texts}, goes) | {"reason": why[goes].tolist()})
            figures.add(batch, first, why, row)
            row += len(batch)
    with saving.replacing(output.stayed(unit), "wb") as file:
        np.concatenate(numbers).tofile(file)
    found = saving.plain(figures.found | {"quarantined": quarantined(output.job, unit), "files": _described(paths)})
    saving.write_json(done, found)
    return found


def _described(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the rows and the hash of each file."""
    return {name: {"rows": pq.read_metadata(path).num_rows, "xxh3_128": saved_hash(path)} for name, path in paths.items()}


def _rows(columns: Mapping[str, Any], at: np.ndarray) -> dict[str, Any]:
    ordered = [*ORIGINS, *(name for name in columns if name not in ORIGINS)]
    return {n: columns[n][at] if isinstance(columns[n], np.ndarray) else [columns[n][i] for i in at] for n in ordered}


class Figures:
    """Additive figures of documents.

    found: {
      "documents", "characters": counts, the latter of the texts as the stages left them;
      "funnel": {source: {language: {reason or "kept": [documents, bytes]}}}, bytes of the text as it was read;
      "kept_bytes": {source: {language: bytes of the texts as they are written}};
      "histograms": {column: {"edges": [...], "counts": [...]}} for each rule on numbers;
      "samples": {reason or "kept": [[hash, id, url, value, text]]}, the documents with the lowest hashes of their ids;
      "chosen": {reason or "kept": [[hash, number]]}, the `choose` ones with the lowest hashes, see data/recipe/documents.py;
      "sums": {column: sum} of all numeric columns;
      "contamination": {benchmark item: [documents, the lowest ids of some]};
      "bias", "topics": {"before", "after": additive tables of data/filters/bias.py}, with `audit` }
    """

    def __init__(self, rules: list[Rule], audit: bool, choose: int = 0):
        self._audit, self._choose = audit, choose
        self._rules = {rule.column: rule for rule in rules}
        self.found: dict[str, Any] = {
            "documents": 0, "characters": 0, "funnel": {}, "kept_bytes": {}, "histograms": {}, "samples": defaultdict(list),
            "chosen": {}, "sums": defaultdict(float), "contamination": {}, "bias": {}, "topics": {},
        }  # fmt: skip

    def add(self, batch: Batch, first: Batch, why: np.ndarray, number: int) -> None:
        """Add a batch. first: as it was read. why: reason or "kept" of each document. number: of its first document."""
        self.found["documents"] += len(batch)
        self.found["characters"] += sum(map(len, batch.texts))
        funnel, kept = self.found["funnel"], self.found["kept_bytes"]
        languages = [language or "unknown" for language in batch.columns["language"]]
        for source, language, text, now, reason in zip(batch.columns["source"], languages, first.texts, batch.texts, why):
            row = funnel.setdefault(source, {}).setdefault(language, {}).setdefault(reason, [0, 0])
            row[0] += 1
            row[1] += len(text.encode())
            if reason == KEPT:
                of = kept.setdefault(source, {})
                of[language] = of.get(language, 0) + len(now.encode())
        for name, values in batch.columns.items():
            if isinstance(values, np.ndarray) and values.dtype.kind in "iufb":
                self.found["sums"][name] += float(np.nansum(values))
                if name in self._rules:
                    self._histogram(name, values)
        hashes = [xxhash.xxh3_64_hexdigest(id.encode()) for id in batch.columns["id"]]
        chosen: dict[str, list] = {}
        for n, (hash, id, reason) in enumerate(zip(hashes, batch.columns["id"], why)):
            chosen.setdefault(reason, []).append([hash, number + n])
            value = batch.columns[reason][n] if reason in self._rules else None
            value = value if isinstance(value, str) or value is None else float(value)
            shown = (batch if reason == KEPT else first).texts[n][:SAMPLE_CHARACTERS]
            self._sample(reason, [hash, id, batch.columns["url"][n], value, shown])
        choose(self.found["chosen"], chosen, self._choose)
        for id, items in zip(batch.columns["id"], batch.columns.get("contamination_of", ())):
            for item in json.loads(items) if items else ():
                _count_item(self.found["contamination"], item, 1, [id])
        if self._audit:
            self._count_bias(first, why == KEPT)

    def _count_bias(self, first: Batch, stays: np.ndarray) -> None:
        from data.filters import bias

        found, every = bias.audited(first.texts), np.ones(len(first), bool)
        labels = bias.topics_of(found.hits)["topic"]
        for when, some in (("before", every), ("after", stays)):
            for name, table in (("bias", bias.table(found.counts[some])), ("topics", bias.label_counts(labels[some]))):
                before = self.found[name].get(when)
                self.found[name][when] = bias.added([before, table]) if before else table

    def _histogram(self, name: str, values: np.ndarray) -> None:
        rule = self._rules[name]
        edges = bins(all(bound <= 1 or math.isinf(bound) for bound in (rule.least, rule.most)) and values.dtype.kind == "f")
        at = np.clip(np.searchsorted(edges, values[~np.isnan(values.astype(float))], side="right") - 1, 0, len(edges) - 2)
        entry = self.found["histograms"].setdefault(name, {"edges": edges.tolist(), "counts": [0] * (len(edges) - 1)})
        entry["counts"] = (np.array(entry["counts"]) + np.bincount(at, minlength=len(edges) - 1)).tolist()

    def _sample(self, reason: str, sample: list) -> None:
        some = self.found["samples"][reason]
        if len(some) < SAMPLES or sample[0] < some[-1][0]:
            self.found["samples"][reason] = heapq.nsmallest(SAMPLES, [*some, sample], key=lambda one: one[:2])


def choose(into: dict[str, list], more: Mapping[str, list], most: int) -> None:
    """Merge two tables {reason: [[hash, number]]}; of each reason the `most` lowest rows stay."""
    for reason, rows in more.items() if most else ():
        into[reason] = sorted([*into.get(reason, []), *rows])[:most]


def _count_item(table: dict[str, list], item: str, documents: int, ids: list[str]) -> None:
    before, some = table.get(item, (0, []))
    table[item] = [before + documents, sorted({*some, *ids})[:SAMPLES]]


def _added(tables: list[dict[str, Any]]) -> dict[str, Any]:
    from data.filters.bias import added

    return added([{k: np.array(v) if isinstance(v, list) else v for k, v in table.items()} for table in tables])


def bins(share: bool) -> np.ndarray:
    """Return the edges of a histogram: of shares from 0 to 1, or powers of 2^(1/2) with 0 in front, for counts and lengths."""
    return np.linspace(0, 1, BINS + 1) if share else np.append(0, 2.0 ** (np.arange(BINS + 1) / 2))


def merged(all_figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sum of the units' figures."""
    total: dict[str, Any] = {
        "funnel": {},
        "kept_bytes": {},
        "histograms": {},
        "samples": {},
        "sums": {},
        "contamination": {},
        "quarantined": [],
    }
    for name in ("bias", "topics"):
        some = [figures[name] for figures in all_figures if figures[name]]
        total[name] = {when: _added([tables[when] for tables in some]) for when in ("before", "after")} if some else {}
    for figures in all_figures:
        for source, languages in figures["funnel"].items():
            for language, rows in languages.items():
                into = total["funnel"].setdefault(source, {}).setdefault(language, {})
                for reason, (documents, size) in rows.items():
                    before = into.get(reason, [0, 0])
                    into[reason] = [before[0] + documents, before[1] + size]
        for source, languages in figures["kept_bytes"].items():
            for language, size in languages.items():
                of = total["kept_bytes"].setdefault(source, {})
                of[language] = of.get(language, 0) + size
        for name, one in figures["histograms"].items():
            into = total["histograms"].setdefault(name, {"edges": one["edges"], "counts": [0] * len(one["counts"])})
            into["counts"] = [a + b for a, b in zip(into["counts"], one["counts"])]
        for reason, some in figures["samples"].items():
            both = [*total["samples"].get(reason, []), *some]
            total["samples"][reason] = heapq.nsmallest(SAMPLES, both, key=lambda one: one[:2])
        for name, value in figures["sums"].items():
            total["sums"][name] = total["sums"].get(name, 0.0) + value
        for item, (documents, ids) in figures["contamination"].items():
            _count_item(total["contamination"], item, documents, ids)
        total["quarantined"] += figures["quarantined"]
    return total
