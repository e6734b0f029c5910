"""Read documents from the Python installation that runs this program: a corpus that every machine has.

The standard library and the installed packages hold tens of megabytes of code, docstrings and documentation. This is
enough to train a small model without a download.
"""

import ast
import dataclasses
import functools
import inspect
import logging
import os
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata

import xxhash

from data.sources.source import Document, Source

_LOG = logging.getLogger(__name__)

MAX_FILE_BYTES = 1_000_000  # a longer file is almost always a generated table

_DOCUMENTATION = (".md", ".rst", ".txt")
_MACHINE_MADE = {
    *("entry_points.txt", "top_level.txt", "requires.txt", "SOURCES.txt", "namespace_packages.txt"),
    *("dependency_links.txt", "not-zip-safe.txt", "INSTALLER.txt", "TAGS.txt"),
}
# Common licence names of packages, and their SPDX identifiers.
_SPDX = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


@dataclasses.dataclass(frozen=True)
class _File:
    id: str  # "stdlib/json/decoder.py" or "site-packages/jax/numpy/__init__.py"
    path: str
    origin: str
    licence: str | None


def open_installation() -> list[Source]:
    """Return the sources `code`, `docstrings` and `docs`.

    Files are ordered by a hash of their ids, which is the same on every machine. So a truncated source is a random
    sample, not the packages that begin with "a". A file's code and its docstrings share a split key. Files that are
    not UTF-8, not Python or too long are skipped and counted in the log.
    """
    return [
        Source("code", functools.partial(_read, "code", (".py",), _code)),
        Source("docstrings", functools.partial(_read, "docstrings", (".py",), _docstrings)),
        Source("docs", functools.partial(_read, "docs", (*_DOCUMENTATION, "METADATA"), _docs)),
    ]


def files() -> list[tuple[str, str]]:
    """Return (id, path) of all files of the installation, in the order in which the sources read them."""
    return [(file.id, file.path) for file in _files()]


class _Skip(Exception):
    """Raised with the reason why a file gives no document."""


def _read(name: str, endings: tuple[str, ...], make: Callable[[_File, str], str], /) -> Iterator[Document]:
    skipped = Counter()
    kept = 0
    for file in _files():
        if not file.path.endswith(endings):
            continue
        try:
            if os.path.getsize(file.path) > MAX_FILE_BYTES:
                raise _Skip("longer than 1 MB")
            with open(file.path, "rb") as stream:
                content = stream.read().decode("utf-8-sig")
            text = make(file, content)
            text.encode()  # a docstring can hold "\ud800", which is no text
        except _Skip as reason:
            skipped[str(reason)] += 1
            continue
        except UnicodeError:
            skipped["not UTF-8"] += 1
            continue
        except OSError:
            skipped["unreadable"] += 1
            continue
        if text and not text.isspace():
            kept += 1
            key = None if make is _docs else xxhash.xxh3_128_hexdigest(content.encode())
            about = {"programming_language": "Python"} if make is _code else None
            yield Document(file.id, text, file.origin, file.licence, key, metadata=about)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "none"
    _LOG.info("source %s: %d files read; passed over: %s", name, kept, reasons)


# The text of a file.


def _code(file: _File, content: str) -> str:
    return content


def _docstrings(file: _File, content: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # templates, Python 2, NUL bytes
        raise _Skip("not Python") from error
    return "\n\n".join(_sections(tree, ()))


def _sections(node: ast.AST, names: tuple[str, ...]) -> Iterator[str]:
    # Headings omit the module's name, so that vendored copies of a package are exact duplicates.
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if not isinstance(node, ast.Module):
            names = (*names, node.name)
        if doc := ast.get_docstring(node, clean=False):
            doc = inspect.cleandoc(doc).strip()
            if doc:
                yield f"## {'.'.join(names)}\n\n{doc}" if names else doc
    for child in ast.iter_child_nodes(node):
        # Definitions are statements: no expression holds one, and most of a tree is expressions.
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _sections(child, names)


def _docs(file: _File, content: str) -> str:
    if os.path.basename(file.path) == "METADATA":
        description = content.replace("\r\n", "\n").partition("\n\n")[2]
        return "" if description.strip() in ("", "UNKNOWN") else description
    if file.path.endswith(".txt") and not _is_prose(content):
        raise _Skip("lists and tables")
    return content


def _is_prose(text: str) -> bool:
    """Return whether a .txt file is prose, not a list or table: several words per line, mostly letters."""
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    words = text.split()
    letters = sum(map(str.isalpha, text))
    return len(words) >= 4 * len(lines) and letters >= 0.6 * sum(map(len, words))


# Files and their owners.


@functools.cache  # both passes over a source must see the same files
def _files() -> tuple[_File, ...]:
    paths = sysconfig.get_paths()
    site = list(dict.fromkeys([paths["purelib"], paths["platlib"]]))
    owners = _owners(site)
    python = f"Python {sysconfig.get_python_version()} standard library"
    files = {}
    for path in _walk(paths["stdlib"]):
        id = f"stdlib/{os.path.relpath(path, paths['stdlib'])}"
        files[id] = _File(id, path, python, "PSF-2.0")
    for root in site:
        for path in _walk(root):
            id = f"site-packages/{os.path.relpath(path, root)}"
            files.setdefault(id, _File(id, path, *owners.get(os.path.normpath(path), ("site-packages", None))))
    return tuple(sorted(files.values(), key=lambda file: xxhash.xxh3_64_intdigest(os.fsencode(file.id))))


def _walk(root: str) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in ("__pycache__", "site-packages", "dist-packages")]
        for name in names:
            if name == "METADATA" or name.endswith((".py", *_DOCUMENTATION)) and name not in _MACHINE_MADE:
                yield os.path.join(folder, name)


def _owners(site: list[str]) -> dict[str, tuple[str, str | None]]:
    """Return a map from path to (name and version, licence) of the distribution that installed it."""
    owners = {}
    for distribution in metadata.distributions(path=site):
        owner = f"{distribution.metadata['Name']} {distribution.version}", _licence(distribution.metadata)
        # RECORD is read as text, because `distribution.files` builds an object for each of its 100,000 lines.
        root = str(distribution.locate_file(""))
        for line in (distribution.read_text("RECORD") or "").splitlines():
            owners[os.path.normpath(os.path.join(root, line.split(",", 1)[0]))] = owner
    return owners


def _licence(about: metadata.PackageMetadata) -> str | None:
    if expression := about.get("License-Expression"):
        return expression
    written = (about.get("License") or "").strip()
    if written and "\n" not in written and len(written) <= 40:  # some packages put the whole licence here
        return _SPDX.get(written, written)
    for classifier in about.get_all("Classifier") or []:
        if classifier.startswith("License ::"):
            name = classifier.rpartition(" :: ")[2]
            return _SPDX.get(name, name)
    return None
