"""Tokenize and pack the documents of a finished recipe into the dataset that train.py reads."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.recipe.inputs import digest
from data.sources.corpus import open_corpus
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
        sources = open_corpus(workdir)
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


def _advance(bar):
    seen: dict[str, int] = {}

    def advance(source: str, total: int) -> None:
        bar.set_postfix_str(source)
        bar.update(total - seen.get(source, 0))
        seen[source] = total

    return advance
