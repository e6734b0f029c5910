"""Ways to damage the files of a run that was killed halfway, and what the same command must do then.

GOES_ON: it ends with exit code 0, equal to the uninterrupted run. WITHOUT: the same, but for lines of metrics.jsonl that were
lost, which it says. REFUSED: it ends with exit code 2 and one line, changes no file, and goes on as above after the file is put
back. STOPPED: the same, but it has begun, so it has written logs or later checkpoints.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from data.text import sentencepiece_tokenizer
from lm.files import checksums
from tests.faults.prepared import Prepared

GOES_ON, WITHOUT = "goes on, equal", "goes on, equal, names the lost lines"
REFUSED, STOPPED = "exit 2, one line, no file changed; repaired: goes on, equal", "exit 2, one line; repaired: goes on, equal"

Way = Callable[[list[Path], Prepared], None]  # damages these paths


class Damage(NamedTuple):
    """at: patterns of the paths, below the workdir; of each only the largest match is damaged. {new}, {old}: steps.

    words: that the run says. cure: the pattern of what is deleted to repair it, as the line advises; None: put the files back.
    """

    name: str
    at: tuple[str, ...]
    way: Way
    outcome: str
    words: tuple[str, ...] = ()
    cure: str | None = None

    def paths(self, workdir: Path) -> list[Path]:
        """Return the paths that are damaged in a whole workdir."""
        old, new = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())[-2:]
        paths = []
        for pattern in self.at:
            found = list(workdir.glob(pattern.format(new=new, old=old))) or [workdir / pattern]
            paths.append(max(found, key=lambda path: path.stat().st_size if path.exists() else 0))
        return paths

    def repair(self, workdir: Path, whole: Path) -> None:
        """Put the files of the whole workdir back, or delete what the line advises to delete."""
        if self.cure:
            for path in workdir.glob(self.cure):
                _delete(path)
            return
        for path in self.paths(whole):
            own = workdir / path.relative_to(whole)
            if os.path.lexists(own):
                _delete(own)
            if path.exists():
                (shutil.copytree if path.is_dir() else shutil.copy)(path, own)


def each(way: Callable[[Path], None]) -> Way:
    """Return a way that damages each path by itself."""
    return lambda paths, prepared: [way(path) for path in paths] and None


def writes(content: bytes) -> Way:
    """Return a way that replaces the content."""
    return each(lambda path: path.write_bytes(content) and None)


def appends(content: bytes) -> Way:
    return each(lambda path: path.write_bytes(path.read_bytes() + content) and None)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _folder(path: Path) -> None:
    _delete(path)
    path.mkdir()


def _link(path: Path) -> None:
    _delete(path)
    path.symlink_to(path.name)  # to itself


def _pipe(path: Path) -> None:
    _delete(path)
    os.mkfifo(path)


def _file(path: Path) -> None:
    _delete(path)
    path.write_text("a file\n")


def _rename(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.bak"))


def _cut_line(path: Path) -> None:
    """Remove the end of the last line."""
    path.write_bytes(path.read_bytes()[:-9])


def _half(path: Path) -> None:
    """Keep the first 30 lines."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:30]))


def _repeat(path: Path) -> None:
    """Write the last forty lines twice."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines + lines[-40:]))


def _swap(paths: list[Path], prepared: Prepared) -> None:
    one, other = paths
    moved = one.with_name("moved")
    one.rename(moved)
    other.rename(one)
    moved.rename(other)


def _half_precision(paths: list[Path], prepared: Prepared) -> None:
    """Store the parameters as float16, with right checksums."""
    (state,) = paths
    reader = ocp.PyTreeCheckpointer()
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(state).item_metadata.tree)
    tree = reader.restore(state, restore_args=how)
    tree["params"] = jax.tree.map(lambda x: x.astype(np.float16), tree["params"])
    shutil.rmtree(state)
    reader.save(state, tree)
    checksums.write(state)


def _of_other_run(paths: list[Path], prepared: Prepared) -> None:
    """Put the file or folder of a run with another seed in place. The last checkpoint takes the place of any."""
    for path in paths:
        name = path.name if path.parent.name != "checkpoints" else "checkpoints/120"
        _delete(path)
        copy = shutil.copytree if (prepared.other() / name).is_dir() else shutil.copy
        copy(prepared.other() / name, path)


def _other_vocabulary(paths: list[Path], prepared: Prepared) -> None:
    sentencepiece_tokenizer.train(
        ["words of another text and nothing else " * 40], paths[0], vocab_size=300, sample_bytes=1 << 20, seed=0, threads=1
    )


def _unreadable(path: Path) -> None:
    path.chmod(0)


cut, flip, zeros, delete, folder, link, pipe, file = map(each, (_cut, _flip, _zeros, _delete, _folder, _link, _pipe, _file))
empty, junk = writes(b""), writes(random.Random(0).randbytes(4000))
NUL_AND_JUNK = b"\0" * 100 + random.Random(1).randbytes(300)

CHECKPOINT = "checkpoints/{new}"
ARRAY, META, SUMS = (f"{CHECKPOINT}/{name}" for name in ("state/ocdbt.process_0/d/*", "meta/metadata", "state/checksums.json"))
ROWS = "data/*/packed_text/*/*/*-train.array_record*"
ASIDE = ("is damaged", "going on from step 20")

DAMAGES = (
    Damage("checkpoint-cut", (ARRAY,), cut, GOES_ON, ASIDE),
    Damage("checkpoint-byte", (ARRAY,), flip, GOES_ON, ASIDE),
    Damage("checkpoint-zeros", (ARRAY,), zeros, GOES_ON, ASIDE),
    Damage("checkpoint-empty-file", (ARRAY,), empty, GOES_ON, ASIDE),
    Damage("checkpoint-no-file", (ARRAY,), delete, GOES_ON, ASIDE),
    Damage("checkpoint-swapped", (ARRAY, f"{CHECKPOINT}/state/_METADATA"), _swap, GOES_ON, ASIDE),
    Damage("checkpoint-file-is-folder", (ARRAY,), folder, GOES_ON, ASIDE),
    Damage("checkpoint-file-is-link", (ARRAY,), link, GOES_ON, ASIDE),
    Damage("checkpoint-file-is-pipe", (ARRAY,), pipe, GOES_ON, ASIDE),
    Damage("checkpoint-meta-junk", (META,), junk, GOES_ON, ASIDE),
    Damage("checkpoint-meta-cut", (META,), cut, GOES_ON, ASIDE),
    Damage("checkpoint-meta-pipe", (META,), pipe, GOES_ON, ASIDE),
    Damage("checkpoint-no-meta", (f"{CHECKPOINT}/meta",), delete, GOES_ON, ASIDE),
    Damage("checkpoint-no-state", (f"{CHECKPOINT}/state",), delete, GOES_ON, ASIDE),
    Damage("checkpoint-sums-junk", (SUMS,), junk, GOES_ON, ASIDE),
    Damage("checkpoint-no-sums", (SUMS,), delete, GOES_ON),
    Damage("checkpoint-no-sums-cut", (SUMS, ARRAY), lambda p, x: (delete(p[:1], x), cut(p[1:], x)) and None, GOES_ON, ASIDE),
    Damage("checkpoint-folder-empty", (CHECKPOINT,), folder, GOES_ON, ASIDE),
    Damage("checkpoint-is-file", (CHECKPOINT,), file, GOES_ON),
    Damage("checkpoint-is-link", (CHECKPOINT,), link, GOES_ON),
    Damage("checkpoint-deleted", (CHECKPOINT,), delete, GOES_ON),
    Damage("checkpoint-all", (ARRAY, ARRAY.replace("new", "old")), cut, REFUSED, ("no other checkpoint is whole",)),
    Damage("checkpoint-float16", (f"{CHECKPOINT}/state",), _half_precision, REFUSED, ("float16", "float32")),
    Damage("checkpoint-of-other-run", (CHECKPOINT,), _of_other_run, REFUSED, ("another --workdir",)),
    Damage("checkpoint-unreadable", (ARRAY,), each(_unreadable), REFUSED, ("Permission denied",)),
    Damage("config-empty", ("config.json",), empty, GOES_ON, ("is damaged",)),
    Damage("config-cut", ("config.json",), cut, GOES_ON, ("is damaged",)),
    Damage("config-zeros", ("config.json",), zeros, GOES_ON, ("is damaged",)),
    Damage("config-deleted", ("config.json",), delete, GOES_ON),
    Damage("config-is-folder", ("config.json",), folder, GOES_ON, ("is damaged",)),
    Damage("config-is-link", ("config.json",), link, GOES_ON, ("is damaged",)),
    Damage("config-is-pipe", ("config.json",), pipe, GOES_ON, ("is damaged",)),
    Damage("config-of-other-run", ("config.json",), _of_other_run, REFUSED, ("seed is 1 in", "another --workdir")),
    Damage("tokenizer-cut", ("tokenizer.model",), cut, REFUSED, ("tokenizer.model",)),
    Damage("tokenizer-byte", ("tokenizer.model",), flip, REFUSED, ("tokenizer",)),
    Damage("tokenizer-empty", ("tokenizer.model",), empty, REFUSED, ("tokenizer.model",)),
    Damage("tokenizer-is-folder", ("tokenizer.model",), folder, REFUSED, ("tokenizer.model",)),
    Damage("tokenizer-is-link", ("tokenizer.model",), link, GOES_ON),
    Damage("tokenizer-is-pipe", ("tokenizer.model",), pipe, REFUSED, ("tokenizer.model",)),
    Damage("tokenizer-of-other-run", ("tokenizer.model",), _of_other_run, REFUSED, ("put the run's own tokenizer back",)),
    Damage("tokenizer-other-vocabulary", ("tokenizer.model",), _other_vocabulary, REFUSED, ("put the run's own tokenizer",)),
    Damage("tokenizer-deleted", ("tokenizer.model",), delete, GOES_ON),
    Damage("fingerprint-junk", ("tokenizer.fingerprint",), junk, REFUSED, ("tokenizer.fingerprint is damaged",)),
    Damage("fingerprint-deleted", ("tokenizer.fingerprint",), delete, GOES_ON),
    Damage("rows-cut", (ROWS,), cut, GOES_ON, ("is damaged",)),
    Damage("rows-byte", (ROWS,), flip, STOPPED, ("the rows in", "are damaged", "delete"), "data/*"),
    Damage("rows-zeros", (ROWS,), zeros, STOPPED, ("the rows in", "are damaged")),
    Damage("rows-deleted", (ROWS,), delete, GOES_ON, ("is damaged",)),
    Damage("rows-renamed", (ROWS,), each(_rename), GOES_ON, ("is damaged",)),
    Damage("rows-is-pipe", (ROWS,), pipe, GOES_ON, ("is damaged",)),
    Damage("rows-swapped", (ROWS, ROWS.replace("train", "valid")), _swap, GOES_ON, ("is damaged",)),
    Damage("rows-features-zeros", ("data/*/packed_text/*/*/features.json",), zeros, STOPPED, ("the rows in", "are damaged")),
    Damage("dataset-json-cut", ("data/*/dataset.json",), cut, GOES_ON, ("is damaged",)),
    Damage("dataset-json-deleted", ("data/*/dataset.json",), delete, GOES_ON),
    Damage("dataset-deleted", ("data/*",), delete, GOES_ON),
    Damage("dataset-input-junk", ("data/*/input.json",), junk, REFUSED, ("input.json is damaged",)),
    Damage("metrics-cut-line", ("metrics.jsonl",), each(_cut_line), GOES_ON),
    Damage("metrics-junk-at-end", ("metrics.jsonl",), appends(NUL_AND_JUNK), GOES_ON),
    Damage("metrics-repeated", ("metrics.jsonl",), each(_repeat), GOES_ON),
    Damage("metrics-wrong-lines", ("metrics.jsonl",), appends(b'[1]\n{"step": "x"}\n{"step": 1e999}\n{"st'), GOES_ON),
    Damage("metrics-is-folder", ("metrics.jsonl",), folder, REFUSED, ("metrics.jsonl",)),
    Damage("metrics-is-link", ("metrics.jsonl",), link, STOPPED, ("metrics.jsonl",)),
    Damage("metrics-is-pipe", ("metrics.jsonl",), pipe, REFUSED, ("metrics.jsonl",)),
    Damage("metrics-deleted", ("metrics.jsonl",), delete, WITHOUT, ("40 of the 40 steps before",)),
    Damage("metrics-half", ("metrics.jsonl",), each(_half), WITHOUT, ("steps before", "damaged or replaced")),
    Damage("metrics-zeros", ("metrics.jsonl",), zeros, WITHOUT, ("40 of the 40 steps before",)),
    Damage("ids-junk-at-end", ("ids.jsonl",), appends(NUL_AND_JUNK), GOES_ON),
    Damage("rewinds-junk", ("rewinds.json",), junk, GOES_ON, ("rewinds.json is damaged",)),
    Damage("rewinds-wrong", ("rewinds.json",), writes(json.dumps([1, {"to": "x"}]).encode()), GOES_ON, ("is damaged",)),
    Damage("rewinds-is-folder", ("rewinds.json",), lambda p, x: p[0].mkdir(), REFUSED, ("rewinds.json",)),
    Damage("goodput-wrong", ("goodput.jsonl",), appends(b'{"attempt": 1, "seconds": {"wait": "x"}}\n\0\xff{"att'), GOES_ON),
    Damage("starts-cut-line", ("starts.jsonl",), each(_cut_line), GOES_ON),
    Damage("tensorboard-is-file", ("tensorboard",), file, STOPPED, ("tensorboard",)),
    Damage("lock-is-folder", (".lock",), folder, REFUSED, (".lock",)),
    Damage("lock-of-killed-run", (".lock",), writes(b"process 1 on elsewhere\n"), GOES_ON),
    Damage("checkpoints-is-file", ("checkpoints",), file, REFUSED, ("checkpoints",)),
)
