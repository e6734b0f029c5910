"""Small, honest tasks with answers that can be checked, made on the spot.

Each is a generator: task(split, seed, **options) gives records {"prompt": str, "completion": a right answer, "rejected": a
wrong one, "answer": what verifiers read, "task": its name} and whatever else its verifiers read, endless for the split
"train", finite for "valid". Records depend on the split, the seed and the options alone; the two splits never share a prompt
(splits.py). Write one down with

    python -m data.tasks NAME[?option=value&…] --split=train --count=1000 --out=FILE.jsonl
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping

from data.tasks.arithmetic import arithmetic
from data.tasks.calculator import calculator
from data.tasks.formats import formats
from data.tasks.letters import instructions, mixed_operations
from data.tasks.lists import lists
from data.tasks.safety_world import safety_text, safety_world
from data.tasks.small_world import small_world
from data.tasks.strings import strings
from data.tasks.style import preferred_style
from data.tasks.text import text
from lm.errors import UserError

TASKS: dict[str, Callable[..., Iterator[dict]]] = {
    "arithmetic": arithmetic,
    "strings": strings,
    "lists": lists,
    "formats": formats,
    "small_world": small_world,
    "instructions": instructions,
    "mixed_operations": mixed_operations,
    "preferred_style": preferred_style,
    "calculator": calculator,
    "safety_world": safety_world,
}
# Records {"text": str}, to pretrain on.
CORPORA: dict[str, Callable[..., Iterator[dict]]] = {"text": text, "safety_text": safety_text}


def task(
    name: str, split: str, seed: int, options: Mapping[str, str] | None = None, among: Mapping[str, Callable] = TASKS
) -> Iterator[dict]:
    """The records of the task `name`, whose options are given as a user writes them.

    Raises: UserError for a name, an option or a value that there is not.
    """
    if name not in among:
        raise UserError(f"builtin:{name}: no such task; {_nearest(name, among)}")
    known = {
        key: parameter.default
        for key, parameter in inspect.signature(among[name]).parameters.items()
        if parameter.default is not parameter.empty
    }
    values = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise UserError(f"builtin:{name}: no option {key!r}; {_nearest(key, known)}")
        kind = type(known[key])
        try:
            values[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise UserError(f"builtin:{name}: {key}={value!r} must be of type {kind.__name__}, as {known[key]!r} is") from None
    return among[name](split, seed, **values)


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return f"the nearest is {difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]!r} of {', '.join(known)}"
