"""Code of the user's own files in a run: an objective, an optimizer, parts of the model. A key names one as FILE.py:FUNCTION.

A run keeps a copy of each file in WORKDIR/code, which its report shows, and goes on only with the same text. Whoever opens the
model of a workdir computes by the copies, if their text is trusted on this machine: its folder may come from a stranger, so the
user's cache lists the SHA-256 of the texts that were named to train with.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from lm.config import ModelConfig
from lm.errors import UserError
from lm.files import saving
from lm.files.compile_cache import home
from lm.files.user_files import check_file, failing, from_file, is_own, parted

PARTS = {"activation": "FILE.py:FUNCTION", "feed_forward": "FILE.py:CLASS", "attention": "FILE.py:CLASS"}  # keys of the model
FORMS = {"objective": "FILE.py:FUNCTION", "optimizer.name": "FILE.py:FUNCTION"}
FORMS |= {f"model.{part}": form for part, form in PARTS.items()}
TRUSTED = "trusted_code"  # in the user's cache: one SHA-256 a line
CODE = "code"  # folder in a workdir: objective.py, optimizer.name.py, model.activation.py

Config = ml_collections.ConfigDict | Mapping[str, Any]


def called(key: str, value: str, *arguments: Any) -> Any:
    """Return the result of the function that `value` names. Raises UserError, with file and line, if it fails."""
    function = from_file(*parted(key, value, FORMS[key]), key, FORMS[key])
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


def check_names(config: Config) -> None:
    """Raise UserError if a file, or the name in it, is missing. Runs none of the code, which may load JAX."""
    objective = {"objective": value} if (value := config.get("objective")) else {}
    for key, value in (_values(config) | objective).items():
        check_file(*parted(key, value, FORMS[key]), key, FORMS[key])


def check_own_code(config: Config, workdir: Path) -> None:
    """Trust the files that a config names. Its user has named them, or has trusted them before (`opened`).

    Raises: UserError if one is missing, or differs from that of the run in the workdir; the difference is printed first.
    """
    for key, value in _values(config).items():
        path, copy = _file(value), _copy(workdir, key)
        from_file(*parted(key, value, FORMS[key]), key, FORMS[key])
        if copy.exists() and (before := copy.read_text(encoding="utf-8")) != (now := path.read_text(encoding="utf-8")):
            for line in difflib.unified_diff(before.splitlines(), now.splitlines(), str(copy), str(path), lineterm="", n=1):
                print(line, flush=True)
            raise UserError(
                f"{key}: {path} has changed since the run began, as shown: restore {copy}, or use another --workdir"
            )
        _trust(path)


def keep_own_code(config: Config, workdir: Path) -> None:
    """Copy the files that a config names to the workdir."""
    for key, value in _values(config).items():
        (workdir / CODE).mkdir(parents=True, exist_ok=True)
        saving.write(_copy(workdir, key), _file(value).read_text(encoding="utf-8"))


def own_code(workdir: Path) -> dict[str, str]:
    """Return the text of each file that the run in the workdir was made with, by key."""
    copies = {key: _copy(workdir, key) for key in FORMS}
    return {key: copy.read_text(encoding="utf-8", errors="replace") for key, copy in copies.items() if copy.is_file()}


def own_parts(model: ModelConfig) -> dict[str, str]:
    """Return the values of a model's keys that name files, by key."""
    return _values({"model": {part: getattr(model, part) for part in PARTS}})


def opened(model: ModelConfig, workdir: Path | None = None) -> ModelConfig:
    """Return the config of a model with the copies in its workdir, if any, in place of the files that it was made with.

    Raises: UserError if the text of a file is not trusted.
    """
    paths = {}
    for key, value in own_parts(model).items():
        path = _file(value)
        if workdir and (copy := _copy(workdir, key)).is_file():
            path = copy
        _check_trusted(key, path)
        paths[key.removeprefix("model.")] = f"{path}:{value.rpartition(':')[2]}"
    return dataclasses.replace(model, **paths) if paths else model


def _values(config: Config) -> dict[str, str]:
    """Return the values that name files, by key."""
    values = {}
    for key in FORMS:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) or {}
        if value and is_own(value):
            values[key] = value
    return values


def _file(value: str) -> Path:
    return Path(value.rpartition(":")[0])


def _copy(workdir: Path, key: str) -> Path:
    return workdir / CODE / f"{key}.py"


def _trust(path: Path) -> None:
    """Trust the text of a file on this machine. Without a cache to write to, nothing is remembered."""
    with contextlib.suppress(OSError, RuntimeError):
        if (digest := _digest(path)) not in _trusted():
            home().mkdir(parents=True, exist_ok=True)
            with (home() / TRUSTED).open("a", encoding="utf-8") as file:
                file.write(f"{digest}\n")


def _check_trusted(key: str, path: Path) -> None:
    """Raise UserError unless the text of the file is trusted."""
    if not path.is_file():
        raise UserError(f"{key}: the model computes by a file, and there is no {path}: restore it")
    if (digest := _digest(path)) not in _trusted():
        raise UserError(
            f"{key}: the model computes by {path}, which is not trusted on this machine. Read that file; if you trust it, run: "
            f"mkdir -p {shlex.quote(str(home()))} && echo {digest} >> {shlex.quote(str(home() / TRUSTED))}"
        )


def _trusted() -> set[str]:
    with contextlib.suppress(OSError, RuntimeError):
        return set((home() / TRUSTED).read_text(encoding="utf-8").split())
    return set()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
