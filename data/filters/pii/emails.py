"""Find e-mail addresses, also written as "name (at) host dot com".

The search is anchored at the "@" and the words for it, and reads at most 64 characters to the left (RFC 5321, 4.5.3.1.1) and a
few labels to the right. So its time grows linearly with the text, whatever the text.
"""

import re
from collections.abc import Iterator

from data.filters.pii.domains import MAILBOXES, is_top_level
from data.filters.pii.folding import Span, adjoins, lowered

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
_SPACED = re.compile(rf"@\s{{0,2}}({_LABEL}(?:(?:\.|\s{{1,2}}\.\s{{1,2}}|\n\.){_LABEL}){{1,5}}+)")
_DOT_WORD = (
    r"\s{0,2}[(\[{<]\s{0,2}(?:dot|punkt|point|punto|ponto|kropka|точка|\.)\s{0,2}[)\]}>]\s{0,2}"
    r"|\s{1,2}(?:dot|punkt|punto|ponto|kropka|точка)\s{1,2}"
)
_DOT = rf"(?:{_DOT_WORD}|\s{{1,2}}\.\s{{1,2}}|\n?\.)"  # an address may be broken before a dot
# Its first character is a plain set, which `re` searches fastest.
_BRACKETED_AT = re.compile(
    r"[(\[{<%](?:(?<=[(\[{<])\s{0,2}(?:at|a|@|ät|arroba|arobase|chiocciola|małpa|собака)\s{0,2}[)\]}>]|(?<=%)40)", re.IGNORECASE
)
_WORD_AT = re.compile(r"\s(?:at|AT|At|ät|arroba|arobase|chiocciola|małpa|собака)(?=\s)")
# Both words between the same signs: jo -at- example -dot- org, jo_at_example_dot_org.
_SIGNED_AT = re.compile(r"([-_*|/]{1,2})at\1", re.IGNORECASE)
_MAIL_WORD = re.compile(
    r"\b(?:e-?mail|mail|(?:write|mail|reply|send) to|contact|author|from|to|cc)(?:\s(?:address|is|me|us))?"
    r"\s?[:=]?[\s<(\"']{0,3}\Z",
    re.IGNORECASE,
)
_HIDDEN_DOMAIN = re.compile(rf"\s{{0,2}}({_LABEL}(?:{_DOT}{_LABEL}){{1,6}}+)", re.IGNORECASE)
_HIDDEN_LOCAL = re.compile(rf"(?<![\w.+-])[\w+-]++(?:{_DOT}[\w+-]++){{0,4}}\s{{0,2}}\Z", re.IGNORECASE)
_APART = re.compile(r"(?<!\S)(?:[A-Za-z0-9._+-] ){2,40}@(?: [A-Za-z0-9.-]){4,60}(?!\S)")
_USER = re.compile(r"\b(?:https?|ssh|git|svn|ftp|rsync)(?:\+\w+)?://\Z", re.IGNORECASE)
_SPLIT = re.compile(_DOT, re.IGNORECASE)
_WORDED = re.compile(_DOT_WORD, re.IGNORECASE)
# What every worded dot has; where none of these is, the word "at" is not looked at.
_DOT_GATES = (
    *((word, re.compile(word + r"[\s)\]}>]")) for word in ("dot", "punkt", "punto", "ponto", "kropka")),
    ("point", re.compile(r"point\s{0,2}[)\]}>]")),
    (".", re.compile(r"\.(?:(?<=[(\[{<]\.)|(?<=[(\[{<]\s\.))\s{0,2}[)\]}>]")),
)


def find_emails(text: str) -> Iterator[Span]:
    """Yield the spans of e-mail addresses in a folded text. They may overlap."""
    if "@" in text:
        yield from _plain(text)
        if " @ " in text:
            yield from _letters_apart(text)
    for match in _BRACKETED_AT.finditer(text):
        yield from _hidden(text, match.start(), match.end())
    lower = lowered(text)
    worded = any([word in lower and gate.search(lower) for word, gate in _DOT_GATES]) or "точка" in lower
    if worded:
        for match in _WORD_AT.finditer(text):
            yield from _hidden(text, match.start(), match.end(), said=match[0].strip())
    else:
        at = lower.find(" at ")
        while at >= 0:
            if text.find(".", at + 4, at + 68) >= 0:
                yield from _hidden(text, at, at + 3, said=text[at + 1 : at + 3])
            at = lower.find(" at ", at + 3)
    if "dot" in lower:
        for match in _SIGNED_AT.finditer(text):
            yield from _signed(text, match)


def _plain(text: str) -> Iterator[Span]:
    at = text.find("@")
    while at >= 0:
        match = _DOMAIN.match(text, at) or _LITERAL.match(text, at)
        spaced = match is None or (at > 0 and text[at - 1].isspace())
        if spaced:
            match = _SPACED.match(text, at) or _HIDDEN_DOMAIN.match(text, at + 1)
        if match is not None:
            end = match.end() if match.lastindex is None else _domain_end(text, match.start(1), match.end(1))
            stop = at
            while spaced and stop > max(at - 2, 0) and text[stop - 1] in " \t":
                stop -= 1
            start = local_start(text, stop)
            local = text[start:stop]
            if spaced and (local.lower() in PLACES or local.endswith(".") or re.match(r"\.\w", text[end : end + 2])):
                end = 0
            if end and start < stop and not _is_place(text, start, local, end):
                yield Span(start, end, "email")
        at = text.find("@", at + 1)


def _is_place(text: str, start: int, local: str, end: int) -> bool:
    """Return whether an address names a repository or the user of a web page, not a mailbox."""
    repository = local in REPOSITORIES and text[end : end + 1] in (":", "/")
    return repository or _USER.search(text[max(0, start - 12) : start]) is not None


def _letters_apart(text: str) -> Iterator[Span]:
    """Yield addresses with a space after every character: j o @ e x a m p l e . o r g."""
    for match in _APART.finditer(text):
        at = text.index("@", match.start())
        compact = text[match.start() : match.end() : 2]
        stop = _domain_end(compact, compact.index("@") + 1, len(compact))
        if stop and compact[:1].isalnum() and at > match.start():
            yield Span(match.start(), match.start() + 2 * stop - 1, "email")


def _signed(text: str, match: re.Match) -> Iterator[Span]:
    """Yield the address around an "at" between signs, if a "dot" between the same signs follows."""
    sign = re.escape(match[1])
    after = re.compile(rf"\s?([A-Za-z0-9]+(?:\s?{sign}dot{sign}\s?[A-Za-z0-9]+)+)", re.IGNORECASE).match(text, match.end())
    before = text[max(0, match.start() - LOCAL_LENGTH) : match.start()]
    local = re.search(rf"[A-Za-z0-9](?:[A-Za-z0-9.+]|\s?{sign}dot{sign}\s?)*\s?\Z", before, re.IGNORECASE)
    if after is None or local is None or (local.start() and before[local.start() - 1].isalnum()):
        return
    if is_top_level(re.split(rf"{sign}\s?", after[1])[-1]):
        yield Span(match.start() - len(before) + local.start(), after.end(), "email")


def _hidden(text: str, start: int, end: int, said: str | None = None) -> Iterator[Span]:
    """Yield the address around a replaced "@" at start … end.

    said: the word for it, if no brackets are around it. Then the dot must be a word, too, or something else must tell that
    "jo at example.org" is an address.
    """
    match = _HIDDEN_DOMAIN.match(text, end)
    if match is None:
        return
    stop = _domain_end(text, match.start(1), match.end(1))
    if not stop:
        return
    before = text[max(0, start - LOCAL_LENGTH) : start]
    local = _HIDDEN_LOCAL.search(before)
    if local is None or local[0].strip().lower() in PLACES:
        return
    domain = text[match.start(1) : stop]
    if said is not None and domain.split(maxsplit=1)[0].lower() in ("a", "an", "the", "this", "that"):
        return  # "We met at a dot com company"
    if said is not None and _WORDED.search(domain) is None:
        name, lead = local[0].strip(), before[: local.start()]
        shouted = said == "AT" and (name.upper() != name or domain.islower())
        if not (
            said not in ("at", "At", "AT")
            or shouted
            or domain.lower() in MAILBOXES
            or _MAIL_WORD.search(lead)
            or (re.fullmatch(r"[a-z]+[._][a-z]{3,}\d*(?:\+\w+)?|[a-z.]+\+[a-z]+", name) is not None)
        ):
            return
    yield Span(start - len(before) + local.start(), stop, "email")


def local_start(text: str, end: int) -> int:
    """Return where the part of an address before its "@" at `end` begins, `end` if there is none."""
    start = end
    if text[end - 1 : end] == '"':  # "jo smith"@example.org
        opened = text.rfind('"', max(0, end - LOCAL_LENGTH), end - 1)
        return opened if opened >= 0 and "\n" not in text[opened:end] and end - opened > 2 else end
    while start > max(0, end - LOCAL_LENGTH):
        character = text[start - 1]
        if not (character in LOCAL_CHARACTERS or adjoins(character)):
            break
        start -= 1
    while start < end and text[start] in "._%-'~&+":
        start += 1
    return start


def _domain_end(text: str, start: int, end: int) -> int:
    """Return the end of the longest prefix of text[start:end] that is a domain with a known top level, 0 if there is none."""
    domain = text[start:end]
    dots = list(_SPLIT.finditer(domain))
    ends = [match.start() for match in dots[1:]] + [len(domain)]
    for match, stop in zip(reversed(dots), reversed(ends)):
        if not domain[: match.start()].rstrip("_-")[-1:].isalnum():
            continue
        label = domain[match.end() : stop]
        for said in (label.rstrip("_-"), re.split("[_-]", label)[0]):  # also "a@b.com-or write"
            if is_top_level(said):
                return start + match.end() + len(said)
    return 0
