"""Block lists for the addresses of documents: domains, addresses, words.

The rules are those of datatrove 0.10.1's URLFilter, with three differences. A listed domain blocks all that is under it, so no
list of public suffixes is needed. Words are compared in lower case. An address is compared without scheme, fragment and final
slash.
"""

import dataclasses
import functools
import ipaddress
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
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


@dataclasses.dataclass(frozen=True)
class BlockLists:
    """What is blocked. All entries are normalised as `block_lists` does."""

    domains: frozenset[str] = frozenset()  # "example.com" blocks "www.example.com", too
    urls: frozenset[str] = frozenset()
    strict_words: frozenset[str] = frozenset(STRICT_WORDS)  # between signs, as in /xxx/
    soft_words: frozenset[str] = frozenset(SOFT_WORDS)
    substrings: frozenset[str] = frozenset(SUBSTRINGS)  # of the address without its signs

    @functools.cached_property
    def substring_lengths(self) -> list[int]:
        return sorted({len(word) for word in self.substrings})


def block_lists(
    domains: Iterable[str] = (),
    urls: Iterable[str] = (),
    strict_words: Iterable[str] = STRICT_WORDS,
    soft_words: Iterable[str] = SOFT_WORDS,
    substrings: Iterable[str] = SUBSTRINGS,
) -> BlockLists:
    """Return block lists of these entries. Words lose their signs, and empty entries are left out."""
    words = (frozenset(_compact(word) for word in given) - {""} for given in (strict_words, soft_words, substrings))
    named = frozenset(host_of("//" + domain.strip().removeprefix("*.")) for domain in domains)
    return BlockLists(named - {""}, frozenset(_address(url) for url in urls) - {""}, *words)


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


def url_columns(urls: Sequence[str | None], lists: BlockLists) -> dict[str, np.ndarray]:
    """Return what the lists say of the first 4,096 characters of each address. A missing address is on none.

    Returns:
        url_host: str [documents], in lower case, without port; "" if there is none.
        url_domain, url_listed: bool; the host or one above it, or the whole address, is listed.
        url_strict_words, url_soft_words, url_substrings: int32, the number of different entries in the address.
    """
    size = len(urls)
    urls = [(url or "")[:LONGEST] for url in urls]
    hosts = [host_of(url) for url in urls]
    columns = {
        "url_host": np.array(hosts, dtype=np.str_) if hosts else np.zeros(0, np.str_),
        "url_domain": np.array([_is_under(host, lists.domains) for host in hosts], bool),
        "url_listed": np.array([_address(url) in lists.urls for url in urls], bool),
        "url_strict_words": np.zeros(size, np.int32),
        "url_soft_words": np.zeros(size, np.int32),
        "url_substrings": np.zeros(size, np.int32),
    }
    for number, url in enumerate(urls):
        words = set(_NOT_ALPHANUMERIC.split(url.lower()))
        columns["url_strict_words"][number] = len(words & lists.strict_words)
        columns["url_soft_words"][number] = len(words & lists.soft_words)
        columns["url_substrings"][number] = len(_substrings(_compact(url), lists))
    return columns


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
