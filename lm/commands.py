"""Commands to print, as they run where the user is: with the interpreter, the scripts and the package of this process."""

import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the clone: verbs and packages


def runnable(command: str) -> str:
    """Return "python SCRIPT.py …" or "python -m MODULE …" as it runs from this folder, without an activated environment.

    "python" becomes the interpreter of this process, and the script its path from here. A module of a clone that lies elsewhere
    gets its PYTHONPATH. Other commands are returned as they are.
    """
    try:
        parts = shlex.split(command)
    except ValueError:  # of a damaged report
        return command
    if len(parts) < 2 or parts[0] != "python":
        return command
    variables, script = [], ROOT / Path(parts[1]).name
    if parts[1].endswith(".py") and script.is_file():
        parts[1] = _from_here(script)
    elif parts[1] == "-m" and Path.cwd() != ROOT and (ROOT / "train.py").is_file():  # not in site-packages
        variables = [f"PYTHONPATH={shlex.quote(_from_here(ROOT))}"]
    return " ".join([*variables, shlex.join([_interpreter(), *parts[1:]])])


def _interpreter() -> str:
    """Return `python` or `python3` if the shell finds this process's interpreter under that name, else its path from here."""
    own = _place(sys.executable)
    names = (name for name in ("python", "python3") if (path := shutil.which(name)) and _place(path) == own)
    path = _from_here(Path(sys.executable))
    return next(names, path if os.sep in path else f".{os.sep}{path}")


def _place(program: str) -> tuple[str, str]:
    """Return the folder and the file of an interpreter: those of two environments are links to one file in two folders."""
    return os.path.realpath(os.path.dirname(program)), os.path.realpath(program)


def _from_here(path: Path) -> str:
    """Return a path from the current folder, or from the root of the file system if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
