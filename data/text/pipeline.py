"""From a config to a tokenizer and a packed dataset in the workdir; what stands is reused.

Two passes over the text: the survey (duplicates, splits, and a sample for the tokenizer unless one is given), and tokens
into rows.
"""

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

import ml_collections

from data.sources import open_sources
from data.sources.source import Source
from data.sources.spool import spooled
from data.text import tokenizer as tokenizers
from data.text.dataset import prepare, prepared
from data.text.fingerprints import check_tokenizer, input_files, record_tokenizer, stands, undamaged, wait_for
from data.text.hf_tokenizer import HFTokenizer, load_tokenizer
from data.text.split import digest_of, survey
from lm.errors import UserError
from lm.progress import progress


def prepare_text(
    config: ml_collections.ConfigDict, workdir: Path, *, first: bool = True
) -> tuple[tokenizers.Tokenizer | HFTokenizer, Path, dict[str, float]]:
    """The tokenizer, the folder of the dataset, and the seconds each stage took (0 for what stood already).

    first: whether this process does the work; otherwise it waits for the one that does, on the same file system.
    Raises: UserError for anything wrong with the input, the tokenizer or the weights.
    """
    stages = {"survey": 0.0, "tokenizer": 0.0, "dataset": 0.0}
    if not first:
        tokenizer = wait_for(lambda: _standing(workdir))
        folder = _folder(config, tokenizer, workdir)
        wait_for(lambda: undamaged(lambda: prepared(folder)))
        return tokenizer, folder, stages

    given = load_tokenizer(config.tokenizer) if config.tokenizer is not None else None
    tokenizer = _standing(workdir) or given
    if tokenizer:
        if given and given.fingerprint != tokenizer.fingerprint:
            raise UserError(f"tokenizer: {config.tokenizer} is not the one in {workdir}, of this run; use another --workdir")
        check_tokenizer(workdir, tokenizer.fingerprint)
        folder = _folder(config, tokenizer, workdir)
        if _stands(config, folder):
            record_tokenizer(workdir, tokenizer.fingerprint)
            return tokenizer, folder, stages

    with tempfile.TemporaryDirectory(prefix="lmcraft-") as spool:
        sources = _sources(config)
        if config.data.input is None:  # parsing a Python installation is slower than all the passes over its text
            sources = [spooled(source, Path(spool)) for source in sources]
        tokenizer, folder = _two_passes(config, workdir, sources, tokenizer, stages, Path(spool))
    return tokenizer, folder, stages


def _sources(config) -> list[Source]:
    return open_sources(config.data.input, text_key=config.data.text_key, max_bytes=config.data.max_bytes)


def _stands(config, folder: Path) -> bool:
    """Whether the dataset can be used as it is, see `data.text.fingerprints.stands`."""

    def digest() -> str:
        with _Stage({}, "comparing the input") as progress:
            return digest_of(_sources(config), progress)

    return stands(
        folder,
        lambda: prepared(folder),
        config.data.input,
        lambda: input_files(config.data.input),
        digest,
        whole=config.data.max_bytes is None,
    )


def _two_passes(
    config,
    workdir: Path,
    sources: list[Source],
    tokenizer: tokenizers.Tokenizer | HFTokenizer | None,
    stages: dict[str, float],
    scratch: Path,
) -> tuple[tokenizers.Tokenizer | HFTokenizer, Path]:
    found = input_files(config.data.input)
    if tokenizer is None:
        tokenizers.check_vocab_size(config.model.vocab_size)
    with _Stage(stages, "survey") as progress:
        kept = survey(
            sources,
            valid_fraction=config.data.valid_fraction,
            seed=config.seed,
            max_valid_bytes=config.data.max_valid_bytes,
            progress=progress,
            sample_bytes=0 if tokenizer else config.data.tokenizer_sample_bytes,
        )
    # From here on the workdir is written: all of the input was read, and nothing was wrong with it.
    if tokenizer is None:
        with _Stage(stages, "tokenizer") as progress:
            chunks = kept.sample()
            progress("training", sum(map(len, chunks)))
            tokenizer = tokenizers.fit(
                chunks, scratch / "tokenizer.model", vocab_size=config.model.vocab_size, threads=os.cpu_count() or 1
            )
        check_tokenizer(workdir, tokenizer.fingerprint)  # of a run whose tokenizer was deleted, this must be the same one
    if not _standing(workdir):
        tokenizer.save(workdir)
    record_tokenizer(workdir, tokenizer.fingerprint)
    folder = _folder(config, tokenizer, workdir)
    with _Stage(stages, "dataset") as progress:
        folder.parent.mkdir(parents=True, exist_ok=True)
        prepare(
            folder,
            sources,
            tokenizer,
            sequence_length=config.sequence_length,
            survey=kept,
            progress=progress,
            input=None if found is None else (found or input_files(config.data.input), kept.digest),  # TFDS may have loaded it
        )
    return tokenizer, folder


def _standing(workdir: Path) -> tokenizers.Tokenizer | HFTokenizer | None:
    """The run's own tokenizer, if it has one already."""
    stands = any((workdir / name).exists() for name in ("tokenizer.model", "tokenizer.json"))
    return load_tokenizer(workdir) if stands else None


def _folder(config, tokenizer: tokenizers.Tokenizer | HFTokenizer, workdir: Path) -> Path:
    """Named by all that the rows depend on, so that a changed setting makes a new dataset beside the old one."""
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"tokenizer: that of {config.tokenizer or workdir} has {tokenizer.vocab_size} ids, more than "
            f"model.vocab_size={config.model.vocab_size}; raise that key, or use another --workdir"
        )
    if tokenizer.eos_id is None:
        raise UserError(
            f"tokenizer: that of {config.tokenizer or workdir} names no token that ends a document; "
            "set eos_token in the tokenizer_config.json beside it"
        )
    keys = ("input", "text_key", "max_bytes", "valid_fraction", "max_valid_bytes")
    made_from = [config.data[key] for key in keys] + [config.sequence_length, config.seed, tokenizer.fingerprint]
    return workdir / "data" / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]


class _Stage:
    """Times a stage and shows how many bytes of which source it has seen."""

    def __init__(self, stages: dict[str, float], name: str):
        self._stages, self._name = stages, name

    def __enter__(self):
        self._begin = time.perf_counter()
        self._bar = progress(self._name, unit="B", scaled=True)
        self._seen: dict[str, int] = {}
        return self._progress

    def _progress(self, source: str, total: int) -> None:
        if source not in self._seen:
            self._bar.set_postfix_str(source)
        self._bar.update(total - self._seen.get(source, 0))
        self._seen[source] = total

    def __exit__(self, *_):
        self._bar.close()
        self._stages[self._name] = time.perf_counter() - self._begin
