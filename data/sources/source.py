"""A document, and a named stream of documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and its origin.

    `text` has at least one character that is not whitespace, and is valid UTF-8 (no lone surrogates).
    """

    id: str  # unique and stable within its source
    text: str
    origin: str  # a path, a package's name and version, a TFDS name
    licence: str | None = None  # an SPDX identifier if known
    split_key: str | None = None  # documents with equal keys are in the same split; None: the text is the key


@dataclasses.dataclass(frozen=True)
class Source:
    """A named stream of documents. Each call of `read` gives the same documents in the same order."""

    name: str  # [a-z0-9_]+
    read: Callable[[], Iterator[Document]]
