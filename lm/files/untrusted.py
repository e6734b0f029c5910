"""Read what a stranger wrote: regular files inside their folder, of bounded size; and show a stranger's text on one line.

JSON takes at most MAX_BYTES of text and MAX_VALUES values, that is under 2 GB of memory; most files have much smaller limits.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lm.errors import UserError

MAX_BYTES = 256 << 20  # of a file that is read whole: the largest tokenizer.json has 35 MB
MAX_VALUES = 10_000_000  # of JSON: the largest tokenizer.json has 2 million
SETTINGS = 8 << 20  # bytes of a file of settings
MAX_REPEATS = 6  # of a regular expression
SHOWN = 80  # characters of a value in an error
# Control characters, and those that turn the direction of text or break a line (Unicode Annex 9; Boucher and Anderson 2021,
# "Trojan Source").
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]")


def shown(text: object) -> str:
    r"""Return a text on one line without characters that act on a terminal or a page: \x1b, \u202e and so on are spelt out."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def short(value: object) -> str:
    """Return the repr of a value for an error, cut after SHOWN characters."""
    try:
        text = repr(value[: 2 * SHOWN] if isinstance(value, str | list | tuple) else value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list in itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def content(path: str | os.PathLike, most: int | None = MAX_BYTES) -> bytes:
    """Return the bytes of a file. most: None reads a file of any size, such as a log of our own.

    Raises: OSError as open does; UserError for a pipe or a device, which might never end, and for more than `most` bytes.
    """
    kind = os.stat(path)
    if stat.S_ISREG(kind.st_mode):
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            kind = os.fstat(file.fileno())
            if stat.S_ISREG(kind.st_mode) and (most is None or kind.st_size <= most):
                found = file.read(-1 if most is None else most + 1)
                if most is None or len(found) <= most:
                    return found
    if stat.S_ISDIR(kind.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind.st_mode):
        raise UserError(f"{path} is no regular file but a pipe, a socket or a device: put a file in its place")
    raise UserError(
        f"{path} has {kind.st_size:,} bytes, and at most {most:,} are read of such a file: it is damaged or hostile"
    )


def parsed(text: str | bytes, most: int = MAX_VALUES) -> Any:
    """Return the value of JSON. Raises ValueError, also for deep nesting, a key that is there twice, and too many values."""
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    values = sum(map(text.count, ",:[{"))
    if values > most:
        raise ValueError(f"it has {values:,} values, and at most {most:,} are read")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: str | os.PathLike, most: int = SETTINGS) -> Any:
    """Return the value in a JSON file. Raises the errors of `content` and `parsed`."""
    return parsed(content(path, most))


def check_inside(folder: Path, file: Path) -> None:
    """Raise UserError if a file lies outside of its folder: by a path with "..", an absolute path, or a link.

    In the cache of the Hugging Face hub, snapshots/COMMIT/FILE is a link to blobs/HASH of the same model, which is allowed.
    """
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(file))
    hub = root.parents[1] / "blobs" if len(root.parents) > 1 and root.parent.name == "snapshots" else None
    if root not in real.parents and real.parent != hub:
        raise UserError(f"{file} leads out of {folder}, to {real}: files of a model must lie in its folder; copy it there")


def is_plain(name: Any) -> bool:
    """Return whether this is the relative path of a file below a folder, without "..": a/b.json."""
    return isinstance(name, str) and 0 < len(name) < 1024 and not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


def check_pattern(text: Any) -> None:
    """Raise ValueError if this is no regular expression, or one whose search may take exponential time.

    Only a single character or class may repeat, so that the time grows with a power of a name's length.
    """
    from re import _constants as ops
    from re import _parser

    def check(parts: Collection) -> int:
        """Return the number of repeats."""
        count = 0
        for op, value in parts:
            if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
                _, most, inner = value
                if most > 1 and (len(inner) != 1 or inner[0][0] not in (ops.LITERAL, ops.NOT_LITERAL, ops.IN, ops.ANY)):
                    raise ValueError("only single characters and classes may repeat")
                count += (most > 1) + check(inner)
            elif op is ops.SUBPATTERN:
                count += check(value[-1])
            elif op is ops.BRANCH:
                count += max(map(check, value[1]))
            elif op in (ops.ASSERT, ops.ASSERT_NOT):
                count += check(value[1])
            elif op not in (ops.LITERAL, ops.NOT_LITERAL, ops.IN, ops.ANY, ops.AT):
                raise ValueError(f"{op} is not allowed")
        return count

    if not isinstance(text, str) or len(text) > 100_000:
        raise ValueError("it is no text, or too long")
    try:
        repeats = check(_parser.parse(text))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if repeats > MAX_REPEATS:
        raise ValueError(f"it has more than {MAX_REPEATS} repeats")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {short(twice)} is there twice")
    return found
