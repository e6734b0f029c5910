"""Parse the keys of a sweep and their values: KEY=LOW..HIGH, KEY=LOW..HIGH:log, KEY=LOW..HIGH:N, KEY=A,B,C."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from lm.cli import config_files
from lm.errors import UserError

FORM = "KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,C"


class Key(NamedTuple):
    """A key that is swept: over `choices`, texts as --config takes them, or over a range from low to high.

    log: whether the range is even in the logarithm. count: how many values of the range a grid has.
    """

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    count: int | None = None


def parse_key(text: str, config: ml_collections.ConfigDict, grid: bool) -> Key:
    """Return the key of one argument. The key must be in the config. Raises UserError for what cannot be swept."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError(f"{text}: no values: write {FORM}")
    type_ = _type(config, name)
    if ".." not in values:
        choices = tuple(dict.fromkeys(part.strip() for part in values.split(",")))
        for choice in choices:
            _value(choice, type_, text)
        return Key(name, choices)
    if type_ not in (int, float):
        raise UserError(f"{text}: {name} is of type {type_.__name__}, not a number: name its values, {name}=A,B")
    match = re.fullmatch(r"(.+?)\.\.([^:]+)((?::[^:]+)*)", values)
    if match is None:
        raise UserError(f"{text}: no range: write {FORM}")
    low, high = _value(match[1], type_, text), _value(match[2], type_, text)
    options = [option for option in match[3].split(":") if option]
    counts = [int(option) for option in options if option.isdecimal()]
    if unknown := [option for option in options if option != "log" and not option.isdecimal()]:
        raise UserError(f"{text}: {unknown[0]!r} is neither log nor a number of values")
    if not low < high or not math.isfinite(low) or not math.isfinite(high):
        raise UserError(f"{text}: {match[1]} must be below {match[2]}")
    if "log" in options and low <= 0:
        raise UserError(f"{text}: a logarithmic range must begin above 0")
    if grid and (len(counts) != 1 or counts[0] < 2):
        raise UserError(f"{text}: a grid needs the number of values, at least 2: {name}={match[1]}..{match[2]}:5, or a list")
    if counts and not grid:
        raise UserError(f"{text}: the number of values is for --grid; leave it out")
    return Key(name, (), low, high, "log" in options, type_ is int, counts[0] if counts else None)


def grid_values(key: Key) -> list[Any]:
    """Return the values of a key in a grid, ascending if it is a range.

    >>> grid_values(Key("a", low=1e-4, high=1e-2, log=True, count=3))
    [0.0001, 0.001, 0.01]
    """
    if key.choices:
        return list(key.choices)
    low, high = (math.log(key.low), math.log(key.high)) if key.log else (key.low, key.high)
    values = [low + (high - low) * i / (key.count - 1) for i in range(key.count)]
    values = [float(f"{math.exp(value) if key.log else value:.12g}") for value in values]
    return list(dict.fromkeys(round(value) for value in values)) if key.whole else values


def grid(keys: Sequence[Key]) -> list[dict[str, Any]]:
    """Return all combinations of the values of the keys."""
    return [dict(zip((key.name for key in keys), values)) for values in itertools.product(*map(grid_values, keys))]


def ends(key: Key) -> list[Any]:
    """Return the values of a key that are checked before the sweep: its choices, or both ends of its range."""
    return list(key.choices) or ([int(key.low), int(key.high)] if key.whole else [key.low, key.high])


def set_value(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
    """Set a dotted key to a value, or to what a text means for its type."""
    value = _value(value, _type(config, name), f"{name}={value}") if isinstance(value, str) else value
    config.update_from_flattened_dict({name: value})


def _type(config: ml_collections.ConfigDict, name: str) -> type:
    section, _, last = name.rpartition(".")
    type_ = (config_files.value(config, section) if section else config).get_ref(last).get_type()
    if type_ not in (int, float, bool, str):
        raise UserError(f"{name} is of type {type_.__name__}: only numbers, texts and true or false can be swept")
    return type_


def _value(text: str, type_: type, argument: str) -> Any:
    if type_ is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{argument}: {text!r} is neither true nor false")
        return text.lower() == "true"
    try:
        return type_(text)
    except ValueError:
        raise UserError(f"{argument}: {text!r} must be of type {type_.__name__}") from None
