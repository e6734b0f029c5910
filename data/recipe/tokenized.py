"""Tokenize and pack the documents of a finished recipe into the dataset that train.py reads."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data.recipe.inputs import digest
from data.sources.source import Document, Source
from data.text.dataset import prepare, prepared
from data.text.split import survey
from data.text.tokenizer import load_tokenizer
from lm.errors import naming
from lm.progress import progress

FOLDER, MADE_FROM = "dataset", "made_from.json"


def write(config: Mapping[str, Any], workdir: Path) -> dict[str, Any] | None:
    """Write WORKDIR/dataset, one part a source, with its tokenizer, and return what dataset.json says.

    Returns None if the config names no tokenizer. A dataset of the same documents and settings is kept. A few documents are for
    validation; exact duplicates and near copies of these are left out of training, as train.py does itself.
    """
    if not config["tokenizer"]:
        return None
    with naming("tokenizer"):
        tokenizer = load_tokenizer(config["tokenizer"])
    files = json.loads((workdir / "manifest.json").read_text(encoding="utf-8"))["files"]
    made_from = digest([files, tokenizer.fingerprint, dict(config["dataset"])])
    out = workdir / FOLDER
    if (done := prepared(out)) and (out / MADE_FROM).exists() and json.loads((out / MADE_FROM).read_text()) == made_from:
        return done
    settings, fresh = config["dataset"], workdir / "stages" / f"{FOLDER}-{made_from}"
    shutil.rmtree(fresh, ignore_errors=True)
    with naming("input"):
        sources = [Source(name, lambda name=name: _documents(workdir, name)) for name in _names(workdir)]
        with progress("survey", unit="B", scaled=True) as bar:
            kept = survey(
                sources,
                valid_fraction=settings["valid_fraction"],
                seed=settings["seed"],
                max_valid_bytes=settings["max_valid_bytes"],
                progress=_advance(bar),
            )
        with progress("dataset", unit="B", scaled=True) as bar:
            statistics = prepare(
                fresh,
                sources,
                tokenizer,
                sequence_length=settings["sequence_length"],
                survey=kept,
                processes=config["processes"] or None,
                progress=_advance(bar),
            )
    tokenizer.save(fresh)
    (fresh / MADE_FROM).write_text(json.dumps(made_from) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.rename(fresh, out)
    return statistics


def _names(workdir: Path) -> list[str]:
    found: set[str] = set()
    for path in sorted((workdir / "documents").glob("*.parquet")):
        found.update(pq.read_table(path, columns=["source"]).column("source").unique().to_pylist())
    return sorted(found)


def _documents(workdir: Path, source: str) -> Iterator[Document]:
    for path in sorted((workdir / "documents").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=["id", "text", "source", "licence"]).to_pylist()
                for number, row in enumerate(rows):
                    if row["source"] == source:
                        yield Document(f"{row['id']}#{group}.{number}", row["text"], path.name, row["licence"])


def _advance(bar):
    seen: dict[str, int] = {}

    def advance(source: str, total: int) -> None:
        bar.set_postfix_str(source)
        bar.update(total - seen.get(source, 0))
        seen[source] = total

    return advance
