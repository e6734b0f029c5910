"""Python files that the user of this machine trusts: those that were named to train with, by the SHA-256 of their text.

A model that computes by a file is opened only if the file is trusted, since its folder may come from a stranger.
"""

import contextlib
import hashlib
import shlex
from pathlib import Path

from lm.errors import UserError
from lm.files.compile_cache import home

LIST = "trusted_code"  # in the user's cache: one SHA-256 a line


def trust(path: Path) -> None:
    """Trust the text of a file on this machine. Without a cache to write to, nothing is remembered."""
    with contextlib.suppress(OSError, RuntimeError):
        if (digest := _digest(path)) not in _trusted():
            home().mkdir(parents=True, exist_ok=True)
            with (home() / LIST).open("a", encoding="utf-8") as file:
                file.write(f"{digest}\n")


def check_trusted(key: str, path: Path) -> None:
    """Raise UserError unless the text of the file is trusted."""
    if not path.is_file():
        raise UserError(f"{key}: the model computes by a file, and there is no {path}: restore it")
    if (digest := _digest(path)) not in _trusted():
        raise UserError(
            f"{key}: the model computes by {path}, which is not trusted on this machine. Read that file; if you trust it, run: "
            f"mkdir -p {shlex.quote(str(home()))} && echo {digest} >> {shlex.quote(str(home() / LIST))}"
        )


def _trusted() -> set[str]:
    with contextlib.suppress(OSError, RuntimeError):
        return set((home() / LIST).read_text(encoding="utf-8").split())
    return set()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
