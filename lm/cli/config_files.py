"""Find the file of --config, load it, tell which verb its config is for, and list its keys."""

import difflib
import inspect
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from lm.errors import UserError, runnable, windows_hint

HOME = Path(__file__).parents[2]  # the clone: verbs and configs/
USUAL = {
    "curate": "configs/curate/fineweb.py",
    "train": "configs/train/tiny.py",
    "align": "configs/align/sft.py",
    "evaluate": "configs/evaluate/default.py",
    "serve": "configs/serve/default.py",
}  # a config to begin with, for each verb


def find(name: str, verb: str) -> str:
    """Return the path of a config file, with its argument if `name` is FILE:ARGUMENT.

    A name without a file is also looked for in configs/ and in configs/VERB, here and in the clone: tiny, tiny.py and
    train/tiny mean configs/train/tiny.py. Last comes a file of this name for another verb.

    Raises: UserError with the nearest name.
    """
    file, colon, argument = name.partition(":")
    if Path(file).is_file():
        return name
    if Path(file).is_dir():
        own = ", ".join(str(path) for path in sorted(Path(file).glob("*.py")) if path.stem != "__init__")
        raise UserError(f"--config={name}: a folder; name " + (f"one of {own}" if own else f"a file such as {_usual(verb)}"))
    folders = [root / "configs" for root in (Path(), HOME)]
    places = [place for folder in folders for place in (folder.parent, folder, folder / verb)]
    for other in [*places, *(folder / other for other in USUAL for folder in folders)]:
        for ending in (".py", ""):
            path = other / (file.removesuffix(".py") + ending)
            if file and path.is_file() and path.suffix == ".py" and (path.resolve().parent != HOME or path.stem not in USUAL):
                return f"{path}{colon}{argument}"
    raise UserError(f"--config={name}: no such file{windows_hint(name) or _nearest(file, verb)}")


def _nearest(file: str, verb: str) -> str:
    root = Path() if Path("configs").is_dir() else HOME
    files = sorted(path for path in (root / "configs").glob("*/*.py") if path.name != "__init__.py")
    files.sort(key=lambda path: path.parent.name != verb)  # its own come first
    if file.startswith("configs/"):
        near = difflib.get_close_matches(file, list(map(str, files)), n=1, cutoff=0.8)
    elif file in USUAL:  # the name of a verb
        near = [_usual(verb)]
    else:
        near = difflib.get_close_matches(Path(file).stem, [path.stem for path in files], n=1, cutoff=0.5)
        near = [str(path) for path in files if path.stem in near][:1]
    if near:
        return f"; did you mean {near[0]}?"
    own = [str(path) for path in files if path.parent.name == verb]
    return f"; there are {', '.join(own)}" if own else "; name a Python file that defines get_config()"


def _usual(verb: str) -> str:
    return USUAL.get(verb, USUAL["train"])


def missing(verb: str) -> str:
    """Return the error message for a command without --config."""
    command = f"python {verb if verb in USUAL else 'train'}.py --config={_usual(verb)} --workdir=runs/mine"
    return f"--config is missing: name a file such as {_usual(verb)}, and a folder for the run: {runnable(command)}"


def load(path: str) -> ml_collections.ConfigDict:
    """Return the config of FILE, or of FILE:ARGUMENT; the argument is passed to get_config. Raises: UserError."""
    file, *argument = path.split(":", 1)
    scope: dict[str, Any] = {"__name__": "config", "__file__": file}
    if Path(file).suffix == ".json":
        raise UserError(
            f"--config={path}: JSON, not a config file; name a Python file such as {USUAL['train']}. To resume a run, give "
            "the same --config and --workdir again"
        )
    try:
        exec(compile(Path(file).read_text(), file, "exec"), scope)
    except Exception as error:
        raise UserError(f"--config={path} cannot be read as Python: {_where(error, file)}") from error
    if not callable(scope.get("get_config")):
        raise UserError(f"--config={path}: the file defines no get_config(); name a file such as {USUAL['train']}")
    if argument and not inspect.signature(scope["get_config"]).parameters:
        raise UserError(f"--config={path}: {file} takes no argument after a colon")
    try:
        return scope["get_config"](*argument)
    except KeyError as error:
        # From a locked section; ml_collections' message lists all its keys and values.
        unknown = re.match(r'Key "(.*?)" does not exist and cannot be added', str(error.args[0]))
        if unknown is None:
            raise
        near = re.search(r'Did you mean "(.*?)"', error.args[0])
        hint = f"; did you mean {near[1]}?" if near else ""
        raise UserError(f"--config={path}: the file sets {unknown[1]!r}, which is no key of its section{hint}") from None


def _where(error: Exception, file: str) -> str:
    """Return an error of a user's file as text, with its line."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return (f"line {lines[-1]}: " if lines else "") + f"{type(error).__name__}: {error}"


def verb_of(config: Mapping[str, Any]) -> str:
    """Return the verb that a config is for, or ""."""
    if "checkpoint" in config and "port" in config:
        return "serve"
    if "checkpoint" in config and "tasks" in config:
        return "evaluate"
    if "stages" in config and "rules" in config:
        return "curate"
    if not isinstance(config.get("model"), Mapping) or not isinstance(config.get("dtype"), str):
        return ""
    return "align" if "method" in config else "train" if "steps" in config else ""


def check_verb(config: ml_collections.ConfigDict, path: str, verb: str) -> None:
    """Raise UserError if the config is for another verb."""
    other = verb_of(config.to_dict())
    if verb in USUAL and other and other != verb:
        command = runnable(f"python {other}.py --config={shlex.quote(path)}")
        raise UserError(
            f"--config={path} is for {other}.py: run {command}, or name a config of {verb}.py such as {_usual(verb)}"
        )


def given_keys() -> set[str]:
    """Return the config keys that this command line gives, such as model.embed_dim."""
    names = (arg.partition("=")[0].lstrip("-") for arg in sys.argv[1:])
    return {name.removeprefix("no").removeprefix("config.") for name in names if name.startswith(("config.", "noconfig."))}


def listed(config: ml_collections.ConfigDict, prefix: str = "") -> Iterable[str]:
    """Yield the keys of a config, those of its sections as SECTION.KEY."""
    for key, inner in config.items():
        if isinstance(inner, ml_collections.ConfigDict):
            yield from listed(inner, f"{prefix}{key}.")
        else:
            yield prefix + key


def value(config: ml_collections.ConfigDict, key: str) -> object:
    """Return the value of a key, or a section."""
    for part in key.split("."):
        config = config[part]
    return config


def type_of(config: ml_collections.ConfigDict, key: str) -> str:
    """Return the name of the type that the values of a key have."""
    section, _, last = key.rpartition(".")
    return (value(config, section) if section else config).get_ref(last).get_type().__name__
