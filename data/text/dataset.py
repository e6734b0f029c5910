"""Tokenized, packed text on disk: one TFDS dataset (ArrayRecord) per source, written atomically.

    out_dir/dataset.json                              settings, counts and files (see `prepare`)
    out_dir/input.json                                the input files (data/text/fingerprints.py)
    out_dir/packed_text/<source>/2.0.0/               a TFDS dataset with the splits train and valid

All files are written to a temporary folder, `dataset.json` last, which is then renamed to `out_dir`. So a killed process
leaves no `out_dir`, and the next start empties the temporary folder. TFDS is used without TensorFlow.
"""

import contextlib
import dataclasses
import fcntl
import functools
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
import xxhash

from data.sources.source import Source
from data.text.batches import SPLITS, VERSIONS, Rows, prepared
from data.text.fingerprints import Files, record_input
from data.text.packing import Counts, Packer, row_dtype
from data.text.split import Survey
from data.text.tokenizer import Tokenizer
from lm.errors import UserError

SPOOL_ROWS = 1024  # rows read back at a time


class PackedText(tfds.core.GeneratorBasedBuilder):
    """A TFDS dataset of one source. The features of a row are the fields of `data.text.packing.row_dtype`.

    Args: spools: split -> the file of rows written by `_spool`; no split may be empty. dtype: of a row.
    """

    VERSION = tfds.core.Version(VERSIONS[0])
    # Without these, TFDS would search checksums and metadata in this folder, with a package that it does not install.
    url_infos = None
    pkg_dir_path = Path(__file__).parent

    def __init__(self, *, spools: dict[str, Path], dtype: np.dtype, **kwargs: Any):
        self._spools, self._dtype = spools, dtype
        super().__init__(file_format=tfds.core.FileFormat.ARRAY_RECORD, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        bytes_ = tfds.features.Encoding.BYTES
        features = {
            name: tfds.features.Tensor(shape=field.shape, dtype=field.base, encoding=bytes_)
            for name, (field, _) in self._dtype.fields.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description="Documents packed into rows of tokens by lmcraft.",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(path) for split, path in self._spools.items()}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        with path.open("rb") as file:
            key = 0
            while len(rows := np.fromfile(file, self._dtype, SPOOL_ROWS)):
                for row in rows:
                    yield key, {name: row[name] for name in self._dtype.names}
                    key += 1


def prepare(
    out_dir: str | os.PathLike,
    sources: Iterable[Source],
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    survey: Survey,
    input: tuple[Files, str] | None = None,
    processes: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
    """Tokenize and pack the documents that `survey` kept, and write the dataset `out_dir`.

    The rows do not depend on the number of workers. Those of a source are spooled to disk, because TFDS needs a whole split at
    a time and shuffles it by a hash. Memory: the packer's buffers and up to 1 GB for the shuffle of TFDS; in each worker the
    tokenizer and the fingerprints of the validation text.

    Args:
        out_dir: must not exist, or be an empty folder.
        sequence_length: T; rows have T+1 tokens.
        survey: of these sources; this function makes its second pass over them.
        input: the source files and the digest of their content, see `data.text.fingerprints.check_input`.
        processes: number of workers; default: one per core.
        progress: called regularly with a source's name and the UTF-8 bytes packed from it so far.

    Returns:
        The content of `dataset.json`: `sequence_length`, `vocab_size`, `tokenizer` (its fingerprint), `files` (files of
        rows and their sizes), `digests` (of all rows: source -> split -> hex) and `sources`: name -> {`train`, `valid`:
        {documents, bytes, rows, tokens_in, tokens_packed, tokens_padded}, `survey`: the source's statistics from the survey}.

    Raises: UserError: `out_dir` exists, another process is preparing it, or no training row is left.
    """
    out = Path(out_dir)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} already exists; delete it, or choose another folder for the dataset")
    dtype = row_dtype(sequence_length, tokenizer.vocab_size)
    with exclusive(out.with_name(f".{out.name}.incomplete")) as incomplete:
        statistics: dict[str, Any] = {
            "sequence_length": sequence_length,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "sources": {},
            "digests": {},
        }
        for source in sources:
            spools = {split: incomplete / f"{split}.spool" for split in SPLITS}
            documents = survey.encoded(source, tokenizer, processes)
            show = functools.partial(progress, source.name) if progress else (lambda size: None)
            counts, statistics["digests"][source.name] = _spool(documents, tokenizer, sequence_length, spools, show)
            counts["survey"] = dataclasses.asdict(survey.stats[source.name])
            statistics["sources"][source.name] = counts
            filled = {split: path for split, path in spools.items() if counts[split]["rows"]}
            if filled:
                _write(incomplete, source.name, filled, dtype)
            for path in spools.values():
                path.unlink()
        if not any(counts["train"]["rows"] for counts in statistics["sources"].values()):
            raise UserError("data.input: no document is left to train on; check the input and data.valid_fraction")
        statistics["files"] = {
            os.fspath(path.relative_to(incomplete)): path.stat().st_size
            for path in sorted(incomplete.glob("packed_text/**/*"))
            if path.is_file()
        }
        if input is not None:
            record_input(incomplete, *input)
        (incomplete / "dataset.json").write_text(json.dumps(statistics, indent=1) + "\n")
        os.rename(incomplete, out)
    return statistics


def texts(dataset: Path, split: str, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[bytes]:
    """Yield the packed text of a split in pieces: every byte that is a target, exactly once."""
    seen = 0
    for name, counts in prepared(dataset)["sources"].items():
        if not counts[split]["rows"]:
            continue
        rows = Rows(dataset, name, split)
        for begin in range(0, len(rows), 256):
            some = rows.read(range(begin, min(begin + 256, len(rows))))
            for tokens, segments in zip(some["tokens"], some["segment_ids"]):
                for segment in range(1, int(segments.max()) + 1):
                    # The first token of a piece is the begin symbol, or the last target of the previous piece.
                    piece = tokenizer.decode_bytes(tokens[segments == segment][1:])
                    seen += len(piece)
                    yield piece
            if limit is not None and seen >= limit:
                return


def beginnings(dataset: Path, split: str, tokenizer: Tokenizer, count: int = 3, words: int = 4) -> list[str]:
    """Return the first words of at most `count` documents of a split, from all sources in turn.

    If the first rows of a source have fewer beginnings, return words from inside of its documents.
    """
    bos_id, of_source = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id, []
    for name, counts in prepared(dataset)["sources"].items():
        rows = Rows(dataset, name, split).read(range(min(counts[split]["rows"], 64 * count))) if counts[split]["rows"] else {}
        first, inside = [], []
        for tokens, segments in zip(rows.get("tokens", ()), rows.get("segment_ids", ())):
            for segment in range(1, int(segments.max()) + 1):
                piece = tokens[segments == segment]
                begins = piece[0] == bos_id
                text = tokenizer.decode_bytes(piece[1 : 1 + 8 * words]).decode(errors="ignore").split()
                text = text[:words] if begins else text[1 : 1 + words]  # the first word may be half of one
                (first if begins else inside).extend([" ".join(text)] if text else [])
        of_source.append(first + inside)
    return [text for group in itertools.zip_longest(*of_source) for text in group if text][:count]


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """Lock and empty a folder, and yield it. An error deletes it; a killed process leaves it behind.

    The kernel releases the lock when a process dies, so a folder that can be locked has no writer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), os.stat(folder)):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):  # not found: another process renamed it meanwhile
            raise UserError(f"{folder} is being written by another process; wait for it, or end it") from None
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def _spool(
    documents: Iterable[tuple[str, np.ndarray, int]],
    tokenizer: Tokenizer,
    sequence_length: int,
    spools: dict[str, Path],
    progress: Callable[[int], None],
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Pack documents (split, ids, bytes) into a file of raw rows per split. Returns (counts, digests of all rows) by split."""
    digests, sizes = {split: xxhash.xxh3_128() for split in SPLITS}, dict.fromkeys(SPLITS, 0)
    # Tokenizers without a begin token (Qwen) use the end token in its place.
    bos_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    ids_of = {"bos_id": bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    shape = {"sequence_length": sequence_length, "vocab_size": tokenizer.vocab_size}
    packers = {split: Packer(Counts(), **shape, **ids_of) for split in SPLITS}
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(path.open("wb")) for split, path in spools.items()}

        def write(split: str, rows: Iterable[np.ndarray]) -> None:
            for row in rows:
                files[split].write(row.tobytes())
                digests[split].update(row.tobytes())

        for split, ids, size in documents:
            sizes[split] += size
            write(split, packers[split].add(ids))
            if packers[split].counts.documents % 1024 == 0:
                progress(sum(sizes.values()))
        progress(sum(sizes.values()))
        for split, packer in packers.items():
            write(split, packer.finish())
    counts = {split: {"bytes": sizes[split], **dataclasses.asdict(packers[split].counts)} for split in SPLITS}
    return counts, {split: digest.hexdigest() for split, digest in digests.items()}


def _write(folder: Path, name: str, spools: dict[str, Path], dtype: np.dtype) -> None:
    """Write the spooled rows as a TFDS dataset, and suppress the output, warnings and progress bars of TFDS."""
    tfds.disable_progress_bar()
    config = tfds.core.BuilderConfig(name=name, version=PackedText.VERSION, description=f"the source {name}")
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = PackedText(data_dir=folder, config=config, spools=spools, dtype=dtype)
            builder.download_and_prepare(download_dir=folder / "downloads")
    finally:
        absl.logging.set_verbosity(verbosity)
    shutil.rmtree(folder / "downloads", ignore_errors=True)
