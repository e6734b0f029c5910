"""Read large XML files in bounded memory, by the standard library's expat; entities are not expanded."""

from collections.abc import Iterator
from typing import BinaryIO
from xml.parsers import expat

from data.sources.streams import Unreadable

MAX_TOKEN_BYTES = 4 << 20  # of one tag with its attributes, which expat keeps whole
MAX_TEXT_CHARACTERS = 16 << 20  # of one element
MAX_DEPTH = 64
_FEED_BYTES = 1 << 16

# (depth of the element from 1, its name, its attributes, its text or None if that is too long)
Element = tuple[int, str, dict[str, str], str | None]


def elements(stream: BinaryIO, with_text: frozenset[str] = frozenset()) -> Iterator[Element]:
    """Yield the elements of a document as they end.

    Args:
        with_text: names of the elements whose text is kept. Others have an empty text.

    Raises:
        Unreadable: "not xml", "truncated xml", "xml entity", "xml too deep", "xml token over 4 MiB".
    """
    found: list[Element] = []
    stack: list[tuple[str, dict[str, str]]] = []
    text: list[str] = []
    size = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal size
        if len(stack) == MAX_DEPTH:
            raise Unreadable("xml too deep")
        stack.append((name, attributes))
        text.clear()
        size = 0

    def end(name: str) -> None:
        nonlocal size
        name, attributes = stack[-1]
        kept = None if size > MAX_TEXT_CHARACTERS else "".join(text)
        found.append((len(stack), name, attributes, kept))
        stack.pop()
        text.clear()
        size = 0

    def characters(data: str) -> None:
        nonlocal size
        if stack[-1][0] in with_text:
            size += len(data)
            if size <= MAX_TEXT_CHARACTERS:
                text.append(data)
            else:
                text.clear()

    def entity(*_) -> None:
        raise Unreadable("xml entity")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, characters
    parser.EntityDeclHandler = entity
    fed, ended, pending = 0, False, 0
    while not ended:
        # expat reads an unfinished token again with each call, so a call brings at least as much as it holds.
        data, damage = _gathered(stream, max(_FEED_BYTES, pending))
        ended, fed = not data, fed + len(data)
        try:
            if data or not damage:
                parser.Parse(data, ended)
        except expat.ExpatError as error:
            yield from found  # what was complete before the damage
            raise Unreadable("truncated xml" if ended and fed else "not xml", str(error)) from error
        except (ValueError, LookupError) as error:  # an unknown encoding
            raise Unreadable("not xml", str(error)) from error
        pending = fed - parser.CurrentByteIndex
        if pending > MAX_TOKEN_BYTES:
            raise Unreadable(f"xml token over {MAX_TOKEN_BYTES >> 20} MiB")
        yield from found
        found.clear()
        if damage:
            raise damage


def _gathered(stream: BinaryIO, size: int) -> tuple[bytes, Unreadable | None]:
    """Return at least `size` bytes of a stream, or all up to its end or its damage, and the damage."""
    some = getattr(stream, "read1", stream.read)  # `read` would lose what comes shortly before damage
    pieces, left = [], size
    try:
        while left > 0 and (data := some(_FEED_BYTES)):
            pieces.append(data)
            left -= len(data)
    except Unreadable as error:
        return b"".join(pieces), error
    return b"".join(pieces), None


def root(head: bytes) -> str | None:
    """Return the name of the root element of a document that begins with `head`, or None if it is not XML."""
    name = None

    def start(found: str, _) -> None:
        nonlocal name
        name = name or found

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    try:
        parser.Parse(head, False)
        parser.Parse(b"", True)
    except (expat.ExpatError, ValueError, LookupError):
        pass
    return name
