"""Write and compare checksums of the files of a folder.

checksums.json in the folder holds {"xxh3_128": {file: [bytes, digest in hex]}}. It lists the files that exist when it is
written; files added later are ignored. A file that the disk returned otherwise than it was written is named under "wrong".
"""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from lm.errors import UserError
from lm.files import untrusted as strangers

NAME, ALGORITHM, WRONG = "checksums.json", "xxh3_128", "wrong"
PART = "checksums.of-{}.json"  # of one process, until `write` merges them
AT_ONCE = 8  # files
CHUNK = 8 << 20  # bytes

Sums = dict[str, list]


def sums(folder: Path, names: Iterable[str], from_disk: bool = False) -> Sums:
    """Return {name: [bytes, digest]} of files of `folder`, read several at a time.

    from_disk: write each file through to the disk and drop it from the kernel's memory first, where the system can.
    """

    def one(name: str) -> list:
        digest, buffer, size = xxhash.xxh3_128(), bytearray(CHUNK), 0
        with open(folder / name, "rb", buffering=0) as file:
            if from_disk and hasattr(os, "posix_fadvise"):
                os.fsync(file)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
                size += count
        return [size, digest.hexdigest()]

    names = sorted(names)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def files(folder: Path) -> set[str]:
    """Return the relative names of all files under `folder`, except checksum files."""
    found = (Path(root, name).relative_to(folder) for root, _, names in os.walk(folder) for name in names)
    return {path.as_posix() for path in found if not path.name.startswith("checksums.")}


def write_part(folder: Path, within: str, process: int) -> None:
    """Write the checksums of the files in `folder`/`within`; `write` merges them later.

    So each of several processes reads only the files that it has written itself. It reads them twice, the second time from the
    disk; a difference is noted in the file, and `write` returns it.
    """
    own = {name for name in files(folder) if name.startswith(f"{within}/")}
    found, wrong = _verified(folder, own)
    _put(folder / PART.format(process), found, wrong)


def write(folder: Path) -> str | None:
    """Write checksums.json for all files under `folder`. Files covered by `write_part` are not read again.

    Return a description of the first file that the disk does not return as it was written, or None. `damage` returns it too.
    """
    known: Sums = {}
    wrong = None
    parts = list(folder.glob(PART.format("*")))
    for part in parts:
        content = json.loads(part.read_text())
        known |= content[ALGORITHM]
        wrong = wrong or content.get(WRONG)
    rest, wrong_too = _verified(folder, files(folder) - known.keys())
    wrong = wrong or wrong_too
    _put(folder / NAME, known | rest, wrong)
    for part in parts:
        part.unlink()
    return wrong


def _verified(folder: Path, names: Iterable[str]) -> tuple[Sums, str | None]:
    """Return the checksums of files that were just written, and a description of the first that reads otherwise from disk."""
    found = sums(folder, names)
    again = sums(folder, found, from_disk=True)
    return found, next((f"{name} was written wrongly" for name, one in again.items() if one != found[name]), None)


def read(folder: Path) -> Sums | None:
    """Return the content of checksums.json; None if the file is missing.

    Raises: ValueError if it is incomplete, or names a file outside of the folder.
    """
    try:
        found = strangers.read_json(folder / NAME, strangers.MAX_BYTES)[ALGORITHM]
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, UserError) as error:
        raise ValueError(f"no {error}") from None
    for name, entry in found.items() if isinstance(found, dict) else [("", None)]:
        if not strangers.is_plain(name) or not isinstance(entry, list) or list(map(type, entry)) != [int, str]:
            raise ValueError(f"{strangers.short(name)} is no file of it")
        try:
            strangers.check_inside(folder, folder / name)
        except UserError as error:
            raise ValueError(str(error)) from None
    return found


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """Return a description of the first file of `folder` that differs from checksums.json, or None.

    part, parts: compare only every parts-th file, so that several processes can share the work.
    Raises: FileNotFoundError if there is no checksums.json.
    """
    try:
        written = read(folder)
    except ValueError:
        return f"{NAME} is torn"
    if written is None:
        raise FileNotFoundError(folder / NAME)
    if wrong := json.loads((folder / NAME).read_text()).get(WRONG):
        return wrong
    for name, (size, _) in written.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (there := (folder / name).stat().st_size) != size:
            return f"{name} has {there:,} bytes instead of {size:,}"
    by_size = sorted(written, key=lambda name: (written[name][0], name))  # so that large files are spread over the parts
    found = sums(folder, by_size[part::parts])
    return next((f"{name} is not what was written" for name, one in found.items() if one != written[name]), None)


def fingerprint(folder: Path, names: Iterable[str]) -> str:
    """Return one digest of the names and contents of these files. Files with a checksum are not read."""
    known = read(folder) or {}
    names = set(names)
    found = {name: known[name] for name in names & known.keys()} | sums(folder, names - known.keys())
    return xxhash.xxh3_128(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _put(path: Path, found: Sums, wrong: str | None = None) -> None:
    content = {ALGORITHM: found} | ({WRONG: wrong} if wrong else {})
    with open(path, "w") as file:
        file.write(json.dumps(content, indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
