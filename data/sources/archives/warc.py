"""Documents of WARC and WET archives: pages of web crawls, with address, date and rights.

A bad record is quarantined and the next one is read, see data/sources/archives/warc_records.py. A page that was cut gives the
document of what is there, with "truncated" in its metadata.
"""

import re
from collections.abc import Iterator, Mapping

from data.sources.archives import html, rights, warc_records
from data.sources.archives.encodings import decode
from data.sources.archives.http_bodies import decoded, split
from data.sources.archives.warc_records import Record
from data.sources.source import Document, Quarantined
from data.sources.streams import Unreadable

MAX_NAME = 200  # characters of a record's address in a report
_LOOKS_LIKE_HTML = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body)", re.IGNORECASE)
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w:.-]+)", re.IGNORECASE)
_WANTED = ("response", "resource", "conversion")


def read(path: str, id: str, *, main_content: bool = True) -> Iterator[Document | Quarantined]:
    """Yield the documents of a WARC or WET file; HTML gives its main text, plain text is kept as it is.

    Requests, metadata, redirects, errors of the server and other types of content give nothing.
    """
    for record in warc_records.records(path):
        if record.problem is None and record.fields.get("warc-type", "").lower() not in _WANTED:
            continue
        try:
            if record.problem:
                raise Unreadable(record.problem)
            found, cut = _document(record, path, f"{id}#{record.number}", main_content)
        except Unreadable as error:
            yield Quarantined(path, _name(record), error.reason, record.place)
            continue
        if found:
            yield found
        if found and cut:
            yield Quarantined(path, _name(record), f"cut {cut} body", record.place)


def _name(record: Record) -> str:
    """Return how a report names a record: its number and, if known, its address or else its id."""
    about = _address(record.fields) or record.fields.get("warc-record-id") or ""
    readable = about.isprintable() and " " not in about  # in a damaged header it may not be
    return f"record {record.number}" + (f" {about[:MAX_NAME]}" if about and readable else "")


def _document(record: Record, path: str, id: str, main_content: bool) -> tuple[Document | None, str | None]:
    """Return the document of a record, None if it is of no wanted type, and what was cut. Raises: Unreadable."""
    headers, server, body, cut = record.fields, {}, record.body, None
    content_type = headers.get("content-type", "")
    if content_type.lower().startswith("application/http"):
        status, server, body = split(body)
        if status is None and not _LOOKS_LIKE_HTML.match(body):
            raise Unreadable("no http header")
        if status not in (200, 203, None):
            return None, None
        content_type = server.get("content-type", "")
    kind = content_type.split(";")[0].strip().lower()
    if kind and kind not in _HTML_TYPES and (not kind.startswith("text/") or kind == "text/dns"):
        return None, None
    if server:
        body, cut = decoded(body, server, warc_records.MAX_RECORD_BYTES)
    id = (headers.get("warc-record-id") or id).strip("<>")
    about = {"url": _address(headers), "date": headers.get("warc-date")}
    language = html.language_tag(headers.get("warc-identified-content-language") or server.get("content-language"))
    metadata = rights.of_headers(server)
    if truncated := headers.get("warc-truncated"):
        cut = None  # the crawler's limit, and no loss
    if truncated or cut:
        metadata["truncated"] = truncated or cut
    found = _CHARSET.search(content_type)
    charset = found.group(1) if found else None
    if kind not in _HTML_TYPES and (kind or not _LOOKS_LIKE_HTML.match(body)):
        text = decode(body, (charset,), replace=cut is not None)
        if not text or text.isspace():
            raise Unreadable("no text")
        licence = rights.of_url(metadata.get("licence_link", ""))
        return Document(id, text, path, licence, **about, language=language, metadata=metadata or None), cut
    page = html.page(body, charset, main_content=main_content)
    if "robots" in metadata and "robots" in page.metadata:
        metadata["robots"] += ", " + page.metadata["robots"]
    metadata = page.metadata | metadata
    licence = page.licence or rights.of_url(metadata.get("licence_link", ""))
    return Document(id, page.text, path, licence, **about, language=page.language or language, metadata=metadata or None), cut


def _address(headers: Mapping[str, str]) -> str | None:
    address = headers.get("warc-target-uri", "").strip("<>")  # WARC 1.0 shows it in brackets
    return address or None
