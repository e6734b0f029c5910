"""Block lists for the addresses of documents: domains, addresses, words.

The rules are those of datatrove 0.10.1's URLFilter, with three differences. A listed domain blocks all that is under it, so no
list of public suffixes is needed. Words are compared in lower case. An address is compared without scheme, fragment and final
slash.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from lm.errors import UserError

# A few words of sites that sell sex, gambling or pills. Longer lists, such as UT1's, are read from files.
STRICT_WORDS = ("porn", "porno", "xxx", "hentai", "camgirls", "sexcam", "xvideos")
SOFT_WORDS = (
    "sex", "sexy", "adult", "nude", "naked", "erotic", "escort", "escorts", "webcam", "cams", "fetish", "milf", "casino",
    "casinos", "poker", "slots", "roulette", "betting", "bookmaker", "jackpot", "gambling", "viagra", "cialis", "levitra",
    "pharmacy", "pills",
)  # fmt: skip
SUBSTRINGS = ("pornhub", "freeporn", "sexvideo", "livesex", "onlinecasino", "casinobonus", "buyviagra", "cheapviagra")
LONGEST = 4096  # characters of an address that are read

_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")


class BlockLists:
    """What is blocked. Words lose their signs, and empty entries are left out.

    domains: "example.com" blocks "www.example.com" too. strict_words, soft_words: between signs, as in /xxx/.
    substrings: of the address without its signs.
    """

    def __init__(
        self,
        domains: Iterable[str] = (),
        urls: Iterable[str] = (),
        strict_words: Iterable[str] = STRICT_WORDS,
        soft_words: Iterable[str] = SOFT_WORDS,
        substrings: Iterable[str] = SUBSTRINGS,
    ):
        self.domains = frozenset(host_of("//" + domain.strip().removeprefix("*.")) for domain in domains) - {""}
        self.urls = frozenset(map(_address, urls)) - {""}
        self.strict_words, self.soft_words = (frozenset(map(_compact, some)) - {""} for some in (strict_words, soft_words))
        self.substrings = frozenset(map(_compact, substrings)) - {""}
        self.substring_lengths = sorted(set(map(len, self.substrings)))


def read_list(path: str | Path) -> list[str]:
    """Return the entries of a list file: one a line; blank lines and those that begin with "#" are left out.

    Raises:
        UserError: the file cannot be read, or is no UTF-8 text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this list ({error}); give a UTF-8 text file with one entry a line") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def url_columns(urls: Sequence[str | None], lists: BlockLists) -> dict[str, Any]:
    """Return what the lists say of the first 4,096 characters of each address. A missing address is on none.

    Returns:
        url_host: list of str, in lower case, without port; "" if there is none.
        url_domain, url_listed: bool; the host or one above it, or the whole address, is listed.
        url_strict_words, url_soft_words, url_substrings: int32, the number of different entries in the address.
    """
    urls = [(url or "")[:LONGEST] for url in urls]
    hosts, words = list(map(host_of, urls)), [set(_NOT_ALPHANUMERIC.split(url.lower())) for url in urls]
    return {
        "url_host": hosts,
        "url_domain": np.array([_is_under(host, lists.domains) for host in hosts], bool),
        "url_listed": np.array([_address(url) in lists.urls for url in urls], bool),
        "url_strict_words": np.array([len(own & lists.strict_words) for own in words], np.int32),
        "url_soft_words": np.array([len(own & lists.soft_words) for own in words], np.int32),
        "url_substrings": np.array([len(_substrings(_compact(url), lists)) for url in urls], np.int32),
    }


def host_of(url: str) -> str:
    """Return the host of an address in lower case, "" if there is none.

    International names are punycode. IPv6 addresses are in their shortest form without brackets, which they may lack in a list.
    """
    if "//" not in url:
        url = "//" + url
    try:
        parts = urlsplit(url.strip())
        if parts.netloc.count(":") > 1 and (number := _ipv6(parts.netloc.rpartition("@")[2]) or _ipv6(parts.hostname or "")):
            return number
        host = (parts.hostname or "").rstrip(".")
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError:  # also UnicodeError: no valid address or name
        return ""


def _ipv6(host: str) -> str:
    try:
        return ipaddress.IPv6Address(host.strip("[]")).compressed
    except ValueError:
        return ""


def _address(url: str) -> str:
    """Return an address without scheme, "www.", fragment and final slash."""
    said = url.strip().split("#")[0].split("://")[-1]
    host, slash, rest = said.partition("/")
    return (host.lower().removeprefix("www.") + slash + rest).rstrip("/")


def _is_under(host: str, domains: frozenset[str]) -> bool:
    while host:
        if host in domains:
            return True
        host = host.partition(".")[2]
    return False


def _compact(text: str) -> str:
    return _NOT_ALPHANUMERIC.sub("", text.lower())


def _substrings(text: str, lists: BlockLists) -> set[str]:
    """Return the listed words that occur in `text`. The time does not grow with the length of the list."""
    pieces = (text[at : at + size] for size in lists.substring_lengths for at in range(len(text) - size + 1))
    return lists.substrings.intersection(pieces)
