"""Find files below a folder or by a glob, in order, without following loops of links."""

import fnmatch
import glob
import os
from collections.abc import Callable, Iterator


def below(root: str) -> Iterator[str]:
    """Yield the paths of all entries below `root` that are no folders, in order of names, folder after folder.

    Hidden names are skipped, and links to folders are not followed. Memory grows with the largest folder, not with the tree.
    """
    yield from (path for path, is_folder in entries(root) if not is_folder)


def entries(
    root: str, *, follow: bool = False, enter: Callable[[str], bool] = lambda folder: True
) -> Iterator[tuple[str, bool]]:
    """Yield (path, whether it is a folder) below `root`, a folder before its content, in order of names.

    Hidden names are skipped, as are folders that cannot be read. Links to other than folders are yielded.

    Args:
        follow: also read folders behind links, each folder at most once; otherwise links to folders are skipped.
        enter: whether to read the content of this folder.
    """
    seen = {_identity(root)} if follow else set()
    stack = [_listed(root)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            continue
        is_folder = _is_folder(entry, follow)
        if not is_folder and not follow and entry.is_symlink() and os.path.isdir(entry.path):
            continue
        if is_folder and follow:
            identity = _identity(entry.path)
            if identity in seen:
                continue
            seen.add(identity)
        yield entry.path, is_folder
        if is_folder and enter(entry.path):
            stack.append(_listed(entry.path))


def matches(pattern: str) -> list[str]:
    """Return what `glob.glob(pattern, recursive=True)` returns, sorted, but `**` reads each folder at most once."""
    parts = pattern.split("/")
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    at = parts.index("**")
    head, rest = "/".join(parts[:at]), [part for part in parts[at:] if part]
    if at and not head:
        head = "/"
    roots = sorted(glob.glob(head)) if head else ["."]
    found = {root for root in roots if rest == ["**"] and head}
    for root in filter(os.path.isdir, roots):
        for path, _ in entries(root, follow=True):
            relative = os.path.relpath(path, root)
            if matches_parts(relative.split(os.sep), rest):
                found.add(path if head else relative)
    return sorted(found)


def matches_parts(names: list[str], parts: list[str]) -> bool:
    """Return whether the names of a path match the parts of a pattern, of which `**` is any number of names."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(matches_parts(names[k:], parts[1:]) for k in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and matches_parts(names[1:], parts[1:])


def _listed(folder: str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return iter(sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name))
    except OSError:
        return iter(())


def _is_folder(entry: os.DirEntry, follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:  # a loop of links
        return False


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
