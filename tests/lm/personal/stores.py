"""Stores of the tests: their passphrase, and children that work on one and end as a test says."""

import os
import subprocess
import sys
from pathlib import Path

from lm.personal.store import Store, open_store
from tests.verbs import runs

PASSPHRASE = "five quite random words here"
ENVIRONMENT = {"LMCRAFT_PASSPHRASE": PASSPHRASE}


def made(home: Path, monkeypatch) -> Store:
    monkeypatch.setenv("LMCRAFT_PASSPHRASE", PASSPHRASE)
    return open_store(home, create=True)


def child(code: str, *arguments: object, input: str = "", **variables: str) -> subprocess.CompletedProcess:
    """Runs a program in Python with this repository, which reads `input`."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=runs.REPOSITORY,
        env=runs.environment(**variables),
        input=input,
        capture_output=True,
        text=True,
        timeout=runs.DEADLINE,
    )


def everything_on_disk(folder: Path) -> bytes:
    """The names and the contents of all files below a folder."""
    parts = []
    for path, folders, files in os.walk(folder):
        parts += [name.encode() for name in (*folders, *files)]
        parts += [(Path(path) / name).read_bytes() for name in files]
    return b"\n".join(parts)
