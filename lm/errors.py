"""The exception that users see as one line instead of a traceback, messages that several places give, and commands in them."""

import contextlib
import difflib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the clone: verbs and packages


class UserError(Exception):
    """An error that the user can fix: in a key, a path, a file's content, a mesh.

    The message is one line that says what was wrong, where, and what to do. Verbs print it and exit with code 2.
    """


class Ended(Exception):
    """A training run that ended before its last step, with its state saved or for a reason that the message gives.

    Verbs print the message, which is one line, and exit with `code`.
    """

    code = 1


class Stopped(Ended):
    """A signal stopped the run after its state was saved."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.code = 128 + signum


@contextlib.contextmanager
def naming(key: str):
    """Replace "data.input" by `key` in a UserError of the block, because readers do not know which key the input came from."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"(?<!--config\.)data\.input", lambda _: key, str(error))) from error


@contextlib.contextmanager
def after(beginning: str):
    """Put `beginning` before the message of a UserError of the block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{beginning}{error}") from error


def no_model(path: str | os.PathLike) -> str:
    """Return why a path is no model, and what to name instead: "…: no such folder; name …"."""
    cure = "name a workdir with a checkpoint, a Hugging Face folder or a GGUF file"
    if Path(path).is_file():
        folder = Path(path).parent
        cure = f"name its folder, {folder}" if (folder / "config.json").is_file() else cure
        return f"{path}: a file, not a folder; {cure}"
    if near := near_path(Path(path)):
        return f"{path}: no such folder; did you mean {near}?"
    return f"{path}: no such folder; {cure}{windows_hint(path)}{hub_hint(path)}"


def near_path(path: Path) -> Path | None:
    """Return the path beside a missing one whose name is nearly the same."""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    return path.with_name(near[0]) if near else None


def no_base(path: str | os.PathLike) -> str:
    """Return why the folder of an adapter is no model, and what to do."""
    command = shlex.join(["python", "-m", "lm.convert", "import", f"--from={path}", "--base=MODEL", "--workdir=DIR"])
    return f"{path} is an adapter without its model: {runnable(command)}, then use DIR"


def hub_hint(path: str | os.PathLike, kind: str = "model") -> str:
    """Return "; …" for a path that may be a name of the Hugging Face hub, else "". kind: model or dataset."""
    name = re.sub(r"^(https://huggingface\.co/|hf://)(datasets/)?", "", str(path))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or re.search(r"^\.|\.[a-z]{2,}$", name):  # a path, or a file's name
        return ""
    flag = "" if kind == "model" else f" --repo-type={kind}"
    download = f"hf download {name}{flag} --local-dir=DIR"
    return f"; nothing is downloaded here: a {kind} of the Hugging Face hub is fetched first by {download}, then name DIR"


# What needs less memory, by the key of a config that decides it.
SMALLER = {
    "batch_size": "lower batch_size",
    "sequence_length": "lower sequence_length",
    "accumulate": "raise accumulate",
    "model.remat": "set model.remat=full",
    "batch_tokens": "lower batch_tokens",
    "rows": "lower rows",
    "blocks": "lower blocks",
    "max_length": "lower max_length",
    "mesh.fsdp": "split the model over more devices (mesh.fsdp)",
}


def out_of_memory(error: BaseException | None, keys: Collection[str]) -> str | None:
    """Return what did not fit into memory and what to do, if the error or one of its causes says so, else None.

    XLA raises a RuntimeError that begins with RESOURCE_EXHAUSTED, on the host and on devices. keys: those of the config.
    """
    while error is not None:
        what = (str(error).splitlines() or [""])[0]
        is_xla = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in what
        if is_xla or isinstance(error, MemoryError):
            what = re.sub(r"^(.*RESOURCE_EXHAUSTED: )?(out of memory:? *)?|\.$", "", what, flags=re.IGNORECASE)
            what = re.sub(r"\d+(?= bytes)", lambda size: f"{int(size[0]):,}", what)
            cures = [cure for key, cure in SMALLER.items() if key in keys] or ["take a smaller model or a shorter input"]
            return f"out of memory{f' ({what})' if what else ''}: {', or '.join(cures)}"
        error = error.__cause__ or error.__context__
    return None


def windows_hint(path: str | os.PathLike) -> str:
    """Return "; …" for a path of Windows, which no program here can open, else ""."""
    match = re.match(r"([A-Za-z]):[\\/]", str(path))
    if match is None:
        return ""
    inside = str(path)[3:].replace("\\", "/")
    return f"; it is a path of Windows: in WSL name /mnt/{match[1].lower()}/{inside}"


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
