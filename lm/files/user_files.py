"""Python files of the user: take a function or a class from one, and say on one line what went wrong in it."""

import ast
import contextlib
import difflib
import functools
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lm.errors import UserError, near_path

LIBRARIES = (str(Path(__file__).parents[1]), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))  # and this package


def is_own(value: str) -> bool:
    """Return whether the value of a key names a function or a class of a file."""
    return ".py" in value


def parted(key: str, value: str, form: str) -> tuple[Path, str]:
    """Return the file and the name that a value consists of. Raises: UserError if it has no name."""
    path, _, name = value.rpartition(":")
    if not path:
        own = functions(Path(value))
        hint = f", such as --config.{key}={value}:{own[0]}" if own else ""
        raise UserError(f"{key}={value} names no {form.rpartition(':')[2].lower()}: write it as {form}{hint}")
    return Path(path), name


@functools.cache
def layer_part(key: str, value: str, form: str) -> Callable:
    """Return what the value of a key of the model names. One process reads a file once, so that equal models are equal."""
    return from_file(*parted(key, value, form), key, form)


def check_file(path: Path, name: str, key: str, form: str) -> None:
    """Raise UserError if there is no such file, its syntax is wrong, or it cannot have such a name. Runs none of its code."""
    nodes = list(ast.walk(_parsed(path, name, key, form)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    if name not in names and "*" not in names:
        raise UserError(_no_name(path, name, key, form, functions(path)))


def _parsed(path: Path, name: str, key: str, form: str) -> ast.Module:
    """Return the syntax tree of a file. Raises: UserError if there is no such file, or it is no Python."""
    if not path.is_file():
        near = path.with_suffix(".py") if path.with_suffix(".py").is_file() else near_path(path)
        hint = f"did you mean {near}:{name}?" if near else f"give the path of a Python file, as {form}"
        raise UserError(f"{key}: no file {path}; {hint}")
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        what = f"{error.msg} (line {error.lineno})" if isinstance(error, SyntaxError) else error
        raise UserError(f"{key}: {path} cannot be read as Python: {what}") from None


def functions(path: Path) -> list[str]:
    """Return the names of the functions and classes that a file defines; [] for a file that is no Python."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, ValueError, SyntaxError):
        return []
    return [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def from_file(path: Path, name: str, key: str, form: str) -> Callable:
    """Return a function or a class of a file. key: of the config, for errors. form: how to write its value.

    Raises: UserError if there is no such file or name, or its code fails.
    """
    _parsed(path, name, key, form)
    module = types.ModuleType(f"{key.replace('.', '_')}_of_{path.stem}")
    module.__file__ = str(path)
    with failing(f"{key}: {path} cannot be imported"):
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))  # leaves no bytecode beside the user's file
    if not callable(found := getattr(module, name, None)):
        own = [other for other, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise UserError(_no_name(path, name, key, form, own))
    return found


def _no_name(path: Path, name: str, key: str, form: str, own: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, own, n=1)
    only = f"only {', '.join(own)}" if own else "and defines no other"
    hint = f"; did you mean {path}:{near[0]}?" if near else f"; write the name of one as {form}"
    return f"{key}: {path} has no {form.rpartition(':')[2].lower()} {name!r}, {only}{hint}"


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
