"""What a run of a recipe has to do: the units of its input, its stages, and names of results that say what they depend on.

A result is named by a hash of everything that it depends on: the unit's files, the options of the stages before it that rewrite
the text, its own options, and the source code of its stage. So a result that exists is right, and a changed option, rule or file
makes new only what depends on it.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.recipe.rules import Rule
from data.recipe.stages import STAGES, Stage
from lm.errors import UserError

UNIT_BYTES, UNIT_FILES = 32 << 20, 4096  # a unit ends with the file that reaches one of these


class Unit(NamedTuple):
    """Files that one worker reads. files: (path, id in its source). name: NUMBER-HASH, of the files' ids, sizes and times."""

    name: str
    number: int
    files: tuple[tuple[str, str], ...]
    bytes: int


def units(files: Iterable[tuple[str, str]]) -> list[Unit]:
    """Group (path, id), in order, into units."""
    found, some, size, state = [], [], 0, []

    def end() -> None:
        name = f"{len(found):05d}-{digest(state)}"
        found.append(Unit(name, len(found), tuple(some), size))

    for path, id in files:
        try:
            about = os.stat(path)
            state.append((id, about.st_size, about.st_mtime_ns))
            size += about.st_size
        except OSError:  # the reader will say why
            state.append((id, -1, -1))
        some.append((path, id))
        if size >= UNIT_BYTES or len(some) >= UNIT_FILES:
            end()
            some, size, state = [], 0, []
    if some:
        end()
    return found


class Planned(NamedTuple):
    """A stage of a recipe. key: names its results. rules: those on its columns."""

    name: str
    stage: Stage | None
    options: dict[str, Any]
    key: str
    rules: tuple[Rule, ...]

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.key}"


def stages(names: Sequence[str], options: Mapping[str, Mapping], rules: Sequence[Rule], first: Planned) -> list[Planned]:
    """Return the stages in order, behind the one that reads. Raises: UserError for an unknown, doubled or missing stage."""
    planned, text, left = [first], first.key, {rule.column: rule for rule in rules}
    for name in names:
        if name not in STAGES:
            raise UserError(f"stages: no stage {name!r}; there are {', '.join(STAGES)}")
        if any(name == other.name for other in planned):
            raise UserError(f"stages: {name!r} is there twice")
        stage, own = STAGES[name], dict(options.get(name, {}))
        key = digest((text, own, code(stage.module)))
        planned.append(Planned(name, stage, own, key, ()))
        if stage.rewrites:
            text = key
    return planned


def digest(value: Any) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def code(module: str) -> str:
    """Return a digest of the source of a module and of all modules of `data` that it imports, directly or not."""
    seen: dict[str, str] = {}
    _collect(module, seen)
    return digest(sorted(seen.items()))


def _collect(module: str, seen: dict[str, str]) -> None:
    spec = importlib.util.find_spec(module)
    if module in seen or spec is None or spec.origin is None:
        return
    source = Path(spec.origin).read_text(encoding="utf-8")
    tree = ast.parse(source)
    seen[module] = ast.dump(tree)  # comments and layout decide nothing
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{name}" for name in names)]
        for name in names:
            if name.startswith("data.") and _is_module(name):
                _collect(name, seen)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
