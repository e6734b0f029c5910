"""Documents of mail: mbox archives, single messages and maildir files, by the standard library's `email`.

A text/plain part wins over the HTML of the same message; attachments are left out. Addresses stay in the headers, which are not
kept.
"""

import email
import email.header
import email.utils
from collections.abc import Iterator
from email.message import Message

from data.sources.archives import html
from data.sources.archives.encodings import decode
from data.sources.source import Document, Quarantined
from data.sources.streams import Unreadable, lines, open_stream

MAX_MESSAGE_BYTES = 32 << 20
MAX_DEPTH = 50  # of parts inside parts


def read_mbox(path: str, id: str) -> Iterator[Document | Quarantined]:
    """Yield the messages of an mbox file. A line that begins with "From " after a blank line begins a message."""
    number, held, size, blank = 0, [], 0, True
    with open_stream(path) as stream:
        for line in lines(stream, MAX_MESSAGE_BYTES):
            if isinstance(line, Unreadable):
                raise line
            if blank and line is not None and line.startswith(b"From "):
                if number:
                    yield _message(held, size, path, id, number)
                number, held, size = number + 1, [], 0
            elif number == 0 and (line is None or line.strip()):
                raise Unreadable("not an mbox")
            else:
                size += MAX_MESSAGE_BYTES + 1 if line is None else len(line)
                if size <= MAX_MESSAGE_BYTES:
                    held.append(line[1:] if line.startswith((b">From ", b">>From ")) else line)
                else:
                    held = []
            blank = line is not None and not line.strip()
    if number:
        yield _message(held, size, path, id, number)


def read_message(path: str, id: str) -> Iterator[Document | Quarantined]:
    """Yield the text of a file that holds one message."""
    with open_stream(path) as stream:
        data = stream.read(MAX_MESSAGE_BYTES + 1)
    if len(data) > MAX_MESSAGE_BYTES:
        raise Unreadable(f"mail over {MAX_MESSAGE_BYTES >> 20} MiB")
    if data.startswith(b"From "):
        data = data.partition(b"\n")[2]
    yield document(data, path, id)


def document(data: bytes, path: str, id: str) -> Document:
    """Return the subject and the text of a message.

    Raises: Unreadable: "mail too deep", "no text", or as `data.sources.archives.html.page`.
    """
    try:
        message = email.message_from_bytes(data)
        texts = list(_texts(message, MAX_DEPTH))
    except RecursionError as error:
        raise Unreadable("mail too deep") from error
    body = "\n\n".join(text.strip() for text in texts if text.strip())
    if not body:
        raise Unreadable("no text")
    subject = _header(message, "Subject")
    metadata = {"title": subject} if subject else {}
    for name in ("X-No-Archive", "List-Id"):
        if value := _header(message, name):
            metadata[name.lower().replace("-", "_")] = value
    return Document(
        id,
        f"{subject}\n\n{body}" if subject else body,
        path,
        date=_date(message),
        language=html.language_tag(_header(message, "Content-Language")),
        metadata=metadata or None,
    )


def _message(held: list[bytes], size: int, path: str, id: str, number: int) -> Document | Quarantined:
    where = f"message {number}"
    if size > MAX_MESSAGE_BYTES:
        return Quarantined(path, where, f"mail over {MAX_MESSAGE_BYTES >> 20} MiB")
    try:
        return document(b"".join(held), path, f"{id}#{number}")
    except Unreadable as error:
        return Quarantined(path, where, error.reason)


def _texts(part: Message, depth: int) -> Iterator[str]:
    """Yield the text of a part: of the best of alternatives, of all of a mixture."""
    if depth == 0:
        raise Unreadable("mail too deep")
    if part.get_content_disposition() == "attachment":
        return
    kind = part.get_content_type()
    if part.is_multipart():
        children = part.get_payload()
        if kind == "multipart/alternative":
            plain = [child for child in children if _has_text(child, "text/plain")]
            children = plain[:1] or [child for child in children if _has_text(child, "text/html")][:1]
        for child in children:
            yield from _texts(child, depth - 1)
    elif kind in ("text/plain", "text/html"):
        data = part.get_payload(decode=True) or b""
        charset = _charset(part)
        if kind == "text/html":
            if data.strip():
                yield html.page(data, charset, main_content=False).text
        else:
            yield decode(data, (charset,), replace=True).replace("\r\n", "\n")


def _has_text(part: Message, kind: str) -> bool:
    for inner in part.walk():
        if inner.get_content_type() == kind and inner.get_content_disposition() != "attachment":
            payload = inner.get_payload()
            if isinstance(payload, str) and payload.strip():
                return True
    return False


def _charset(part: Message) -> str | None:
    try:
        return part.get_content_charset()
    except (LookupError, ValueError, TypeError):  # an encoded parameter in an unknown encoding
        return None


def _header(message: Message, name: str) -> str:
    value = message.get(name)
    if value is None:
        return ""
    try:
        text = str(email.header.make_header(email.header.decode_header(value)))
    except (LookupError, ValueError, TypeError):  # an unknown encoding, or bytes that are not in it
        text = str(value)
    return " ".join(text.encode("utf-8", "replace").decode().split())[:1000]


def _date(message: Message) -> str | None:
    try:
        return email.utils.parsedate_to_datetime(str(message.get("Date"))).isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
