"""Find IPv4 and IPv6 addresses.

By default only public addresses are personal: those of private networks and of documentation (`ipaddress`, `is_global`) stay,
as in FineWeb (datatrove 0.10.1, PIIFormatter). Unlike there, a version, a section number or an object identifier is no address.
"""

import ipaddress
import re
from collections.abc import Iterator

from data.filters.pii.spans import Span

_DOT = r"(?:\.|\[\.\]|\s{0,2}\[dot\]\s{0,2}|\s{1,2}\.\s{1,2})"
_IPV4 = re.compile(rf"\d\d{{0,2}}+(?:{_DOT}\d{{1,3}}+){{3}}+")
_SEPARATOR = re.compile(_DOT)
_NUMBERED = re.compile(
    r"(?:\b(?:v|ver|version|versions|release|build|firmware|revision|rev|section|sec|chapter|figure|fig|table|clause|article|"
    r"paragraph|rule|sdk|driver|kernel|ec|update|patch|specs?|mysql|ios|android|windows|"
    r"macos|linux|php|python|java|node|chrome|firefox|safari|opera|ruby|gcc|nginx|apache|openssl|postgres(?:ql)?|oracle|django|"
    r"wordpress|office|reader|player|oid)s?[.: \"'(]{1,4}|§\s{0,2}|\bv|[=~<>!]=\s?)\Z",
    re.IGNORECASE,
)
_RELEASED = re.compile(r"\s(?:released?|build|version|update|firmware)\b", re.IGNORECASE)
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6 = re.compile(r"[0-9A-Fa-f:]{2,39}+(?:(?:\.\d{1,3}){3})?")
_HEX = frozenset("0123456789abcdefABCDEF")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA assigns; `ab::cd` in a program is outside


def find_ips(text: str, public_only: bool = True) -> Iterator[Span]:
    """Yield the spans of IP addresses in a folded text. public_only: not those of private networks and documentation."""
    if text.count(".") >= 3 or "[dot]" in text:
        yield from _ipv4(text, public_only)
    if text.count(":") >= 2:
        yield from _ipv6(text, public_only)


def _ipv4(text: str, public_only: bool) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        start, end = match.span()
        try:
            address = ipaddress.IPv4Address(_SEPARATOR.sub(".", match[0]))
        except ValueError:
            continue
        before, after = text[max(0, start - 24) : start], text[end : end + 2]
        if (
            before[-1:].isalnum()
            or (before and before[-1] in "._-+~$" and not re.search(r"\.\d{1,3}-\Z", before))
            or after[:1].isalnum()
            or after[:1] == "_"
        ):
            continue
        if (after[:1] == "." and after[1:].isalnum()) or (after[:1] in ("-", "+", "~") and after[1:].isalpha()):
            continue
        if before.endswith("/") and not before.endswith("//") and not before[-2:-1].isdigit() and before[-2:-1].isalpha():
            continue  # Product/1.2.3.4
        if _NUMBERED.search(before) or _RELEASED.match(text, end) or (public_only and not address.is_global):
            continue
        yield Span(start, end, "ip")


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
        said = match[0]
        end = match.end() - (said.endswith(":") and not said.endswith("::"))
        before, after = text[max(0, start - 1) : start], text[match.end() : match.end() + 1]
        if before.isalnum() or (before and before in "_:.") or after.isalnum() or after in ("_", ":"):
            continue
        try:
            address = ipaddress.IPv6Address(text[start:end])
        except ValueError:
            continue
        mapped = address.ipv4_mapped
        if mapped is not None:
            personal = mapped.is_global or not public_only
        elif public_only:
            personal = address.is_global and address in _GLOBAL_UNICAST
        else:
            personal = address in _GLOBAL_UNICAST or address.is_link_local or address.is_private and end - start > 6
        if personal:
            yield Span(start, end, "ip")
