"""Read the files of a run safely: only regular files inside the folder of runs, of bounded size, as text on a page."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.files.untrusted import content, shown

MOST_LINES = 32 << 20  # bytes of a file of lines that is read whole
TAIL = 1 << 20  # bytes at the end of a longer one
LONGEST_TEXT = 20_000  # characters of a text on the page


class Folder:
    """The folder of a run. roots: real paths of the folders of runs; a link that leads out of all of them is not followed."""

    def __init__(self, path: Path, roots: Sequence[Path]):
        self.path, self._roots = path, roots

    def inside(self, name: str) -> bool:
        """Return whether a file or folder in it lies in one of the folders of runs."""
        real = Path(os.path.realpath(self.path / name))
        return any(real.is_relative_to(root) for root in self._roots)

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return what changes with a file: its time, size and number; () if it is missing or leads out."""
        try:
            found = os.stat(self.path / name)
            return (found.st_mtime_ns, found.st_size, found.st_ino) if self.inside(name) else ()
        except (OSError, ValueError):
            return ()

    def names(self, name: str = "") -> list[str]:
        """Return the names in a folder of it, sorted; [] if it cannot be read or leads out."""
        try:
            return sorted(os.listdir(self.path / name)) if self.inside(name) else []
        except (OSError, ValueError):
            return []

    def lines(self, name: str, faults: list[str]) -> list[dict[str, Any]]:
        """Return the JSON objects of a file of lines; of a large file those of its end. Damaged lines are skipped."""
        if not self.inside(name):
            return []
        try:
            data = self.end(name) if self.stamp(name)[1:2] > (MOST_LINES,) else content(self.path / name, MOST_LINES)
        except FileNotFoundError:
            return []
        except (OSError, UserError) as error:
            faults.append(f"{name} cannot be read: {getattr(error, 'strerror', None) or 'no regular file'}")
            return []
        found = []
        for line in data.split(b"\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                found.append(row)
        return found

    def end(self, name: str, most: int = TAIL) -> bytes:
        """Return the last bytes of a regular file. Raises: OSError; UserError for another kind of file."""
        if not self.inside(name):
            raise UserError(f"{name} leads out of the folder")
        with open(os.open(self.path / name, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            if not os.path.isfile(self.path / name):
                raise UserError(f"{name} is no regular file")
            size = os.fstat(file.fileno()).st_size
            return os.pread(file.fileno(), most, max(0, size - most))


def plain(text: object, most: int = LONGEST_TEXT) -> str:
    """Return a text for the page: line breaks stay, other control characters and those that turn text are spelt out."""
    text = str(text)
    more = len(text) - most
    lines = (shown(line.replace("\t", "    ")) for line in text[:most].splitlines())
    return "\n".join(lines) + (f" … ({more:,} more characters)" if more > 0 else "")
