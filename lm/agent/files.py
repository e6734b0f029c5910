"""Tools for the files of one folder: list, search, read and write. They cannot leave it, and do not see hidden files.

A path is taken relative to the folder. Its links are followed first, so a link that leads out of the folder is refused too.
"""

import fnmatch
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.agent.tools import AgentTool, answering, schema
from lm.errors import UserError
from lm.files import saving
from lm.files.untrusted import content

MAX_FILES, MAX_HITS = 10_000, 40
MAX_BYTES = 4 << 20  # of a file that is read
LIST = schema("list_files", "Lists the files whose path matches a pattern, such as *.txt.", pattern="string")
SEARCH = schema("search_files", "Finds lines with a text in all files, ignoring case.", ("text",), text="string")
READ = schema("read_file", "Returns lines of a file; first_line counts from 1.", ("path",), path="string", first_line="integer")
WRITE = schema("write_file", "Writes a file, and replaces one of this name.", ("path", "text"), path="string", text="string")


def file_tools(folder: Path) -> list[AgentTool]:
    """Return list_files, search_files, read_file (risk: reads) and write_file (writes) for one folder."""
    root = folder.resolve()
    made: tuple[tuple[dict, Callable[..., str], str], ...] = (
        (LIST, lambda pattern="*": listing(root, pattern), "reads"),
        (SEARCH, lambda text: found_lines(root, text), "reads"),
        (READ, lambda path, first_line=1: read_lines(root, path, first_line), "reads"),
        (WRITE, lambda path, text: written(root, path, text), "writes"),
    )
    return [AgentTool(schema, answering(run), risk) for schema, run, risk in made]


def inside(root: Path, path: str) -> Path:
    """Return the real path of a file of the folder. Raises: ValueError for one outside of it, or a hidden one."""
    if "\0" in path:
        raise ValueError("a path must not hold a zero character")
    try:
        found = (root / path).resolve()
    except (OSError, RuntimeError):  # the second is Python 3.11's and 3.12's word for it
        raise ValueError(f"there is no file {path}: its name is too long, or its links lead in a circle") from None
    if not found.is_relative_to(root) or found == root:
        raise ValueError(f"{path} is outside the folder")
    if any(part.startswith(".") for part in found.relative_to(root).parts):
        raise ValueError(f"there is no file {path}")
    return found


def paths(root: Path) -> Iterator[Path]:
    """Yield the files that are not hidden, by name, at most MAX_FILES. Links are left out."""
    count = 0
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            count += 1
            if count > MAX_FILES:
                return
            yield path


def listing(root: Path, pattern: str) -> str:
    names = [path.relative_to(root).as_posix() for path in paths(root)]
    return "\n".join(name for name in names if fnmatch.fnmatch(name, pattern)) or "(no file)"


def found_lines(root: Path, text: str) -> str:
    """Return lines "path:number: line" that contain `text`, at most MAX_HITS."""
    if not text.strip():
        raise ValueError("the text to search for is empty")
    hits: list[str] = []
    for path in paths(root):
        try:
            lines = _text(path).splitlines()
        except (ValueError, UserError, OSError):
            continue
        name = path.relative_to(root).as_posix()
        hits += [f"{name}:{n}: {line.strip()[:200]}" for n, line in enumerate(lines, 1) if text.casefold() in line.casefold()]
        if len(hits) > MAX_HITS:
            return "\n".join([*hits[:MAX_HITS], "(there are more)"])
    return "\n".join(hits) or "(no line)"


def read_lines(root: Path, path: str, first_line: int) -> str:
    if first_line < 1:
        raise ValueError("first_line counts from 1")
    text = _text(inside(root, path))
    return "".join(text.splitlines(keepends=True)[first_line - 1 :]) or "(no more lines)"


def written(root: Path, path: str, text: str) -> str:
    target = inside(root, path)
    if target.is_dir():
        raise ValueError(f"{path} is a folder")
    saving.write(target, text)
    return f"wrote {len(text)} characters to {target.relative_to(root).as_posix()}"


def _text(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"there is no file {path.name}")
    try:
        return content(path, MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is no text") from None
