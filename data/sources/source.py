"""A document, and a named stream of documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Document:
    """One piece of text and where it is from.

    `text` has at least one character that is not whitespace and encodes to UTF-8 (no lone surrogates).
    """

    id: str  # unique and stable within its source
    text: str
    origin: str  # a path, a package's name and version, a TFDS name
    licence: str | None = None  # an SPDX identifier where it is known
    split_key: str | None = None  # documents with equal keys land in one split; None: the text is the key


@dataclasses.dataclass(frozen=True)
class Source:
    """A named stream of documents. `read` may be called again and gives the same documents in the same order."""

    name: str  # [a-z0-9_]+
    read: Callable[[], Iterator[Document]]
