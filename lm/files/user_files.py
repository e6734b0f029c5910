"""Python files of the user: take a function or a class from one, and say on one line what went wrong in it."""

import contextlib
import importlib.util
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.errors import UserError


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
        *_, last = traceback.extract_tb(error.__traceback__)
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{what}: {line} ({last.filename}:{last.lineno})") from error
