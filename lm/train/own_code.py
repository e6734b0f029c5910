"""Functions of the user's own files that shape a training: an objective, an optimizer. A key names one as FILE.py:FUNCTION.

A run keeps a copy of each file in WORKDIR/code, which its report shows, and goes on only with the same text.
"""

import contextlib
import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from lm.errors import UserError
from lm.files import saving
from lm.files.user_files import check_file, failing, from_file, functions

KEYS = ("objective", "optimizer.name")
FORM = "FILE.py:FUNCTION"
CODE = "code"  # folder in a workdir: objective.py, optimizer.name.py


def is_own(value: str) -> bool:
    """Return whether the value of a key names a function of a file."""
    return ".py" in value


def called(key: str, value: str, *arguments: Any) -> Any:
    """Return the result of the function that `value` names. Raises UserError, with file and line, if it fails."""
    function = _function(key, value)
    with contextlib.suppress(ValueError):  # of a callable without a signature
        signature = inspect.signature(function)
        try:
            signature.bind(*arguments)
        except TypeError as error:
            how = "with the section optimizer of the config" if arguments else "without arguments"
            name = value.rpartition(":")[2]
            raise UserError(
                f"{key}={value}: {error}: {name}{signature} is called {how} and returns the {key.partition('.')[0]}, as "
                "docs/extend.md shows"
            ) from None
    with failing(f"{key}={value}"):
        return function(*arguments)


def check_own_code(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Raise UserError if a file is missing, or differs from that of the run in the workdir; the difference is printed first."""
    for key, path in _files(config).items():
        copy = workdir / CODE / f"{key}.py"
        _function(key, _value(config, key))
        if not copy.exists() or (before := copy.read_text(encoding="utf-8")) == (now := path.read_text(encoding="utf-8")):
            continue
        for line in difflib.unified_diff(before.splitlines(), now.splitlines(), str(copy), str(path), lineterm="", n=1):
            print(line, flush=True)
        raise UserError(f"{key}: {path} has changed since the run began, as shown: restore {copy}, or use another --workdir")


def keep_own_code(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Copy the files to the workdir."""
    for key, path in _files(config).items():
        (workdir / CODE).mkdir(parents=True, exist_ok=True)
        saving.write(workdir / CODE / f"{key}.py", path.read_text(encoding="utf-8"))


def own_code(workdir: Path) -> dict[str, str]:
    """Return the text of each file that the run in the workdir was made with, by key."""
    copies = {key: workdir / CODE / f"{key}.py" for key in KEYS}
    return {key: copy.read_text(encoding="utf-8", errors="replace") for key, copy in copies.items() if copy.is_file()}


def check_names(config: ml_collections.ConfigDict) -> None:
    """Raise UserError if a file, or the function in it, is missing. Runs none of the code, which may load JAX."""
    for key in KEYS:
        value = _value(config, key)
        if value and (is_own(value) or key == "objective"):
            path, name = _parted(key, value)
            check_file(path, name, key, FORM)


def _function(key: str, value: str) -> Callable:
    path, name = _parted(key, value)
    return from_file(path, name, key, FORM)


def _parted(key: str, value: str) -> tuple[Path, str]:
    """Return the file and the function that a value names. Raises: UserError if it names no function."""
    path, _, name = value.rpartition(":")
    if not path:
        own = functions(Path(value))
        hint = f", such as --config.{key}={value}:{own[0]}" if own else ""
        raise UserError(f"{key}={value} names no function: write it as {FORM}{hint}")
    return Path(path), name


def _files(config: ml_collections.ConfigDict) -> dict[str, Path]:
    values = {key: _value(config, key) for key in KEYS}
    return {key: Path(value.rpartition(":")[0]) for key, value in values.items() if is_own(value)}


def _value(config: ml_collections.ConfigDict, key: str) -> str:
    return config.optimizer.name if key == "optimizer.name" else config.get("objective") or ""
