"""What a page or a file says about its licence and about robots, as an SPDX identifier and as metadata."""

import re
from collections.abc import Mapping

# Names of <meta> that speak to crawlers. "tdm-reservation" and "tdm-policy" are the W3C group's TDM Reservation Protocol.
ROBOTS = "robots googlebot bingbot gptbot ccbot google-extended anthropic-ai claudebot applebot-extended".split()
TDM = ("tdm-reservation", "tdm-policy")
LICENCE_NAMES = ("dc.rights", "dcterms.rights", "dcterms.license", "dc.rights.license", "copyright", "license", "licence")
_WANTED = frozenset((*ROBOTS, *TDM, *LICENCE_NAMES))
# Selects the nodes that may have one of these names: to ask each <meta> for its name takes longer.
_PARTS = ("bot", "-extended", "anthropic-ai", "tdm-", "rights", "licens", "licenc", "copyright")
_MAY_SPEAK = "meta:is(" + ",".join(f'[name*="{part}" i]' for part in _PARTS) + ")"
MAX_VALUE = 500  # characters of a value that is kept

_REL_LICENCE = re.compile(r"rel=[\"']?[^\"'<>]{0,60}?license")
_CC = re.compile(r"creativecommons\.org/licen[sc]es/([a-z-]+)/(\d\.\d)(?:/([a-z]{2}))?", re.IGNORECASE)
_KNOWN_URLS = {
    "creativecommons.org/publicdomain/zero/1.0": "CC0-1.0",
    "apache.org/licenses/license-2.0": "Apache-2.0",
    "opensource.org/licenses/mit": "MIT",
    "opensource.org/license/mit": "MIT",
    "gnu.org/licenses/fdl": "GFDL-1.3-or-later",
    "gnu.org/copyleft/fdl": "GFDL-1.3-or-later",
}


def of_url(url: str) -> str | None:
    """Return the SPDX identifier of a licence's address, such as CC-BY-SA-4.0, or None."""
    found = _CC.search(url)
    if found:
        kind, version, country = found.groups()
        ported = f"-{country.upper()}" if country and version != "4.0" else ""
        return f"CC-{kind.upper()}-{version}{ported}"
    lower = url.lower()
    return next((name for part, name in _KNOWN_URLS.items() if part in lower), None)


def of_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return metadata of HTTP headers, whose names are in lower case: "robots", "tdm-…", "licence_link"."""
    found = {}
    if "x-robots-tag" in headers:
        found["robots"] = _short(headers["x-robots-tag"])
    found |= {name: _short(headers[name]) for name in TDM if name in headers}
    link = re.search(r"<([^>]*)>\s*;\s*rel=\"?license", headers.get("link", ""), re.IGNORECASE)
    if link:
        found["licence_link"] = _short(link.group(1))
    return found


def of_page(tree, html: str) -> tuple[str | None, dict[str, str]]:
    """Return (SPDX identifier or None, metadata) of a parsed page: meta robots, TDM, rights, and links to a licence."""
    found: dict[str, str] = {}
    links = []
    head = tree.head
    for node in head.query_selector_all(_MAY_SPEAK) if head is not None else ():
        name = (node.getattr("name") or "").strip().lower()
        if name not in _WANTED or not (content := node.getattr("content")):
            continue
        if name in ROBOTS:
            rule = content if name == "robots" else f"{name}: {content}"
            found["robots"] = _short(f"{found['robots']}, {rule}" if "robots" in found else rule)
        else:
            found.setdefault(name if name in TDM else "rights", _short(content))
    if "license" in html and _REL_LICENCE.search(html):  # cheaper than the search in the tree
        links = [node.getattr("href") or "" for node in tree.document.query_selector_all("a[rel~=license],link[rel~=license]")]
    links = [link for link in links if link.strip()]
    if links:
        found.setdefault("licence_link", _short(links[0]))
    named = [of_url(link) for link in (*links, found.get("rights", ""))]
    return next(filter(None, named), None), found


def _short(value: str) -> str:
    return " ".join(value.split())[:MAX_VALUE]
