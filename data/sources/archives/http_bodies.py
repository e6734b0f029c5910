"""Headers of HTTP and of WARC records, and the bodies of responses, whose encodings are undone."""

import codecs
import io
import re
import zlib
from collections.abc import Callable, Mapping

from data.sources.members import STEP
from data.sources.streams import Unreadable

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_END_OF_HEADERS = re.compile(rb"\r?\n\r?\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_NO_ENCODINGS = ("", "identity", "none", "utf-8")  # the last is no encoding, but some servers send it
MAX_HEADER_BYTES = 64 << 10
TEXT_BYTES = 64  # that tell text from compressed data
READ_BYTES = 1 << 12  # of Brotli's output, whose reader loses the block in which an error is
ZSTD_WINDOW = 1 << 23  # RFC 9659


def fields(block: bytes) -> dict[str, str]:
    """Return the fields of a header by their names in lower case, of equal names the last. Folded lines are joined."""
    found: dict[str, str] = {}
    name = ""
    for line in block.decode("utf-8", "replace").split("\n"):
        if line[:1] in (" ", "\t") and name in found:
            found[name] = f"{found[name]} {line.strip()}".strip()
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if colon:
            found[name] = value.strip()
    return found


def split(message: bytes) -> tuple[int | None, dict[str, str], bytes]:
    """Return (status, fields, body) of a response; without a header (None, {}, message)."""
    status = _STATUS.match(message)
    if status is None:
        return None, {}, message
    end = _END_OF_HEADERS.search(message, 0, MAX_HEADER_BYTES)
    head, body = (message[: end.start()], message[end.end() :]) if end else (message[:MAX_HEADER_BYTES], b"")
    return int(status[1]), fields(head.partition(b"\n")[2]), body


def decoded(body: bytes, headers: Mapping[str, str], limit: int) -> tuple[bytes, str | None]:
    """Undo the transfer and content encodings of a body. Archives such as Common Crawl's are stored without.

    Args:
        limit: bytes of the result, and of each step to it.

    Returns: the body, and what was cut: "http" (by its Content-Length), "chunked", "gzip", …; None: nothing.
    Raises: Unreadable: the body is damaged, over the limit, or of an encoding that cannot be undone.
    """
    length = headers.get("content-length", "")
    cut = "http" if length.isdecimal() and len(body) < int(length[:20]) and "transfer-encoding" not in headers else None
    if "chunked" in headers.get("transfer-encoding", "").lower() and _CHUNK.match(body):
        body, whole = _joined(body)
        cut = None if whole else "chunked"
    for name in reversed(headers.get("content-encoding", "").lower().replace(" ", "").split(",")):
        if not body or _is_text(body):  # some archives undo an encoding and keep its header
            continue
        undo = _UNDO.get(name.removeprefix("x-"))
        if undo is None and name not in _NO_ENCODINGS:
            raise Unreadable(f"{name[:20]} body cannot be decoded")
        if undo is not None:
            body, whole = undo(body, limit)
            cut = cut if whole else cut or name
        if len(body) > limit:
            raise Unreadable(f"record over {limit >> 20} MiB")
    return body, cut


def _is_text(body: bytes) -> bool:
    head = body[:TEXT_BYTES]
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return _CONTROL.search(head) is None


def _joined(body: bytes) -> tuple[bytes, bool]:
    """Return the content of all chunks, and whether the last one is there (RFC 9112, section 7.1)."""
    parts, at = [], 0
    while head := _CHUNK.match(body, at):
        size, at = int(head[1], 16), head.end()
        if size == 0:
            return b"".join(parts), True
        parts.append(body[at : at + size])
        at += size
        at += 2 if body[at : at + 2] == b"\r\n" else body[at : at + 1] == b"\n"
    return b"".join(parts), False


def _deflate(body: bytes, limit: int) -> tuple[bytes, bool]:
    """Undo zlib's format, or deflate without its header, which some servers send (RFC 9110, section 8.4.1.2)."""
    headed = body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0  # RFC 1950, section 2.2
    return _inflated(body, 15 if headed else -15, "deflate", limit)


def _inflated(body: bytes, window: int, name: str, limit: int) -> tuple[bytes, bool]:
    inflate = zlib.decompressobj(window)
    try:
        found = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise Unreadable(f"bad {name} body", str(error)) from error
    return found, inflate.eof or len(found) > limit


def _brotli(body: bytes, limit: int) -> tuple[bytes, bool]:
    from fastwarc import stream_io

    reader, found, size = stream_io.BrotliReader(io.BytesIO(body)), [], 0
    try:
        while size <= limit and (block := reader.read(READ_BYTES)):
            found.append(block)
            size += len(block)
    except (OSError, ValueError) as error:  # a body that ends too early is an error, too
        if not found:
            raise Unreadable("bad br body", str(error)) from error
        return b"".join(found), False
    return b"".join(found), True


def _zstd(body: bytes, limit: int) -> tuple[bytes, bool]:
    import zstandard

    frame, found, size = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj(), [], 0
    try:
        for at in range(0, len(body), STEP):
            found.append(frame.decompress(body[at : at + STEP]))
            size += len(found[-1])
            if frame.eof or size > limit:
                break
    except zstandard.ZstdError as error:
        raise Unreadable("bad zstd body", str(error)) from error
    return b"".join(found), frame.eof or size > limit


_UNDO: dict[str, Callable[[bytes, int], tuple[bytes, bool]]] = {
    "gzip": lambda body, limit: _inflated(body, 31, "gzip", limit),
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
