"""A document, a piece of input that could not be read, and a named stream of documents."""

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
    url: str | None = None
    language: str | None = None  # as the source declares it, for example "en" or "deu"; nobody has checked it
    date: str | None = None  # ISO 8601, of the crawl or of the publication
    metadata: dict[str, str] | None = dataclasses.field(default=None, hash=False)  # robots rules, title, licence link, …


@dataclasses.dataclass(frozen=True)
class Quarantined:
    """A file or a part of one that gave no document, or only the beginning of one."""

    path: str
    where: str  # "line 7", "record 3 https://…"; empty for the whole file, or all that follows
    reason: str  # short and stable, so that equal causes can be counted
    place: tuple[int, int] | None = None  # the bytes (first, end) of the file that hold it, if that is known


@dataclasses.dataclass(frozen=True)
class Source:
    """A named stream of documents. Each call of `read` gives the same documents in the same order."""

    name: str  # [a-z0-9_]+
    read: Callable[[], Iterator[Document]]
