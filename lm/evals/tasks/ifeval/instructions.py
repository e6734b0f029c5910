"""An instruction of an IFEval item, and whether a response follows it, strictly or loosely."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from lm.evals.tasks.ifeval.text import known_languages
from lm.evals.tasks.ifeval.verifiers import VERIFIERS, Relation


class Instruction(NamedTuple):
    id: str
    kwargs: dict[str, Any]


def parsed(id: str, kwargs: Mapping[str, Any]) -> Instruction:
    """Return an instruction of an item. Some editions of the data write every kwarg that there is, and None for most.

    Raises: ValueError: no such instruction; a kwarg that it lacks or does not know, or whose value makes no sense. The authors'
        checker draws a value at random where one is missing, and so verifies what nobody asked for.
    """
    if id not in VERIFIERS:
        raise ValueError(f"{id!r} is none of the 25 instructions")
    present = {name: value for name, value in kwargs.items() if value is not None}
    wanted = _parameters(id)
    for name in sorted(present.keys() - wanted.keys()):
        raise ValueError(f"{id} takes no {name!r}")
    for name in sorted(wanted.keys() - present.keys()):
        raise ValueError(f"{id} lacks {name!r}")
    read = {name: _value(name, kind, present[name]) for name, kind in wanted.items()}
    if id.endswith(":nth_paragraph_first_word") and not 1 <= read["nth_paragraph"] <= read["num_paragraphs"]:
        raise ValueError(f"{id}: there is no paragraph {read['nth_paragraph']} of {read['num_paragraphs']}")
    if id.endswith(":letter_frequency") and len(read["letter"].strip()) != 1:
        raise ValueError(f"{id}: 'letter' is {read['letter']!r}, not one character")
    if id.endswith(":response_language") and read["language"] not in known_languages():
        raise ValueError(f"{id}: 'language' is {read['language']!r}, none of {', '.join(known_languages())}")
    return Instruction(id, read)


def follows(instruction: Instruction, response: str) -> bool:
    """Return whether a response follows strictly, as it is. One of nothing but space follows nothing."""
    return bool(response.strip()) and VERIFIERS[instruction.id](response, **instruction.kwargs)


def follows_loosely(instruction: Instruction, response: str) -> bool:
    """Return whether one of the variants follows: an upper bound, which forgives a bare "Sure, here it is:" and other
    things."""
    return any(follows(instruction, variant) for variant in variants(response))


def variants(response: str) -> list[str]:
    """Return the response; without its first line, its last line, both of them, in case they are said around it; and each of
    the four without asterisks, in case they are markup. Eight, less those that are the same."""
    lines = response.split("\n")
    cut = [response, *("\n".join(some).strip() for some in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]))


@functools.cache
def _parameters(id: str) -> dict[str, Any]:
    """Return {kwarg: its type}."""
    _, *kwargs = inspect.signature(VERIFIERS[id]).parameters.values()
    return {parameter.name: parameter.annotation for parameter in kwargs}


def _value(name: str, kind: Any, value: Any) -> Any:
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
            raise ValueError(f"{name!r} is {value!r}, not a number ≥ 0")
        return int(value)
    if kind is Relation:
        if value not in get_args(Relation):
            raise ValueError(f"{name!r} is {value!r}, neither {' nor '.join(get_args(Relation))}")
        return value
    texts = value if kind == list[str] else [value]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{name!r} is {value!r}, not {'texts' if kind == list[str] else 'a text'}")
    return value
