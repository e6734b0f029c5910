"""What a run was made from, written down once and compared at every start: its tokenizer and its input.

    workdir/tokenizer.fingerprint    the fingerprint of the run's tokenizer, in hex
    workdir/data/<hash>/input.json   {"digest", "files": [[path, bytes, modified, changed], …]}, times in ns

The files of an input are compared by path, size and times. Where only the times differ the content decides, by its digest. So
an edit is missed only if it keeps the size and both times, which no ordinary tool does. Runs that have no record, made by
earlier versions, are not compared.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from data.sources import files
from lm import saving
from lm.damage import set_aside
from lm.errors import UserError

TOKENIZER, INPUT = "tokenizer.fingerprint", "input.json"
NAMED = 3  # files that an error names
BLOCK = 1 << 20  # bytes hashed at a time

Files = list[list]  # [path, bytes, modified, changed], in the order of the paths


class Damaged(UserError):
    """A file of a prepared dataset is not what was written; `what` says which, and why that is so."""

    def __init__(self, path: Path, why: object):
        self.what = f"{path} is damaged ({' '.join(str(why).split())})"
        super().__init__(f"{self.what}; start its run again, which prepares it anew")


def read_record(path: Path, described: str, keys: set[str]) -> dict[str, Any] | None:
    """Return the JSON object that says what a folder holds, or None if there is no file. It has these keys at least.

    Raises: Damaged if the file is torn or describes no `described`.
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
    """Raises UserError if the run in `folder` was made with another tokenizer. A folder without a record passes."""
    recorded = _recorded(folder)
    if recorded and fingerprint not in recorded:
        raise UserError(
            f"tokenizer: the one in use is not that of the run in {folder} (fingerprint {fingerprint}, recorded "
            f"{' or '.join(sorted(recorded))}); put the run's own tokenizer back, or use another --workdir"
        )


def record_tokenizer(folder: Path, fingerprint: str) -> None:
    """Writes the record of a run, once. Raises UserError if it has another one."""
    check_tokenizer(folder, fingerprint)
    if not (folder / TOKENIZER).exists():
        saving.write(folder / TOKENIZER, f"{fingerprint}\n")


def _recorded(folder: Path) -> set[str]:
    """The record; of a run that has none, what its datasets were encoded with."""
    try:
        content = (folder / TOKENIZER).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        found = (_json(path).get("tokenizer") for path in folder.glob("data/*/dataset.json"))
        return {fingerprint for fingerprint in found if isinstance(fingerprint, str)}
    except UnicodeDecodeError:
        content = ""
    if len(content) != 16 or not set(content) <= set("0123456789abcdef"):
        raise UserError(f"tokenizer: {folder / TOKENIZER} is damaged; delete it to accept the tokenizer that is there")
    return {content}


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# The input.


def input_files(input: str | None, extensions: tuple[str, ...] = files.EXTENSIONS) -> Files | None:
    """The files that `data.input` means now; none if it is gone.

    Returns None where there is nothing to compare: for the Python installation, whose packages come and go.
    """
    if input is None:
        return None
    input = input.strip()
    if files.is_path(input) or input.endswith(extensions):
        paths = files.present(input, extensions)
    else:
        from data.sources import tfds_source  # loads TFDS, which tokenizers can do without

        paths = tfds_source.prepared_files(input)
    found = []
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; mend the file or leave it out of data.input") from error
        found.append([path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    return found


def digest_of(found: Files) -> str:
    """Hex digest of the paths and bytes of all files."""
    digest = xxhash.xxh3_128()
    for path, *_ in found:
        digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def record_input(folder: Path, found: Files, digest: str) -> None:
    """Writes the record of a dataset's input into its folder."""
    saving.write(folder / INPUT, json.dumps({"digest": digest, "files": found}) + "\n")


def check_input(folder: Path, input: str, found: Files | None, digest: Callable[[], str], *, whole: bool = True) -> None:
    """Raises UserError if the input is not what `folder` was prepared from.

    An input that is gone is said in a line on stderr: what was prepared from it stands.

    Args:
        found: `input_files` of it.
        digest: of its content; called if paths and sizes are the same and times are not.
        whole: all of every file was read, so that another size is another content. Else `digest` decides that too.
    """
    if found is None or not (folder / INPUT).exists():
        return
    if not found:
        print(f"data.input={input!r} is no longer there: going on with {folder}, made from it", file=sys.stderr, flush=True)
        return
    record = _json(folder / INPUT)
    if not ("digest" in record and isinstance(record.get("files"), list)):
        raise UserError(f"{folder / INPUT} is damaged; delete it to go on without comparing data.input={input!r}")
    if record["files"] == found:
        return
    different = _different(record["files"], found)
    if (different and whole) or digest() != record["digest"]:
        said = different or [path for path, *_ in found]
        more = f" and {len(said) - NAMED} more" if len(said) > NAMED else ""
        raise UserError(
            f"data.input={input!r} changed since {folder} was prepared from it ({', '.join(said[:NAMED])}{more}): put it back "
            "as it was, or use another --workdir"
        )
    record_input(folder, found, record["digest"])


def _different(before: Files, now: Files) -> list[str]:
    """What differs in more than times: "PATH is new", "PATH is gone", "PATH has another size"."""
    old, new = ({path: size for path, size, *_ in files} for files in (before, now))
    said = [f"{path} is new" for path in new if path not in old] + [f"{path} is gone" for path in old if path not in new]
    return said + [f"{path} has another size" for path in new if path in old and old[path] != new[path]]


# Damage.


def stands(
    folder: Path,
    standing: Callable[[], Any | None],
    input: str | None,
    found: Callable[[], Files | None],
    digest: Callable[[], str],
    *,
    whole: bool = True,
) -> bool:
    """Whether what was prepared in `folder` is there, undamaged, and made from the input as it is now.

    What is damaged is set aside (lm/damage.py), which a line on stderr says.

    Args:
        standing: what is there, or None; raises Damaged.
        input, found, digest, whole: as for `check_input`; `found` is called if something is there.
    Raises: UserError if the input changed, or if it is gone and what was made from it is damaged.
    """
    damage = None
    try:
        if standing() is None:
            return False
    except Damaged as error:
        damage = error
    files = found()
    if damage and files == []:
        raise UserError(f"{damage.what} and cannot be prepared anew, as data.input={input!r} is no longer there; put it back")
    check_input(folder, input, files, digest, whole=whole)
    if damage:
        beside = set_aside(folder, f".{folder.name}")  # hidden, since it must not be taken for a dataset
        print(f"{damage.what}: it is set aside as {beside} and prepared anew", file=sys.stderr, flush=True)
    return damage is None


def undamaged(standing: Callable[[], Any | None]) -> Any | None:
    """What is there; None also for what is damaged, which process 0 sets aside while others wait."""
    try:
        return standing()
    except Damaged:
        return None


def wait_for(ready: Callable[[], Any | None]) -> Any:
    """Poll the file system until `ready` finds what another process makes there; if that one fails, it ends this one too."""
    while (found := ready()) is None:
        time.sleep(0.2)
    return found
