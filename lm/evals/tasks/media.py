"""Images and sound of documents: the columns that hold them, and where they stand in a question."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.media.parts import ANY_PLACEHOLDER, KIND_OF, KINDS, PLACEHOLDER, Medium, resolved
from lm.errors import UserError
from lm.evals.stats.joining import Malformed

KEYS = {f"doc_to_{kind}": (str, list) for kind in KINDS}  # names of columns
MARKS = {"image": re.compile(r"<image(?: ?\d+)?>"), "audio": re.compile(r"<audio(?: ?\d+)?>")}  # as lm-eval's tasks write them


class Columns(NamedTuple):
    """names: of the columns by kind. folder: that of the task's files, where paths lead; None: there are none."""

    names: Mapping[str, Sequence[str]]
    folder: str | None

    def media(self, doc: Mapping[str, Any], where: str) -> tuple[Medium, ...]:
        """Return the media of a document, images first. Raises: Malformed if a file is missing."""
        media = []
        for kind, names in self.names.items():
            for name in names:
                value = doc.get(name)
                for item in value if isinstance(value, list | tuple) else [value]:
                    media += [Medium(kind, item, f"{where}, {name}")] if item is not None else []
        if not media:
            raise Malformed(f"{where}: no {' and no '.join(self.names)} in its columns")
        try:
            (message,) = resolved([[{"role": "user", "content": "", "media": media}]], {}, self.folder, where)[0]
        except UserError as error:
            raise Malformed(str(error)) from None
        return tuple(message["media"])


def columns_of(spec: Mapping[str, Any], folder: Path | None) -> Columns | None:
    """Return the columns that a task file names, or None for a task of text."""
    names = {kind: spec[key] for kind, key in zip(KINDS, KEYS) if spec.get(key)}
    names = {kind: [value] if isinstance(value, str) else list(value) for kind, value in names.items()}
    return Columns(names, str(folder) if folder else None) if names else None


def with_places(question: str, media: Sequence[Medium]) -> str:
    """Return a question with a placeholder for each medium: at its <image>s and <audio>s if it has as many, else before it."""
    question, before = ANY_PLACEHOLDER.sub("\ufffd", question), ""
    for kind in KINDS:
        count = sum(medium.kind == kind for medium in media)
        if count and len(MARKS[kind].findall(question)) == count:
            question = MARKS[kind].sub(PLACEHOLDER[kind], question)
        else:
            before += PLACEHOLDER[kind] * count
    return before + question


def ordered(question: str, media: Sequence[Medium]) -> tuple[Medium, ...]:
    """Return media in the order of their placeholders in the question."""
    left = {kind: iter([medium for medium in media if medium.kind == kind]) for kind in KINDS}
    return tuple(next(left[KIND_OF[placeholder]]) for placeholder in ANY_PLACEHOLDER.findall(question))
