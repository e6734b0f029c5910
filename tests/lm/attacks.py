"""What a stranger can do to a file, as functions that do it to a file of a folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path

HUGE, DEEP = 1 << 60, "[" * 100_000
ESCAPES = "\x1b[2J\r\u202e\u2066evil\x07"
Attack = Callable[[Path], None]


def edited(name: str, change: Callable[[dict], object]) -> Attack:
    """Change the JSON in a file, in place."""

    def attack(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return attack


def text(name: str, content: str | bytes) -> Attack:
    return lambda folder: void((folder / name).write_bytes(content if isinstance(content, bytes) else content.encode()))


def void(_: object) -> None:
    return None


def pipe(name: str) -> Attack:
    def attack(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return attack


def link(name: str, to: str) -> Attack:
    """Replace a file by a link. to: a path; SECRET is a readable file beside the folder with the same content."""

    def attack(folder: Path) -> None:
        target = folder.parent / "secret" if to == "SECRET" else Path(to)
        if to == "SECRET":
            (folder / name).rename(target)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return attack


def sparse(name: str, size: int, begin: bytes = b"") -> Attack:
    """A file of a large size that takes no space on the disk."""

    def attack(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.write(begin)
            file.truncate(size)

    return attack
