"""Small synthetic tasks with verifiable answers.

Each task is a generator: task(split, seed, **options) yields records {"prompt": str, "completion": a right answer,
"rejected": a wrong one, "answer": the reference for verifiers, "task": its name} and other columns of its verifiers
(`verifiable` and `service` have no answers; the prompt of `service` is messages). Questions about a picture or a sound also
have "images" or "audios", a list of data: URLs, as data/media/parts.py reads them. The split "train" is endless, "valid" is
finite. Records depend only on the split, the seed and the options. The splits never share a prompt (splits.py). To write
records to a file:

    python -m data.tasks NAME[?option=value&…] --split=train --count=1000 --out=FILE.jsonl
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping

from data.tasks.arithmetic import arithmetic, calculator
from data.tasks.haystack import haystack
from data.tasks.media.commands import commands
from data.tasks.media.digits import digits
from data.tasks.media.scenes import scenes, scenes_text
from data.tasks.programs import programs
from data.tasks.safety_world import safety_text, safety_world
from data.tasks.service.records import service
from data.tasks.stockroom import stockroom, stockroom_text
from data.tasks.style import preferred_style
from data.tasks.verifiable import verifiable
from lm.errors import UserError

TASKS: dict[str, Callable[..., Iterator[dict]]] = {
    task.__name__: task
    for task in (
        arithmetic,
        calculator,
        preferred_style,
        safety_world,
        verifiable,
        scenes,
        digits,
        commands,
        stockroom,
        service,
        haystack,
        programs,
    )
}
# Generators of records {"text": str} for pretraining.
CORPORA: dict[str, Callable[..., Iterator[dict]]] = {task.__name__: task for task in (safety_text, stockroom_text, scenes_text)}


def task(
    name: str, split: str, seed: int, options: Mapping[str, str] | None = None, among: Mapping[str, Callable] = TASKS
) -> Iterator[dict]:
    """Return the records of the task `name`; options are strings from the user.

    Raises: UserError for an unknown name or option, or an invalid value.
    """
    if name not in among:
        raise UserError(f"builtin:{name}: no such task; {_nearest(name, among)}")
    parameters = inspect.signature(among[name]).parameters.items()
    known = {key: one.default for key, one in parameters if one.default is not one.empty}
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
