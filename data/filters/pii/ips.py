"""Find IPv4 and IPv6 addresses.

By default only public addresses are personal: those of private networks and of documentation (`ipaddress`, `is_global`) stay,
as in FineWeb (datatrove 0.10.1, PIIFormatter). Unlike there, a version, a section number or an object identifier is no address.
"""

import ipaddress
import re
from collections.abc import Iterator

from data.filters.pii.folding import Span, adjoins

# Some are "defanged", so that no program opens them.
_DOT = r"(?:\.|[\[({]\.[\])}]|\s{0,2}[\[({]dot[\])}]\s{0,2}|\s{1,2}\.\s{1,2})"
_IPV4 = re.compile(rf"\d\d{{0,2}}+(?:{_DOT}\d{{1,3}}+){{3}}+")
# One of these is in every text with an address. They are searched faster.
_PLAIN = re.compile(r"\.\d{1,3}\.\d")
_DEFANGED = ("[.]", "(.)", "{.}", "dot]", "dot)", "dot}", " . ")
_SEPARATOR = re.compile(_DOT)
_NUMBERED = re.compile(
    r"(?:\b(?:v|ver|version|versions|release|build|firmware|revision|rev|section|sec|chapter|figure|fig|table|clause|article|"
    r"paragraph|rule|sdk|driver|kernel|ec|update|patch|specs?|mysql|ios|android|windows|"
    r"macos|linux|php|python|java|node|chrome|firefox|safari|opera|ruby|gcc|nginx|apache|openssl|postgres(?:ql)?|oracle|django|"
    r"wordpress|office|reader|player|oid)s?[.: \"'(]{1,4}|§\s{0,2}|\bv|[=~<>!]=\s?)\Z",
    re.IGNORECASE,
)
_RELEASED = re.compile(r"\s(?:released?|build|version|update|firmware)\b", re.IGNORECASE)
# After a number at the begin of a line.
_TITLED = re.compile(r"\.[^\S\n]{1,3}\w|\.?[^\S\n]{1,3}[A-Z\u0400-\u042f][a-z\u0430-\u052f]")
_UPGRADED = re.compile(r"\b(?:(?:up|down)grade[sd]?|bump(?:s|ed)?|migrat\w{1,4})\b[^\n]{0,24}\Z", re.IGNORECASE)
# Numbers of sections and versions are small. Only one public address in a thousand has four parts below 41.
SMALL = 41
_ADDRESSED = re.compile(
    r"(?:\b(?:ip|ipv4|address\w{0,2}|addr|host|hosts|server|dns|nameserver|resolver|gateway|inet|ping|ssh|telnet|curl|whois|dig|"
    r"traceroute|nslookup|proxy|subnet|network|route|client|router|banned|blocked|traffic)\b[^\n]{0,16}?|\bfrom\s|://|@|\[)\Z",
    re.IGNORECASE,
)
_PRODUCT = re.compile(r"(?:\A|[\s\"'(,;])[A-Za-z][\w.+-]*/\Z")  # Name/1.2.3.4
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6 = re.compile(r"[0-9A-Fa-f:]{2,64}+(?:(?:\.\d{1,3}){3})?")  # 39 characters, and a colon or a port beside them
_PORT = re.compile(r"(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}(?=:\d{1,5}\Z)")
_DEFANGED_IPV6 = re.compile(r"(?<![\w:])[0-9A-Fa-f]{1,4}(?:(?:\[::?\]|::?)[0-9A-Fa-f]{1,4}){2,7}+(?![\w:])")
_ZONE = re.compile(r"(?:%[A-Za-z][\w.-]{0,14}(?<![.-]))?")
_HEX = frozenset("0123456789abcdefABCDEF")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA assigns; `ab::cd` in a program is outside


def find_ips(text: str, public_only: bool = True) -> Iterator[Span]:
    """Yield the spans of IP addresses in a folded text. public_only: not those of private networks and documentation."""
    if _PLAIN.search(text) or any([part in text for part in _DEFANGED]):
        yield from _ipv4(text, public_only)
    if text.count(":") >= 2:
        yield from _ipv6(text, public_only)


def _ipv4(text: str, public_only: bool) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        start, end = match.span()
        parts = _SEPARATOR.sub(".", match[0]).split(".")
        if all([len(part) == 3 for part in parts]):  # filled up with zeros
            parts = [str(int(part)) for part in parts]
        try:
            address = ipaddress.IPv4Address(".".join(parts))
        except ValueError:
            continue
        before, after = text[max(0, start - 32) : start], text[end : end + 2]
        if (
            adjoins(before[-1:])
            or (before and before[-1] in "._-+~$" and not re.search(r"\.\d{1,3}-\Z", before))
            or adjoins(after[:1])
            or after[:1] == "_"
        ):
            continue
        if (after[:1] == "." and after[1:].isalnum()) or (after[:1] in ("-", "+", "~") and after[1:].isalpha()):
            continue
        if not _is_personal(address, public_only) or _is_numbering(text, start, end, before, parts):
            continue
        yield Span(start, end, "ip")


def _is_personal(address: ipaddress.IPv4Address | ipaddress.IPv6Address, public_only: bool) -> bool:
    return not public_only or (address.is_global and not address.is_multicast)


def _is_numbering(text: str, start: int, end: int, before: str, parts: list[str]) -> bool:
    """Return whether four numbers at start … end are a version, a section or the like, by what stands beside them."""
    if _PRODUCT.search(before) or _NUMBERED.search(before) or _UPGRADED.search(before) or _RELEASED.match(text, end):
        return True
    largest = max([int(part) for part in parts])
    if largest < 100 and before[-1:] in ("\n", "") and _TITLED.match(text, end):
        return True
    private = not ipaddress.IPv4Address(".".join(parts)).is_global
    return (
        largest < SMALL and not private and not (_ADDRESSED.search(before) or re.match(r"[:/]\d|\s?-\s-", text[end : end + 4]))
    )


def _ipv6(text: str, public_only: bool) -> Iterator[Span]:
    reached = 0
    for anchor in _COLONS.finditer(text):
        start = anchor.start()
        if start < reached:
            continue
        while start > max(anchor.start() - 4, 0) and text[start - 1] in _HEX:
            start -= 1
        match = _IPV6.match(text, start)
        if match is None:
            continue
        reached = match.end()
        if adjoins(text[max(0, start - 1) : start]) and text[anchor.start() + 1] != ":":  # IPv6:2a00:…
            start = anchor.start() + 1
        end = match.end() - (match[0].endswith(":") and not match[0].endswith("::"))
        before, after = text[max(0, start - 1) : start], text[match.end() : match.end() + 1]
        if adjoins(before) or (before and before in "_.") or adjoins(after) or after == "_":
            continue
        if full := _PORT.match(text[start:end]):
            end = start + full.end()
        if _is_ipv6(text[start:end], public_only):
            yield Span(start, _ZONE.match(text, end).end(), "ip")
    if "[:" in text:
        for match in _DEFANGED_IPV6.finditer(text):
            if _is_ipv6(re.sub(r"[\[\]]", "", match[0]), public_only):
                yield Span(*match.span(), "ip")


def _is_ipv6(said: str, public_only: bool) -> bool:
    try:
        address = ipaddress.IPv6Address(said)
    except ValueError:
        return False
    inner = address.ipv4_mapped or (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None)
    if inner is not None:
        return _is_personal(inner, public_only)
    if public_only:
        return address.is_global and address in _GLOBAL_UNICAST
    return address in _GLOBAL_UNICAST or address.is_link_local or (address.is_private and len(said) > 6)
