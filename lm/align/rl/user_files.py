"""Python files of the user: import one, and say on one line what went wrong in it."""

import contextlib
import importlib.util
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from lm.errors import UserError


def imported(path: Path, key: str, form: str) -> ModuleType:
    """Return the module of a file. key: of the config, for errors. form: how to write its value.

    Raises: UserError if there is no such file, or its code fails.
    """
    if not path.is_file():
        raise UserError(f"{key}: no file {path}; give the path of a Python file, as {form}")
    spec = importlib.util.spec_from_file_location(f"{key.replace('.', '_')}_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with failing(f"{key}: {path} cannot be imported"):
        spec.loader.exec_module(module)
    return module


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
