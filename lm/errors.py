"""The exception that users see as one line instead of a traceback, and messages that several places give."""

import contextlib
import os
import re
from pathlib import Path


class UserError(Exception):
    """An error that the user can fix: in a key, a path, a file's content, a mesh.

    The message is one line that says what was wrong, where, and what to do. Verbs print it and exit with code 2.
    """


@contextlib.contextmanager
def naming(key: str):
    """Replace "data.input" by `key` in a UserError of the block, because readers do not know which key the input came from."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("data.input", key)) from error


def no_model(path: str | os.PathLike) -> str:
    """Return why a path is no model, and what to name instead: "…: no such folder; name …"."""
    cure = "name a workdir with a checkpoint, a Hugging Face folder or a GGUF file"
    if Path(path).exists():
        return f"{path}: a file, not a folder; {cure}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        cure += f"; a model of the Hugging Face hub is downloaded first: hf download {path} --local-dir=DIR, then name DIR"
    return f"{path}: no such folder; {cure}"


def windows_hint(path: str | os.PathLike) -> str:
    """Return "; …" for a path of Windows, which no program here can open, else ""."""
    match = re.match(r"([A-Za-z]):[\\/]", str(path))
    if match is None:
        return ""
    inside = str(path)[3:].replace("\\", "/")
    return f"; it is a path of Windows: in WSL name /mnt/{match[1].lower()}/{inside}"
