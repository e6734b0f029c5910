"""Find e-mail addresses, also written as "name (at) host dot com".

The search is anchored at the "@" and the words for it, and reads at most 64 characters to the left (RFC 5321, 4.5.3.1.1) and a
few labels to the right. So its time grows linearly with the text, whatever the text.
"""

import re
from collections.abc import Iterator

from data.filters.pii.domains import is_top_level
from data.filters.pii.folding import adjoins
from data.filters.pii.spans import Span

LOCAL_CHARACTERS = frozenset("._%+-'~&")  # beside letters and digits; the rest of RFC 5322's are never used by people
LOCAL_LENGTH = 64
# A page that is named after a verb is no address: "find us at example dot com".
PLACES = frozenset(
    """us me more online out visit shop look store available information info details is are was be it them him her find
    found buy order book sold sale here there live only and or now back read see watch listen up one you site website
    blog page prices tickets free products items works work working worked job employed studies registered hosted""".split()
)
REPOSITORIES = frozenset(("git", "hg", "svn"))  # git@github.com:owner/name names a place, not a person

_LABEL = r"[0-9A-Za-z_\u00c0-\u052f-]{1,63}+"  # of a domain, in Latin, Greek or Cyrillic; others end it
_DOMAIN = re.compile(rf"@({_LABEL}(?:\.{_LABEL}){{1,8}}+)")
_LITERAL = re.compile(r"@\[\d{1,3}(?:\.\d{1,3}){3}\]")
_SPACED = re.compile(rf"@\s{{0,2}}({_LABEL}(?:(?:\.|\s{{1,2}}\.\s{{1,2}}){_LABEL}){{1,5}}+)")
_DOT_WORD = r"\s{0,2}[(\[{<]\s{0,2}(?:dot|punkt|point|punto|\.)\s{0,2}[)\]}>]\s{0,2}|\s{1,2}(?:dot|punkt|punto)\s{1,2}"
_DOT = rf"(?:{_DOT_WORD}|\s{{1,2}}\.\s{{1,2}}|\.)"
# Its first character is a plain set, which `re` searches fastest.
_BRACKETED_AT = re.compile(
    r"[(\[{<&%](?:(?<=[(\[{<])\s{0,2}(?:at|a|@|ät|arroba)\s{0,2}[)\]}>]|(?<=&)(?:#0{0,3}64|#x0{0,3}40|commat);|(?<=%)40)",
    re.IGNORECASE,
)
_WORD_AT = re.compile(r"\s(?:at|AT|At|ät)(?=\s)")
_HIDDEN_DOMAIN = re.compile(rf"\s{{0,2}}({_LABEL}(?:{_DOT}{_LABEL}){{1,6}}+)", re.IGNORECASE)
_HIDDEN_LOCAL = re.compile(rf"(?<![\w.+-])[\w+-]++(?:{_DOT}[\w+-]++){{0,4}}\s{{0,2}}\Z", re.IGNORECASE)
_SPLIT = re.compile(_DOT, re.IGNORECASE)
_WORDED = re.compile(_DOT_WORD, re.IGNORECASE)
# What every worded dot has; where none of these is, the word "at" is not looked at.
_DOT_GATES = (
    *((word, re.compile(word + r"[\s)\]}>]")) for word in ("dot", "punkt", "punto")),
    ("point", re.compile(r"point\s{0,2}[)\]}>]")),
    (".", re.compile(r"[(\[{<]\s{0,2}\.\s{0,2}[)\]}>]")),
)


def find_emails(text: str) -> Iterator[Span]:
    """Yield the spans of e-mail addresses in a folded text. They may overlap."""
    if "@" in text:
        yield from _plain(text)
    for match in _BRACKETED_AT.finditer(text):
        yield from _hidden(text, match.start(), match.end(), worded=False)
    lower = text.lower()
    if any([word in lower and gate.search(lower) for word, gate in _DOT_GATES]):
        for match in _WORD_AT.finditer(text):
            yield from _hidden(text, match.start(), match.end(), worded=True)


def _plain(text: str) -> Iterator[Span]:
    at = text.find("@")
    while at >= 0:
        match = _DOMAIN.match(text, at) or _LITERAL.match(text, at)
        spaced = match is None or (at > 0 and text[at - 1].isspace())
        if spaced:
            match = _SPACED.match(text, at)
        if match is not None:
            end = match.end() if match.lastindex is None else _domain_end(text, match.start(1), match.end(1), _SPLIT)
            stop = at
            while spaced and stop > max(at - 2, 0) and text[stop - 1].isspace():
                stop -= 1
            start = local_start(text, stop)
            local = text[start:stop]
            if end and start < stop and not (spaced and local.lower() in PLACES):
                if not (local in REPOSITORIES and text[end : end + 1] in (":", "/")):
                    yield Span(start, end, "email")
        at = text.find("@", at + 1)


def _hidden(text: str, start: int, end: int, worded: bool) -> Iterator[Span]:
    """Yield the address around a replaced "@" at start … end. If that is the word "at", the dot must be a word, too."""
    match = _HIDDEN_DOMAIN.match(text, end)
    if match is None:
        return
    stop = _domain_end(text, match.start(1), match.end(1), _SPLIT)
    if not stop or (worded and _WORDED.search(text[match.start(1) : stop]) is None):
        return
    before = text[max(0, start - LOCAL_LENGTH) : start]
    local = _HIDDEN_LOCAL.search(before)
    if local is None or local[0].strip().lower() in PLACES:
        return
    yield Span(start - len(before) + local.start(), stop, "email")


def local_start(text: str, end: int) -> int:
    """Return where the part of an address before its "@" at `end` begins, `end` if there is none."""
    start = end
    while start > max(0, end - LOCAL_LENGTH):
        character = text[start - 1]
        if not (character in LOCAL_CHARACTERS or adjoins(character)):
            break
        start -= 1
    while start < end and text[start] in "._%-'~&+":
        start += 1
    return start


def _domain_end(text: str, start: int, end: int, dot: re.Pattern) -> int:
    """Return the end of the longest prefix of text[start:end] that is a domain with a known top level, 0 if there is none."""
    domain = text[start:end]
    dots = list(dot.finditer(domain))
    ends = [match.start() for match in dots[1:]] + [len(domain)]
    for match, stop in zip(reversed(dots), reversed(ends)):
        if not domain[: match.start()].rstrip("_-")[-1:].isalnum():
            continue
        label = domain[match.end() : stop]
        for said in (label.rstrip("_-"), re.split("[_-]", label)[0]):  # also "a@b.com-or write"
            if is_top_level(said):
                return start + match.end() + len(said)
    return 0
