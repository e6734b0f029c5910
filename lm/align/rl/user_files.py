"""Python files of the user: import one, and say on one line what went wrong in it."""

import importlib.util
import traceback
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
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{key}: {path} cannot be imported: {error_line(error)}") from error
    return module


def error_line(error: Exception) -> str:
    """Return the error and its file and line as one line of text."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] + f" ({last.filename}:{last.lineno})"
