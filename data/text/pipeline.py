"""Prepare the tokenizer and the packed dataset of a config in the workdir, or reuse existing ones.

There are two passes over the text: the survey (duplicates, splits, and a sample to train the tokenizer if none is given),
then tokenization and packing.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_collections

from data.sources import open_sources, spooled
from data.sources.source import Source
from data.text import sentencepiece_tokenizer
from data.text.batches import prepared
from data.text.dataset import prepare
from data.text.fingerprints import check_tokenizer, input_files, is_prepared, ready_dataset, record_tokenizer, wait_for
from data.text.grow import extends, grow
from data.text.hf_tokenizer import has_tokenizer
from data.text.split import digest_of, survey
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.errors import UserError
from lm.progress import progress


def prepare_text(
    config: ml_collections.ConfigDict, workdir: Path, *, first: bool = True
) -> tuple[Tokenizer, Path, dict[str, float]]:
    """Return the tokenizer, the folder of the dataset, and the seconds of each stage (0 for reused results).

    first: whether this process does the work. Other processes wait for it, on the same file system.
    Raises: UserError if the input or the tokenizer is invalid.
    """
    stages = {"survey": 0.0, "tokenizer": 0.0, "dataset": 0.0}
    if not first:
        tokenizer = wait_for(_own_tokenizer, workdir)
        folder = _folder(config, tokenizer, workdir)
        wait_for(prepared, folder)
        return tokenizer, folder, stages

    if (ready := ready_dataset(config.data.input)) is not None:
        return *_linked(config, workdir, ready), stages
    configured = load_tokenizer(config.tokenizer) if config.tokenizer is not None else None
    tokenizer = _own_tokenizer(workdir) or (None if config.data.new_pieces else configured)
    if tokenizer:
        same = configured is None or configured.fingerprint == tokenizer.fingerprint
        if not same and not (config.data.new_pieces and extends(tokenizer, configured)):
            raise UserError(
                f"tokenizer: {config.tokenizer} differs from the run's tokenizer in {workdir}; use another --workdir"
            )
        check_tokenizer(workdir, tokenizer.fingerprint)
        folder = _folder(config, tokenizer, workdir)
        if _is_prepared(config, folder):
            record_tokenizer(workdir, tokenizer.fingerprint)
            return tokenizer, folder, stages

    with tempfile.TemporaryDirectory(prefix="lmcraft-") as spool:
        sources = _sources(config)
        if config.data.input is None:  # parsing it takes longer than all passes over its text
            sources = [spooled(source, Path(spool)) for source in sources]
        tokenizer, folder = _two_passes(config, workdir, sources, tokenizer, configured, stages, Path(spool))
    return tokenizer, folder, stages


def summary(config, dataset: Path) -> list[str]:
    """Return a line for each source: what was read, what was dropped, and what data.max_bytes left out."""
    lines = []
    for name, counts in prepared(dataset)["sources"].items():
        read = counts["survey"]
        parts = [f"{read['documents']:,} documents with {read['bytes']:,} bytes"]
        for key, what in (("exact_duplicates", "exact duplicates"), ("near_copies", "near copies of validation text")):
            if read[key]:
                parts.append(f"{read[key]:,} {what} dropped")
        parts.append(f"{read['train_documents']:,} to train on, {read['valid_documents']:,} to validate on")
        if config.data.max_bytes is not None and read["bytes"] >= config.data.max_bytes:
            parts.append(f"the rest of the source is left out by data.max_bytes={config.data.max_bytes}")
        lines.append(f"data: {name}: " + ", ".join(parts))
    return lines


def _linked(config, workdir: Path, ready: Path) -> tuple[Tokenizer, Path]:
    """Use a dataset that is tokenized already: WORKDIR/data/HASH becomes a link to it. Returns its tokenizer and the link.

    Raises: UserError: the run has another tokenizer or sequence length.
    """
    tokenizer, statistics = load_tokenizer(ready), prepared(ready)
    if config.data.new_pieces:
        raise UserError(
            f"data.new_pieces={config.data.new_pieces}: the dataset {ready} is tokenized already; leave the key out"
        )
    if statistics["sequence_length"] != config.sequence_length:
        raise UserError(
            f"sequence_length={config.sequence_length}: the dataset {ready} has rows of {statistics['sequence_length']} tokens"
            "; set that length, or make the dataset again with --config.dataset.sequence_length"
        )
    if config.tokenizer is not None and load_tokenizer(config.tokenizer).fingerprint != tokenizer.fingerprint:
        raise UserError(f"tokenizer: {config.tokenizer} is not the tokenizer of the dataset {ready}; leave the key out")
    check_tokenizer(workdir, tokenizer.fingerprint)
    folder = _folder(config, tokenizer, workdir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if any(path.is_symlink() and path != folder for path in folder.parent.iterdir()):
        raise UserError(f"data.input: the dataset {ready} has changed since this run began; use another --workdir")
    if folder.resolve() != ready.resolve():  # a new run, or the dataset has moved
        folder.unlink(missing_ok=True)
        folder.symlink_to(ready.resolve())
    if not _own_tokenizer(workdir):
        tokenizer.save(workdir)
    record_tokenizer(workdir, tokenizer.fingerprint)
    return tokenizer, folder


def _sources(config) -> list[Source]:
    return open_sources(config.data.input, text_key=config.data.text_key, max_bytes=config.data.max_bytes)


def _is_prepared(config, folder: Path) -> bool:
    """Return whether the dataset can be reused, see `data.text.fingerprints.is_prepared`."""

    def digest(_) -> str:
        with stage("comparing the input") as progress:
            return digest_of(_sources(config), progress)

    input, whole = config.data.input, config.data.max_bytes is None
    return is_prepared(folder, prepared, input, lambda: input_files(input), digest, whole=whole)


def _two_passes(
    config,
    workdir: Path,
    sources: list[Source],
    tokenizer: Tokenizer | None,
    configured: Tokenizer | None,
    stages: dict[str, float],
    scratch: Path,
) -> tuple[Tokenizer, Path]:
    """Split the text, train a tokenizer if there is none or add pieces to the configured one, and pack the rows."""
    files = input_files(config.data.input)
    if tokenizer is None and configured is None:
        sentencepiece_tokenizer.check_vocab_size(config.model.vocab_size)
    with stage("survey", stages) as progress:
        surveyed = survey(
            sources,
            valid_fraction=config.data.valid_fraction,
            seed=config.seed,
            max_valid_bytes=config.data.max_valid_bytes,
            progress=progress,
            sample_bytes=0 if tokenizer else config.data.tokenizer_sample_bytes,
        )
    # The workdir is only written from here on, after the whole input was read without an error.
    if tokenizer is None:
        with stage("tokenizer", stages) as progress:
            chunks = surveyed.sample()
            progress("training", sum(map(len, chunks)))
            if configured is None:
                tokenizer = sentencepiece_tokenizer.fit(
                    chunks, scratch / "tokenizer.model", vocab_size=config.model.vocab_size, threads=os.cpu_count() or 1
                )
            else:
                tokenizer = grow(configured, chunks, config.data.new_pieces, scratch)
        check_tokenizer(workdir, tokenizer.fingerprint)  # if the run's tokenizer was deleted, the new one must be equal
    if not _own_tokenizer(workdir):
        tokenizer.save(workdir)
        tokenizer = load_tokenizer(workdir)  # its files stay, those in `scratch` do not
    record_tokenizer(workdir, tokenizer.fingerprint)
    folder = _folder(config, tokenizer, workdir)
    if folder.exists() and _is_prepared(config, folder):  # only the tokenizer had been lost
        return tokenizer, folder
    with stage("dataset", stages) as progress:
        folder.parent.mkdir(parents=True, exist_ok=True)
        files = input_files(config.data.input) if files == [] else files  # TFDS may have prepared it meanwhile
        prepare(
            folder,
            sources,
            tokenizer,
            sequence_length=config.sequence_length,
            survey=surveyed,
            progress=progress,
            input=None if files is None else (files, surveyed.digest),
        )
    return tokenizer, folder


def _own_tokenizer(workdir: Path) -> Tokenizer | None:
    """Load the run's own tokenizer, or return None if it has none yet."""
    return load_tokenizer(workdir) if has_tokenizer(workdir) else None


def _folder(config, tokenizer: Tokenizer, workdir: Path) -> Path:
    """Return the dataset's folder, named by a hash of all settings that the rows depend on."""
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"tokenizer: the tokenizer of {config.tokenizer or workdir} has {tokenizer.vocab_size} ids, more than "
            f"model.vocab_size={config.model.vocab_size}; raise that key, or use another --workdir"
        )
    if tokenizer.eos_id is None:
        raise UserError(
            f"tokenizer: the tokenizer of {config.tokenizer or workdir} has no end token; "
            "set eos_token in its tokenizer_config.json"
        )
    keys = ("input", "text_key", "max_bytes", "valid_fraction", "max_valid_bytes")
    made_from = [config.data[key] for key in keys] + [config.sequence_length, config.seed, tokenizer.fingerprint]
    if (ready := ready_dataset(config.data.input)) is not None:
        made_from = [(ready / "dataset.json").read_text(encoding="utf-8")]
    return workdir / "data" / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]


@contextlib.contextmanager
def stage(name: str, seconds: dict[str, float] | None = None) -> Iterator[Callable[[str, int], None]]:
    """Yield a function that shows the progress of a stage, in bytes per source. seconds: gets the time of the stage."""
    begin, seen = time.perf_counter(), {}
    with progress(name, unit="B") as bar:

        def show(source: str, total: int) -> None:
            if source not in seen:
                bar.set_postfix_str(source)
            bar.update(total - seen.get(source, 0))
            seen[source] = total

        yield show
    if seconds is not None:
        seconds[name] = time.perf_counter() - begin
