"""Articles of a MediaWiki XML dump, such as Wikipedia's pages-articles.xml.bz2."""

import re
import urllib.parse
from collections.abc import Iterator

from data.sources.archives import html, wikitext, xml
from data.sources.source import Document, Quarantined
from data.sources.streams import open_stream

_FIELDS = frozenset({"title", "ns", "id", "timestamp", "model", "text", "base", "namespace"})
# Wikimedia's terms of use have this licence since June 2023; other wikis have their own.
_WIKIMEDIA = re.compile(r"https?://[^/]*\.(?:wikipedia|wiktionary|wikibooks|wikisource|wikivoyage|wikiversity|wikiquote)\.org/")
_LICENCE = "CC-BY-SA-4.0"
_DROPPED_NAMESPACES = ("6", "14")  # files and categories, whose names depend on the language


def read(path: str, id: str) -> Iterator[Document | Quarantined]:
    """Yield the articles of a dump as plain text. Redirects and other namespaces than 0 give nothing."""
    base, language = "", None
    prefixes: set[str] = set()
    page: dict[str, str | None] = {}
    number = 0
    with open_stream(path) as stream:
        for depth, name, attributes, text in xml.elements(stream, _FIELDS):
            if name == "page" and depth == 2:
                number += 1
                found = _article(page, path, id, number, base, language, frozenset(prefixes))
                page = {}
                if found:
                    yield found
            elif name == "redirect":
                page["redirect"] = attributes.get("title", "")
            elif name == "base":
                base = text or ""
                host = urllib.parse.urlsplit(base).hostname or ""  # "de" for https://de.wikipedia.org/wiki/…
                language = html.language_tag(host.split(".")[0]) if _WIKIMEDIA.match(base) and host.count(".") >= 2 else None
            elif name == "namespace":
                if attributes.get("key") in _DROPPED_NAMESPACES and text:
                    prefixes.add(text.lower())
            elif name in _FIELDS and depth in (3, 4) and not (name == "id" and "id" in page):
                page[name] = text


def _article(
    page: dict, path: str, id: str, number: int, base: str, language: str | None, prefixes: frozenset[str]
) -> Document | Quarantined | None:
    if "redirect" in page or page.get("ns", "0") != "0" or page.get("model", "wikitext") != "wikitext":
        return None
    where = f"page {page.get('id') or number}"
    source = page.get("text", "")
    if source is None or len(source) > wikitext.MAX_CHARACTERS:
        return Quarantined(path, where, f"article over {wikitext.MAX_CHARACTERS >> 20} MiB")
    text = wikitext.plain(source, prefixes)
    if not text:
        return Quarantined(path, where, "no text")
    title = page.get("title") or ""
    name = urllib.parse.quote(title.replace(" ", "_"), safe="/:(),!'*~")
    return Document(
        f"{id}#{page.get('id') or number}",
        text,
        path,
        _LICENCE if _WIKIMEDIA.match(base) else None,
        url=urllib.parse.urljoin(base, name) if base and title else None,
        language=language,
        date=page.get("timestamp"),
        metadata={"title": title} if title else None,
    )
