"""Apply the thresholds to a unit: write the documents that stay, those that go with the reason, and what the report needs."""

import hashlib
import heapq
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import xxhash

from data.recipe import tables
from data.recipe.batch import ORIGINS, Batch
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

    def figures(self, unit: Unit) -> Path:
        return self.job.workdir / "stages" / f"figures-{self.key}" / f"{unit.name}.json"


def run(output: Output, unit: Unit) -> dict[str, Any]:
    """Write the unit's two tables and return its figures, see `_figures`; or return those of a finished unit.

    Missing results of the last pass' stages are made on the way, so that documents are read once for both.
    "files" is added to them: {"documents", "dropped": {"rows", "xxh3_128"}}.
    """
    paths, done = output.tables(unit), output.figures(unit)
    if is_done(output.job, unit) and all(path.exists() for path in (done, *paths.values())):
        figures = json.loads(done.read_text(encoding="utf-8"))
        if figures["files"] == _described(paths):
            return figures
    parts, row = [], unit.number << 32
    with tables.writing(paths["dropped"]) as write_dropped, tables.writing(paths["documents"]) as write_kept:
        for batch, first in batches(output.job, unit):
            why = reasons(output.job.rules, batch.columns, len(batch))
            names = np.array([rule.column for rule in output.job.rules] + [EMPTY, KEPT], object)
            empty = np.array([not text or text.isspace() for text in batch.texts], bool)
            # Index −1 is KEPT. A document of which a stage left nothing goes too.
            why = names[np.where((why < 0) & empty, len(names) - 2, why)]
            stays = np.flatnonzero(why == KEPT)
            goes = np.flatnonzero(why != KEPT)
            write_kept(_rows(batch.columns, stays))
            write_dropped(_rows(batch.columns | {"text": first.texts}, goes) | {"reason": why[goes].tolist()})
            parts.append(_figures(output, batch, first, why, row))
            row += len(batch)
    figures = merged(parts) | {"chosen": lowest([part["chosen"] for part in parts], output.choose)}
    figures = saving.plain(figures | {"quarantined": quarantined(output.job, unit), "files": _described(paths)})
    saving.write_json(done, figures)
    return figures


def _described(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the rows and the hash of each file."""
    described = {}
    for name, path in paths.items():
        with path.open("rb") as file:
            hash = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
        described[name] = {"rows": pq.read_metadata(path).num_rows, "xxh3_128": hash}
    return described


def _rows(columns: Mapping[str, Any], at: np.ndarray) -> dict[str, Any]:
    ordered = [*ORIGINS, *(name for name in columns if name not in ORIGINS)]
    return {n: columns[n][at] if isinstance(columns[n], np.ndarray) else [columns[n][i] for i in at] for n in ordered}


def _figures(output: Output, batch: Batch, first: Batch, why: np.ndarray, number: int) -> dict[str, Any]:
    """Return the figures of a batch, which `merged` and `lowest` add up.

    first: as it was read. why: reason or "kept" of each document. number: of its first document.

    Returns: {
      "documents", "characters": counts, the latter of the texts as the stages left them;
      "funnel": {source: {language: {reason or "kept": [documents, bytes]}}}, bytes of the text as it was read;
      "kept_bytes": {source: {language: bytes of the texts as they are written}};
      "histograms": {column: {"edges": [...], "counts": [...]}} for each rule on numbers;
      "samples": {reason or "kept": [[hash, id, url, value, text]]}, the documents with the lowest hashes of their ids;
      "chosen": {reason or "kept": [[hash, number]]}, the same for the page to browse, see data/recipe/documents.py;
      "sums": {column: sum} of all numeric columns;
      "contamination": {benchmark item: [documents, the lowest ids of some]};
      "bias", "topics": {"before", "after": additive tables of data/filters/bias.py}, with `audit` }
    """
    columns, rules = batch.columns, {rule.column: rule for rule in output.job.rules}
    funnel: dict[str, dict] = {}
    kept: dict[str, dict[str, int]] = {}
    languages = [language or "unknown" for language in columns["language"]]
    for source, language, text, now, reason in zip(columns["source"], languages, first.texts, batch.texts, why):
        row = funnel.setdefault(source, {}).setdefault(language, {}).setdefault(reason, [0, 0])
        row[0] += 1
        row[1] += len(text.encode())
        if reason == KEPT:
            of = kept.setdefault(source, {})
            of[language] = of.get(language, 0) + len(now.encode())
    arrays = {name: values for name, values in columns.items() if isinstance(values, np.ndarray)}
    numeric = {name: values for name, values in arrays.items() if values.dtype.kind in "iufb"}
    samples, chosen, contamination = defaultdict(list), defaultdict(list), defaultdict(list)
    for n, (id, reason) in enumerate(zip(columns["id"], why)):
        hash = xxhash.xxh3_64_hexdigest(id.encode())
        value = columns[reason][n] if reason in rules else None
        value = value if isinstance(value, str) or value is None else float(value)
        shown = (batch if reason == KEPT else first).texts[n][:SAMPLE_CHARACTERS]
        samples[reason].append([hash, id, columns["url"][n], value, shown])
        chosen[reason].append([hash, number + n])
    for id, items in zip(columns["id"], columns.get("contamination_of", ())):
        for item in json.loads(items) if items else ():
            contamination[item].append(id)
    bias, topics = _audited(first, why == KEPT) if output.audit else ({}, {})
    return {
        "documents": len(batch),
        "characters": sum(map(len, batch.texts)),
        "funnel": funnel,
        "kept_bytes": kept,
        "histograms": {name: _histogram(rules[name], values) for name, values in numeric.items() if name in rules},
        "samples": lowest([samples], SAMPLES),
        "chosen": lowest([chosen], output.choose),
        "sums": {name: float(np.nansum(values)) for name, values in numeric.items()},
        "contamination": {item: [len(ids), ids] for item, ids in contamination.items()},
        "bias": bias,
        "topics": topics,
    }


def _audited(first: Batch, stays: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    from data.filters import bias

    counted = bias.audited(first.texts)
    labels = bias.topics_of(counted.hits)
    parts = {"before": slice(None), "after": stays}
    return (
        {when: bias.table(counted.counts[some]) for when, some in parts.items()},
        {when: bias.label_counts(labels[some]) for when, some in parts.items()},
    )


def _histogram(rule: Rule, values: np.ndarray) -> dict[str, list]:
    edges = bins(all(bound <= 1 or math.isinf(bound) for bound in (rule.least, rule.most)) and values.dtype.kind == "f")
    at = np.clip(np.searchsorted(edges, values[~np.isnan(values.astype(float))], side="right") - 1, 0, len(edges) - 2)
    return {"edges": edges.tolist(), "counts": np.bincount(at, minlength=len(edges) - 1).tolist()}


def bins(share: bool) -> np.ndarray:
    """Return the edges of a histogram: of shares from 0 to 1, or powers of 2^(1/2) with 0 in front, for counts and lengths."""
    return np.linspace(0, 1, BINS + 1) if share else np.append(0, 2.0 ** (np.arange(BINS + 1) / 2))


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sum of the figures of batches or of units, without "chosen"."""
    every = {name: [part[name] for part in parts] for name in parts[0]}
    names = ("documents", "characters", "funnel", "kept_bytes", "sums", "bias", "topics")
    edges = {column: histogram["edges"] for part in every["histograms"] for column, histogram in part.items()}
    counts = summed([{column: one["counts"] for column, one in part.items()} for part in every["histograms"]])
    ids: dict[str, set] = defaultdict(set)
    for items in every["contamination"]:
        for item, (_, some) in items.items():
            ids[item].update(some)
    documents = summed([{item: count for item, (count, _) in items.items()} for items in every["contamination"]])
    return {name: summed(every[name]) for name in names} | {
        "histograms": {column: {"edges": edges[column], "counts": counts[column]} for column in edges},
        "samples": lowest(every["samples"], SAMPLES),
        "contamination": {item: [count, sorted(ids[item])[:SAMPLES]] for item, count in documents.items()},
        "quarantined": list(chain.from_iterable(every.get("quarantined", ()))),
    }


def summed(values: Sequence[Any]) -> Any:
    """Return the sum of numbers or arrays, of lists place by place, of mappings key by key; a missing key counts as nothing."""
    if isinstance(values[0], Mapping):
        return {key: summed([value[key] for value in values if key in value]) for key in dict.fromkeys(chain(*values))}
    if isinstance(values[0], list):
        return [summed(some) for some in zip(*values)]
    return sum(values)


def lowest(tables: Sequence[Mapping[str, list]], most: int) -> dict[str, list]:
    """Merge tables {reason: rows} of rows that begin with a hash and a name; of each reason the `most` lowest rows stay."""
    both: dict[str, list] = defaultdict(list)
    for reason, rows in chain.from_iterable(table.items() for table in tables if most):
        both[reason] += rows
    return {reason: heapq.nsmallest(most, rows, key=lambda row: row[:2]) for reason, rows in both.items()}
