"""Tokenize and pack the documents of a finished recipe into the dataset that train.py reads."""

import functools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data.recipe import buckets
from data.recipe.inputs import digest
from data.sources import corpus
from data.sources.source import Source
from lm.errors import naming
from lm.files.saving import plain, write_json

if TYPE_CHECKING:
    from data.text.tokenizer import Tokenizer

FOLDER, MADE_FROM, BUCKETS = "dataset", "made_from.json", "buckets.json"


def check(config: Mapping[str, Any]) -> None:
    """Raise UserError if the config names a tokenizer that cannot be loaded, before hours of work."""
    if config["tokenizer"]:
        _tokenizer(config)


def _tokenizer(config: Mapping[str, Any]) -> "Tokenizer":
    from data.text.tokenizer import load_tokenizer  # here, because most runs have none, and the libraries take time to load

    with naming("tokenizer"):
        return load_tokenizer(config["tokenizer"])


def write(config: Mapping[str, Any], workdir: Path) -> dict[str, Any] | None:
    """Write WORKDIR/dataset, one part a source, with its tokenizer, and return what dataset.json says.

    With `dataset.bucket_by` a source becomes the parts SOURCE_q1 (lowest values of this column) … SOURCE_qN; buckets.json holds
    the highest value of each part but the last.

    Returns None if the config names no tokenizer. A dataset of the same documents and settings is kept. A few documents are for
    validation; exact duplicates and near copies of these are left out of training, as train.py does itself.
    """
    if not config["tokenizer"]:
        return None
    from data.text.batches import prepared
    from data.text.dataset import prepare  # here, because importing TFDS takes long
    from data.text.pipeline import stage
    from data.text.split import survey

    tokenizer = _tokenizer(config)
    files = json.loads((workdir / "manifest.json").read_text(encoding="utf-8"))["files"]
    made_from = digest([files, tokenizer.fingerprint, dict(config["dataset"])])
    out = workdir / FOLDER
    if (done := prepared(out)) and (out / MADE_FROM).exists() and json.loads((out / MADE_FROM).read_text()) == made_from:
        return done
    settings, fresh = config["dataset"], workdir / "stages" / f"{FOLDER}-{made_from}"
    shutil.rmtree(fresh, ignore_errors=True)
    column, bounds = settings["bucket_by"], {}
    if column:
        bounds = buckets.bounds(list(map(Path, corpus.files(workdir))), column, settings["buckets"])
    with naming("input"):
        sources = _sources(workdir, column, bounds)
        with stage("survey") as progress:
            kept = survey(
                sources,
                valid_fraction=settings["valid_fraction"],
                seed=settings["seed"],
                max_valid_bytes=settings["max_valid_bytes"],
                progress=progress,
            )
        with stage("dataset") as progress:
            statistics = prepare(
                fresh,
                sources,
                tokenizer,
                sequence_length=settings["sequence_length"],
                survey=kept,
                processes=config["processes"] or None,
                progress=progress,
            )
    tokenizer.save(fresh)
    if column:
        write_json(fresh / BUCKETS, plain({"column": column, "highest": bounds}))
    (fresh / MADE_FROM).write_text(json.dumps(made_from) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.rename(fresh, out)
    return statistics


def _sources(workdir: Path, column: str, bounds: Mapping[str, np.ndarray]) -> list[Source]:
    """Return the parts of the dataset: the sources, or the buckets of each."""

    def part(name: str, number: int) -> Source:
        def wanted(table: pa.Table) -> np.ndarray:
            return buckets.bucket(buckets.numbers(table, column), bounds[name]) == number

        return Source(f"{name}_q{number + 1}", functools.partial(corpus.read, workdir, name, wanted, column))

    if not bounds:
        return corpus.open_corpus(workdir)
    return [part(name, number) for name in sorted(bounds) for number in range(len(bounds[name]) + 1)]
