"""Decode HTML entities in a text: &#64; hides an address from harvesters, and &nbsp; keeps a number on one line."""

import html
import re

import numpy as np

_ENTITY = re.compile(r"&(?:#(?:\d{1,7}|[xX][0-9A-Fa-f]{1,6})|[A-Za-z]{2,31}\d{0,2});")  # the longest name has 31 letters


def decode_entities(text: str) -> tuple[str, np.ndarray | None]:
    """Return the text with characters in place of HTML entities, and where they were; None if there is no entity.

    Returns:
        places: int64 [characters + 1]: character i of the result was text[places[i] : places[i + 1]]. Entities that stand for
            two characters, and unknown ones, stay.
    """
    if "&" not in text:
        return text, None
    pieces, places, reached = [], [], 0
    for match in _ENTITY.finditer(text):
        said = html.unescape(match[0])
        if len(said) == 1:
            pieces += text[reached : match.start()], said
            places.append(np.arange(reached, match.start() + 1))
            reached = match.end()
    if not pieces:
        return text, None
    return "".join(pieces) + text[reached:], np.concatenate((*places, np.arange(reached, len(text) + 1)))
