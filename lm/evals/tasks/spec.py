"""The keys of a task file: known ones, of the right type; and the functions that it names."""

import difflib
import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from lm.errors import UserError
from lm.evals.outcome import TaskSettings

Types = type | tuple[type, ...]


def check(name: str, spec: Mapping[str, Any], keys: Mapping[str, Types], needed: Collection[str] = ()) -> None:
    """Raises UserError for a key of `spec` that is none of `keys`, one of a wrong type, and one of `needed` that is missing.

    A key without a value counts as missing. A truth value is no number.
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


def settled(spec: Mapping[str, Any], settings: TaskSettings) -> dict[str, Any]:
    """A task file's keys, and over them those that the config has for all tasks of its kind."""
    return {**spec, **(settings.options.get(spec.get("kind", "")) or {})}


def function(name: str, key: str, path: str) -> Callable:
    """The function that a key names as "module:function". Raises UserError if there is none."""
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"task {name}: {key}: {path!r} is no module:function ({error})") from None
    if not callable(found):
        raise UserError(f"task {name}: {key}: {path!r} cannot be called")
    return found
