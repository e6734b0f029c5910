"""Record the tokenizer and the input of a run once, and compare them at every start.

    workdir/tokenizer.fingerprint    the fingerprint of the run's tokenizer, in hex
    workdir/data/<hash>/input.json   {"digest", "files": [[path, bytes, modified, changed], …]}, times in ns

Input files are compared by path, size and times. If only times differ, the digest of the content decides. So an edit is missed
only if it keeps the size and both times, which no ordinary tool does. Runs without a record are not compared.
"""

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from data.sources import corpus, files, objects, reading, streams
from lm.bucket import copies
from lm.bucket.store import Store, is_url
from lm.errors import UserError
from lm.files import saving
from lm.files.saving import set_aside

TOKENIZER, INPUT = "tokenizer.fingerprint", "input.json"
NAMED = 3  # files that an error names
BLOCK = 1 << 20  # bytes hashed at a time

Files = list[list]  # [path, bytes, modified, changed], in the order of the paths; of objects [URL, bytes, tag, 0]


class Damaged(UserError):
    """Raised if a file of a prepared dataset is damaged. what: the file and the reason."""

    def __init__(self, path: Path, why: object):
        self.what = f"{path} is damaged ({' '.join(str(why).split())})"
        super().__init__(f"{self.what}; start its run again to prepare it again")


def read_record(path: Path, described: str, keys: set[str]) -> dict[str, Any] | None:
    """Return the JSON object that describes a folder, or None if there is no file.

    Raises: Damaged if the file is not JSON or lacks one of `keys`; `described` names the kind of content in the error.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise Damaged(path, error) from None
    if not isinstance(content, dict) or not keys <= content.keys():
        raise Damaged(path, f"it describes no {described}")
    return content


# The tokenizer.


def check_tokenizer(folder: Path, fingerprint: str) -> None:
    """Raise UserError if the run in `folder` was made with another tokenizer. A folder without a record passes."""
    recorded = _recorded(folder)
    if recorded and fingerprint not in recorded:
        raise UserError(
            f"tokenizer: it differs from the tokenizer of the run in {folder} (fingerprint {fingerprint}, recorded "
            f"{' or '.join(sorted(recorded))}); put the run's own tokenizer back, or use another --workdir"
        )


def record_tokenizer(folder: Path, fingerprint: str) -> None:
    """Record the tokenizer of a run, once. Raises UserError if another one is recorded."""
    check_tokenizer(folder, fingerprint)
    if not (folder / TOKENIZER).exists():
        saving.write(folder / TOKENIZER, f"{fingerprint}\n")


def _recorded(folder: Path) -> set[str]:
    """Return the recorded fingerprint; without a record, the fingerprints in the run's datasets."""
    try:
        content = (folder / TOKENIZER).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        found = (json_object(path).get("tokenizer") for path in folder.glob("data/*/dataset.json"))
        return {fingerprint for fingerprint in found if isinstance(fingerprint, str)}
    except UnicodeDecodeError:
        content = ""
    if len(content) != 16 or not set(content) <= set("0123456789abcdef"):
        raise UserError(f"tokenizer: {folder / TOKENIZER} is damaged; delete it to accept the current tokenizer")
    return {content}


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# The input.


def ready_dataset(input: str | None) -> Path | None:
    """Return the dataset that `data.input` names, if it is one of `curate.py --config.tokenizer=…`; from a bucket, a copy."""
    if is_url(input):
        return _fetched(input)
    folder = Path(input).expanduser() if input else None
    return folder if folder is not None and (folder / "dataset.json").is_file() else None


@functools.cache
def _fetched(url: str) -> Path | None:
    return copies.dataset(url) if Store(url).read("dataset.json") is not None else None


def input_files(input: str | None, extensions: tuple[str, ...] = files.EXTENSIONS) -> Files | None:
    """Return the current files of `data.input`; [] if it no longer exists.

    Returns None for the Python installation, which is not compared because its packages change often.
    """
    if input is None:
        return None
    input = input.strip()
    if corpus.is_corpus(input):
        paths = corpus.files(input)
    elif files.is_path(input) or input.endswith(extensions):
        paths = files.present(input, extensions)
    else:
        from data.sources import tfds_source  # imports TFDS, which tokenizers do not need

        paths = tfds_source.prepared_files(input)
    found = []
    for path in paths:
        if is_url(path):
            found.append([path, *objects.entry(path), 0])
            continue
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; repair the file or leave it out of data.input") from error
        found.append([path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    return found


def digest_of(found: Files) -> str:
    """Return a hex digest of the paths and bytes of all files."""
    digest = xxhash.xxh3_128()
    for path, *_ in found:
        digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
        try:
            with streams.open_regular(path) as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        except streams.Unreadable as error:
            raise reading.unreadable(path, error) from error
    return digest.hexdigest()


def record_input(folder: Path, found: Files, digest: str) -> None:
    """Writes the record of a dataset's input into its folder."""
    saving.write(folder / INPUT, json.dumps({"digest": digest, "files": found}) + "\n")


def check_input(folder: Path, input: str, found: Files | None, digest: Callable[[Files], str], *, whole: bool = True) -> None:
    """Raise UserError if the input differs from the one that `folder` was prepared from.

    If the input no longer exists, print a line on stderr; the prepared data remain valid.

    Args:
        found: `input_files` of the input.
        digest: returns the digest of the content of files; called if paths and sizes are equal but times differ.
        whole: every file was read completely, so another size means other content. If false, `digest` decides that too.
    """
    if found is None or not (folder / INPUT).exists():
        return
    if not found:
        print(
            f"data.input={input!r} is no longer there: using {folder}, which was prepared from it", file=sys.stderr, flush=True
        )
        return
    record = json_object(folder / INPUT)
    if not ("digest" in record and isinstance(record.get("files"), list)):
        raise UserError(f"{folder / INPUT} is damaged; delete it to continue without comparing data.input={input!r}")
    if record["files"] == found:
        return
    different = _different(record["files"], found)
    if (different and whole) or digest(found) != record["digest"]:
        changes = different or [path for path, *_ in found]
        more = f" and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
        raise UserError(
            f"data.input={input!r} changed since {folder} was prepared from it ({', '.join(changes[:NAMED])}{more}): put it "
            "back as it was, or use another --workdir"
        )
    record_input(folder, found, record["digest"])


def _different(before: Files, now: Files) -> list[str]:
    """Return the differences other than times: "PATH is new", "PATH is gone", "PATH has another size"."""
    old, new = ({path: size for path, size, *_ in files} for files in (before, now))
    changes = [f"{path} is new" for path in new if path not in old] + [f"{path} is gone" for path in old if path not in new]
    return changes + [f"{path} has another size" for path in new if path in old and old[path] != new[path]]


# Damage.


def is_prepared(
    folder: Path,
    load: Callable[[Path], Any | None],
    input: str | None,
    found: Callable[[], Files | None],
    digest: Callable[[Files], str],
    *,
    whole: bool = True,
) -> bool:
    """Return whether `folder` holds undamaged prepared data that were made from the current input.

    Damaged data are set aside (lm/files/saving.py), with a line on stderr.

    Args:
        load: returns the prepared data of the folder, or None if there are none; raises Damaged.
        input, found, digest, whole: as for `check_input`; `found` is only called if there are prepared data.
    Raises: UserError if the input changed, or if the data are damaged and the input no longer exists.
    """
    damage = None
    try:
        if load(folder) is None:
            if not (folder.is_dir() and any(folder.iterdir())):
                return False
            raise Damaged(folder, "its record is missing")  # a folder is renamed to its name when it is complete
    except Damaged as error:
        damage = error
    files = found()
    if damage and files == []:
        raise UserError(
            f"{damage.what} and cannot be prepared again, because data.input={input!r} is no longer there; put it back"
        )
    check_input(folder, input, files, digest, whole=whole)
    if damage:
        moved = set_aside(folder, f".{folder.name}")  # a hidden name, so that nothing reads it as a dataset
        print(f"{damage.what}: it is set aside as {moved} and prepared again", file=sys.stderr, flush=True)
    return damage is None


def wait_for(load: Callable[[Path], Any | None], folder: Path) -> Any:
    """Poll until load(folder) returns what process 0 writes. It sets damaged data aside; if it fails, it ends this one too."""
    while True:
        with contextlib.suppress(Damaged):
            if (found := load(folder)) is not None:
                return found
        time.sleep(0.2)
