"""Documents of WARC and WET archives, by FastWARC: pages of web crawls, with address, date and rights.

A damaged archive gives the documents before the damage. FastWARC alone takes a truncated archive for a complete one, so the
archive is decompressed here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from data.sources.archives import html, rights
from data.sources.archives.encodings import decode
from data.sources.source import Document, Quarantined
from data.sources.streams import BLOCK_BYTES, Unreadable, open_stream

MAX_RECORD_BYTES = 16 << 20  # of a record's body, before and after the server's own compression
_LOOKS_LIKE_HTML = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body)", re.IGNORECASE)
_HTML_TYPES = ("text/html", "application/xhtml+xml")


def read(path: str, id: str, *, main_content: bool = True) -> Iterator[Document | Quarantined]:
    """Yield the documents of a WARC or WET file; HTML gives its main text, plain text is kept as it is.

    Requests, metadata, redirects, errors of the server and other types of content give nothing.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    wanted = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    with open_stream(path) as stream:
        records = iter(ArchiveIterator(_Forward(stream), record_types=wanted, parse_http=False, stream_detect=False))
        number = 0
        while True:
            try:
                record = next(records, None)
                if record is None:
                    return
                number += 1
                found = _document(record, path, f"{id}#{number}", main_content)
            except Unreadable as error:
                yield Quarantined(path, f"record {number}", error.reason)
                if error.reason.startswith(("truncated", "damaged")):
                    return
                continue
            except (OSError, ValueError) as error:
                reason = "warc header too long" if "header length" in str(error) else "damaged warc"
                yield Quarantined(path, f"after record {number}", reason)
                return
            if found:
                yield found


def _document(record, path: str, id: str, main_content: bool) -> Document | None:
    """Return the document of a record, or None if it is of no wanted type. Raises: Unreadable."""
    headers, server, kind, charset = record.headers, {}, record.headers.get("Content-Type"), None
    if record.is_http:
        try:
            record.parse_http(auto_decode="none")  # a body that FastWARC cannot decode would end the archive
        except (OSError, ValueError) as error:
            raise Unreadable("bad http headers") from error
        if record.http_headers.status_code not in (200, 203):
            return None
        server = {name.lower(): value for name, value in record.http_headers.items()}
        kind, charset = record.http_content_type, record.http_charset
    kind = (kind or "").split(";")[0].strip().lower()
    if kind and kind not in _HTML_TYPES and not kind.startswith("text/"):
        return None
    body = _body(record, server)
    id = (headers.get("WARC-Record-ID") or id).strip("<>")
    about = {"url": headers.get("WARC-Target-URI"), "date": headers.get("WARC-Date")}
    language = html.language_tag(headers.get("WARC-Identified-Content-Language") or server.get("content-language"))
    metadata = rights.of_headers(server)
    if headers.get("WARC-Truncated"):
        metadata["truncated"] = headers["WARC-Truncated"]
    if kind not in _HTML_TYPES and (kind or not _LOOKS_LIKE_HTML.match(body)):
        text = decode(body, (charset,))
        if not text or text.isspace():
            raise Unreadable("no text")
        licence = rights.of_url(metadata.get("licence_link", ""))
        return Document(id, text, path, licence, **about, language=language, metadata=metadata or None)
    page = html.page(body, charset, main_content=main_content)
    if "robots" in metadata and "robots" in page.metadata:
        metadata["robots"] += ", " + page.metadata["robots"]
    metadata = page.metadata | metadata
    licence = page.licence or rights.of_url(metadata.get("licence_link", ""))
    return Document(id, page.text, path, licence, **about, language=page.language or language, metadata=metadata or None)


def _body(record, server: dict[str, str]) -> bytes:
    length = record.content_length
    if length > MAX_RECORD_BYTES:
        raise Unreadable(f"record over {MAX_RECORD_BYTES >> 20} MiB")
    body = record.reader.read(length) if length else b""
    if len(body) < length:
        raise Unreadable("truncated record")
    return _decoded(body, server) if server else body


def _decoded(body: bytes, server: dict[str, str]) -> bytes:
    """Undo the transfer and content encodings of a response. Archives such as Common Crawl's are stored without."""
    from fastwarc import stream_io

    chunked = server.get("transfer-encoding", "").lower()
    if "chunked" in chunked and re.match(rb"[0-9a-fA-F]{1,8}[ \t]*(?:;[^\r\n]*)?\r\n", body):
        body = _read(stream_io.ChunkedReader(io.BytesIO(body)), "chunked")
    for name in reversed(server.get("content-encoding", "").lower().replace(" ", "").split(",")):
        if name in ("gzip", "x-gzip") and body.startswith(b"\x1f\x8b"):  # some archives undo it and keep the header
            body = _read(stream_io.GzipReader(io.BytesIO(body)), name)
        elif name == "deflate" and body[:1] == b"x":
            body = _read(stream_io.GzipReader(io.BytesIO(body), zlib=True), name)
        elif name == "br":
            body = _read(stream_io.BrotliReader(io.BytesIO(body)), name)
        elif name == "zstd" and body.startswith(b"(\xb5/\xfd"):
            body = _read(stream_io.ZstdReader(io.BytesIO(body)), name)
    return body


def _read(reader, name: str) -> bytes:
    try:
        body = reader.read(MAX_RECORD_BYTES + 1)
        while 0 < len(body) <= MAX_RECORD_BYTES and (more := reader.read(MAX_RECORD_BYTES + 1 - len(body))):
            body += more
    except (OSError, ValueError) as error:
        raise Unreadable(f"bad {name} body") from error
    if len(body) > MAX_RECORD_BYTES:
        raise Unreadable(f"record over {MAX_RECORD_BYTES >> 20} MiB")
    return body


class _Forward:
    """A stream that can tell its position and skip forward, as FastWARC needs it."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._at = stream, 0
        # `read1` gives what there is: `read` would lose it if damage comes before `size` bytes.
        self._some = getattr(stream, "read1", stream.read)

    def read(self, size: int = -1) -> bytes:
        data = self._some(size)
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        left = offset if whence == io.SEEK_CUR else offset - self._at
        if left < 0 or whence == io.SEEK_END:
            raise io.UnsupportedOperation("seek")
        while left and (data := self.read(min(left, BLOCK_BYTES))):
            left -= len(data)
        return self._at

    def close(self) -> None:
        self._stream.close()
