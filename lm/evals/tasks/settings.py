"""The settings of a task: the keys of its file, declared by its kind with types or defaults, and checked.

A kind of task declares {key: what its value may be}:

    str, (int, float), list …    a type, or several; there is no default
    10, 0.5, "", ["\\n"], {}      a default, whose type is required; a list holds texts
    OneOf(("exact", "contains")) one of these; the first is the default
"""

import difflib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from lm.errors import UserError
from lm.evals.task import TaskSettings

# Keys of every task's file: where its data are, and what they are.
FILE_KEYS = {
    "kind": str,
    "about": str,
    "source": str,
    "version": (int, float, str),
    "folder": str,
    "files": str,
    "data": str,
    "items": list,
}


class OneOf(NamedTuple):
    values: tuple[str, ...]


def resolved(
    name: str, spec: Mapping[str, Any], settings: TaskSettings, keys: Mapping[str, Any], needed: Collection[str] = ()
) -> dict[str, Any]:
    """Return the settings of a task: its file's values over the defaults, and the config's options for its kind over both.

    A key without a value counts as missing. Raises: UserError for an unknown key, a value that does not fit, or a missing key
    of `needed`.
    """
    kind, keys = spec.get("kind", name), FILE_KEYS | dict(keys)
    values = {key: declared.values[0] if isinstance(declared, OneOf) else declared for key, declared in keys.items()}
    values = {key: default for key, default in values.items() if not _is_type(default)}
    for where, own in ((f"task {name}", spec), (f"options.{kind}", settings.options.get(kind) or {})):
        own = {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
        check(where, own, keys)
        values |= {key: value for key, value in own.items() if value is not None}
    check(f"task {name}", values, keys, needed)
    return values


def check(where: str, values: Mapping[str, Any], keys: Mapping[str, Any], needed: Collection[str] = ()) -> None:
    """Raise UserError for an unknown key, a value that does not fit its declaration, or a missing key of `needed`.

    where: begins the error. A bool is not a number.
    """
    for key, value in values.items():
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}"
            raise UserError(f"{where}: {key}: no such key; {cure}")
        if value is not None:
            _check_value(f"{where}: {key}", value, keys[key])
    if missing := [key for key in needed if values.get(key) is None]:
        raise UserError(
            f"{where}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: write {missing[0]}: VALUE into its "
            "file; lm/evals/tasks/specs has examples"
        )


def _check_value(where: str, value: Any, declared: Any) -> None:
    if isinstance(declared, OneOf):
        if value not in declared.values:
            raise UserError(f"{where}: {value!r} is none of {', '.join(declared.values)}")
        return
    if not _is_type(declared):
        if isinstance(declared, list) and not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
            raise UserError(f"{where}: {value!r} must be a list of texts")
        declared = (int, float) if isinstance(declared, float) else type(declared)
    types = declared if isinstance(declared, tuple) else (declared,)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise UserError(f"{where}: {value!r} is no {' or '.join(kind.__name__ for kind in types)}")


def _is_type(declared: Any) -> bool:
    return isinstance(declared, type) or (isinstance(declared, tuple) and not isinstance(declared, OneOf))


def check_least(name: str, values: Mapping[str, Any], **least: float) -> None:
    """Raise UserError if a value is below its least one."""
    for key, bound in least.items():
        if values[key] < bound:
            raise UserError(f"task {name}: {key}={values[key]} must be at least {bound}")


def function(name: str, key: str, path: str) -> Callable:
    """Import a function given as "module:function". Raises UserError if it does not exist."""
    if ":" not in path:
        raise UserError(f"task {name}: {key}: {path!r} is no module:function")
    try:
        imported = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"task {name}: {key}: {path!r} is no module:function ({error})") from None
    if not callable(imported):
        raise UserError(f"task {name}: {key}: {path!r} cannot be called")
    return imported
