"""Columns of a document: texts and lists of texts, by name or by dotted path."""

from collections.abc import Mapping
from typing import Any

from lm.evals.stats.joining import Malformed


def column(doc: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path such as answer.aliases; None if the path does not exist."""
    value: Any = doc
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def texts(value: Any, what: str, *, empty: bool = False) -> tuple[str, ...]:
    """Return a text, or a list of texts and numbers, as texts. Raises: Malformed, also if there is none and not `empty`."""
    parts = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int | float):
            raise Malformed(f"{what!r} holds a {type(part).__name__}, not a text")
    unique = tuple(dict.fromkeys(str(part) for part in parts if str(part).strip()))
    if not unique and not empty:
        raise Malformed(f"no {what!r}")
    return unique


def asking(doc: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document whose topic, prompt and reference are texts. Empty ones are left out; an empty reference is None."""
    stated = {key: " ".join(texts(doc.get(key), key, empty=True)) for key in ("topic", "prompt", "reference")}
    others = {key: value for key, value in doc.items() if key not in stated}
    return others | {key: text for key, text in stated.items() if text} | {"reference": stated["reference"] or None}
