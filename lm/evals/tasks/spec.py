"""Check the keys of a task file and their types, and import the functions that it names."""

import difflib
import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from lm.errors import UserError
from lm.evals.outcome import TaskSettings

Types = type | tuple[type, ...]


def check(name: str, spec: Mapping[str, Any], keys: Mapping[str, Types], needed: Collection[str] = ()) -> None:
    """Raise UserError for an unknown key of `spec`, a value of a wrong type, or a missing key of `needed`.

    A key without a value counts as missing. A bool is not a number.
    """
    for key, value in spec.items():
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            raise UserError(
                f"task {name}: {key}: no such key; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}")
            )
        types = keys[key] if isinstance(keys[key], tuple) else (keys[key],)
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise UserError(f"task {name}: {key}: {value!r} is no {' or '.join(one.__name__ for one in types)}")
    for key in needed:
        if spec.get(key) is None:
            raise UserError(f"task {name}: {key} is missing")


def resolved(spec: Mapping[str, Any], settings: TaskSettings) -> dict[str, Any]:
    """Return a task file's keys, overridden by the config's options for tasks of its kind."""
    return {**spec, **(settings.options.get(spec.get("kind", "")) or {})}


def function(name: str, key: str, path: str) -> Callable:
    """Import a function given as "module:function". Raises UserError if it does not exist."""
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"task {name}: {key}: {path!r} is no module:function ({error})") from None
    if not callable(found):
        raise UserError(f"task {name}: {key}: {path!r} cannot be called")
    return found
