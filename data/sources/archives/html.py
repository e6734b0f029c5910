"""Main text, title and rights of an HTML page, by resiliparse.

Its extraction takes time that grows with the depth of a page, so deep pages are refused after parsing, which is linear. The
number of attributes of a tag is limited too: the parser compares each with the ones before it.
"""

import dataclasses
import re
from collections.abc import Iterator

from data.sources.archives import rights
from data.sources.archives.encodings import decode
from data.sources.source import Document, Quarantined
from data.sources.streams import Unreadable, open_stream

MAX_HTML_BYTES = 5 << 20  # where Common Crawl cuts a page. A hostile page takes up to 200 times its size.
MAX_DEPTH = 512  # of nested elements, as in Blink (kMaximumHTMLParserDOMTreeDepth)
FEW_TAGS = 2_000  # a page with fewer is cheap at any depth
MAX_ATTRIBUTES = 2_000  # of one tag
_TAG = re.compile(r"<[a-zA-Z](?:[^<>\"']++|\"[^\"<]*+\"|'[^'<]*+')*+")
_LONG = 8_000  # characters; a shorter tag has few attributes
_GAP = 4_000  # a stretch of 8,000 characters without "<" holds an aligned one of 4,000
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_DEEP = ">".join(["*"] * (MAX_DEPTH + 1))


@dataclasses.dataclass(frozen=True)
class Page:
    text: str
    language: str | None  # as declared by <html lang>
    licence: str | None
    metadata: dict[str, str]


def page(data: bytes, charset: str | None = None, *, main_content: bool = True) -> Page:
    """Return the text of a page.

    Args:
        charset: the encoding that the server declared; the page may declare another.
        main_content: leave out navigation, footers and the like.

    Raises: Unreadable: "html over 5 MiB", "html too deep", "html tag too long", "binary", "unknown encoding", "no text".
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    if len(data) > MAX_HTML_BYTES:
        raise Unreadable(f"html over {MAX_HTML_BYTES >> 20} MiB")
    html = decode(data, (charset, _meta_charset(data)), replace=True)
    has_gap = any(html.find("<", at, at + _GAP) < 0 for at in range(0, len(html) - _GAP, _GAP))
    for tag in _TAG.finditer(html) if has_gap else ():
        if tag.end() - tag.start() > _LONG and len(_QUOTED.sub(" ", tag.group()).split()) > MAX_ATTRIBUTES:
            raise Unreadable("html tag too long")
    tree = HTMLTree.parse(html)
    if html.count("<") > FEW_TAGS and tree.document.query_selector(_DEEP) is not None:
        raise Unreadable("html too deep")
    text = extract_plain_text(tree, main_content=main_content).strip()
    if not text:
        raise Unreadable("no text")
    licence, metadata = rights.of_page(tree, html)
    if title := " ".join((tree.title or "").split()):
        metadata["title"] = title
    return Page(text, _language(tree), licence, metadata)


def read(path: str, id: str, *, main_content: bool = True) -> Iterator[Document | Quarantined]:
    """Yield the document of one HTML file."""
    with open_stream(path) as stream:
        data = stream.read(MAX_HTML_BYTES + 1)
    found = page(data, main_content=main_content)
    yield Document(id, found.text, path, found.licence, language=found.language, metadata=found.metadata or None)


def language_tag(declared: str | None) -> str | None:
    """Return the primary part of a language tag in lower case, "en" for "en-GB"; None if it is not one."""
    first = re.split(r"[-_,;\s]", (declared or "").strip().lower(), maxsplit=1)[0]
    return first if re.fullmatch(r"[a-z]{2,3}", first) else None


def _language(tree) -> str | None:
    root = tree.document.query_selector("html")
    return language_tag(root.getattr("lang")) if root is not None else None


def _meta_charset(data: bytes) -> str | None:
    """Return the encoding that the first 1,024 bytes declare, as the HTML standard has it."""
    found = re.search(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w:.-]+)", data[:1024], re.IGNORECASE)
    return found.group(1).decode("ascii", "ignore") if found else None
