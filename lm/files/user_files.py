"""Python files of the user: take a function or a class from one, and say on one line what went wrong in it.

A file is trusted once the user of this machine has named it to train with. A model that computes by a file is opened only if
the file is trusted, since its folder may come from a stranger.
"""

import contextlib
import functools
import hashlib
import importlib.util
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.errors import UserError
from lm.files.compile_cache import home

LIBRARIES = (str(Path(__file__).parents[1]), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))  # and this package
TRUSTED = "trusted_code"  # in the user's cache: the SHA-256 of each trusted file, one a line


def is_own(value: str) -> bool:
    """Return whether the value of a key names a function or a class of a file."""
    return ".py" in value


def named(key: str, value: str, form: str = "FILE.py:FUNCTION") -> Callable:
    """Return what FILE.py:FUNCTION or FILE.py:CLASS names. Raises the errors of `from_file`."""
    path, _, name = value.rpartition(":")
    if not path:
        raise UserError(f"{key}={value} names no {form.rpartition(':')[2].lower()}: write it as {form}")
    return from_file(Path(path), name, key, form)


@functools.cache
def layer_part(key: str, value: str) -> Callable:
    """Return what the value of a key of the model names. One process reads a file once, so that equal models are equal."""
    return named(f"model.{key}", value, "FILE.py:FUNCTION" if key == "activation" else "FILE.py:CLASS")


def from_file(path: Path, name: str, key: str, form: str) -> Callable:
    """Return a function or a class of a file. key: of the config, for errors. form: how to write its value.

    Raises: UserError if there is no such file or name, or its code fails.
    """
    if not path.is_file():
        raise UserError(f"{key}: no file {path}; give the path of a Python file, as {form}")
    spec = importlib.util.spec_from_file_location(f"{key.replace('.', '_')}_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with failing(f"{key}: {path} cannot be imported"):
        spec.loader.exec_module(module)
    if not callable(found := getattr(module, name, None)):
        own = [other for other, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise UserError(f"{key}: {path} has no {form.rpartition(':')[2].lower()} {name!r}, only {', '.join(own) or 'none'}")
    return found


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Raise an error of the user's code in the block as a UserError of one line: `what`, the error, and its file and line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = [f" ({frame.filename}:{frame.lineno})" for frame in frames if not frame.filename.startswith(LIBRARIES)][-1:]
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{what}: {line}{''.join(place)}") from error


def trust(path: Path) -> None:
    """Trust the text of a file on this machine. Without a cache to write to, nothing is remembered."""
    with contextlib.suppress(OSError, RuntimeError):
        if (digest := _digest(path)) not in _trusted():
            home().mkdir(parents=True, exist_ok=True)
            with (home() / TRUSTED).open("a", encoding="utf-8") as file:
                file.write(f"{digest}\n")


def check_trusted(key: str, path: Path) -> None:
    """Raise UserError unless the text of the file is trusted."""
    if not path.is_file():
        raise UserError(f"{key}: the model computes by a file, and there is no {path}: restore it")
    if (digest := _digest(path)) not in _trusted():
        raise UserError(
            f"{key}: the model computes by {path}, which was not made on this machine. Read that file; if you trust it, run: "
            f"echo {digest} >> {home() / TRUSTED}"
        )


def _trusted() -> set[str]:
    with contextlib.suppress(OSError, RuntimeError):
        return set((home() / TRUSTED).read_text(encoding="utf-8").split())
    return set()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
