"""Cut chunks into words: the rules of data/filters/splitting.py, which is the plain twin, on code points."""

import functools
import unicodedata
from typing import NamedTuple

import numpy as np

from data.filters import splitting
from data.filters.characters import QUOTES, first_characters, is_icon
from data.filters.compiled import compiled

CODES = 0x40000  # code points; those above are of no class
# Classes of characters, as bits. The INNER ones cut inside a chunk, which the plain twin decides below 65,536 only.
ALPHA, DIGIT, DECIMAL, ALPHANUMERIC, LOWER, UPPER, BEFORE, AFTER, CURRENCY, ICON, SINGLE = (1 << k for k in range(11))
INNER_ICON, INNER_LOWER, INNER_UPPER = (1 << k for k in range(11, 14))

_ZERO, _NINE, _A, _Z, _DOT, _PLUS, _HYPHEN, _COLON, _SLASH, _AT, _UNDERSCORE = map(ord, "09az.+-:/@_")
_STAR, _CARET, _COMMA, _PERCENT, _SQUARE, _QUESTION, _HASH, _LESS, _GREATER, _EQUALS = map(ord, "*^,%²?#<>=")
_APOSTROPHE, _CURLY, _EN_DASH, _EM_DASH, _TILDE, _DOTS = map(ord, "'’–—~…")
_D, _E, _L, _M, _N, _R, _S, _T, _V = map(ord, "delmnrstv")


class Tables(NamedTuple):
    """What is known of characters and words.

    classes: uint16 [CODES]
    whole: uint64, sorted, ASCII words with marks that stay whole, eight bits a character
    joined, joined_at: uint64, sorted, and int64: words that are cut behind so many characters
    units: uint64, sorted, units of measurement, sixteen bits a character
    """

    classes: np.ndarray
    whole: np.ndarray
    joined: np.ndarray
    joined_at: np.ndarray
    units: np.ndarray


@functools.cache
def tables() -> Tables:
    """Return the tables, made of the sets of data/filters/splitting.py. It takes about a tenth of a second, once a process."""
    characters = first_characters(CODES)
    classes = np.zeros(CODES, np.uint16)
    methods = ((str.isalpha, ALPHA), (str.isdigit, DIGIT), (str.isdecimal, DECIMAL), (str.isalnum, ALPHANUMERIC))
    for method, bit in (*methods, (str.islower, LOWER), (str.isupper, UPPER)):
        classes |= np.fromiter(map(method, characters), bool, CODES) * np.uint16(bit)
    for some, bit in ((splitting.BEFORE, BEFORE), (splitting.AFTER, AFTER), (splitting.CURRENCY, CURRENCY)):
        classes[[ord(character) for character in some]] |= bit
    icons = [code for code, category in enumerate(map(unicodedata.category, characters)) if category == "So"]
    classes[[code for code in icons if is_icon(chr(code))]] |= ICON
    for first, last in splitting.SINGLE:
        classes[ord(first) : ord(last) + 1] |= SINGLE
    low, quotes = classes[:0x10000], [ord(quote) for quote in QUOTES]
    for outer, inner in ((ICON, INNER_ICON), (LOWER, INNER_LOWER), (UPPER, INNER_UPPER)):
        low |= np.where(low & outer, inner, 0).astype(np.uint16)
    low[0xD800:0xE000] &= ~np.uint16(INNER_ICON | INNER_LOWER | INNER_UPPER)
    low[quotes] |= INNER_LOWER | INNER_UPPER
    joined = sorted((_key(word, 8), len(first)) for word, (first, _) in splitting.JOINED.items())
    keys = [sorted(_key(word, bits) for word in some) for some, bits in ((splitting.WHOLE, 8), (splitting.UNITS, 16))]
    return Tables(
        classes,
        np.array(keys[0], np.uint64),
        np.array([key for key, _ in joined], np.uint64),
        np.array([at for _, at in joined], np.int64),
        np.array(keys[1], np.uint64),
    )


def _key(word: str, bits: int) -> int:
    return functools.reduce(lambda key, character: key << bits | ord(character), word, 0)


@compiled
def cut(codes, at_C, size_C, tables, longest, is_cut):
    """Set is_cut where a word begins in the chunks codes[at_C[c] : at_C[c] + size_C[c]]; it is False there before.

    longest: of a chunk that is split, in code points.
    """
    classes = tables.classes
    for c in range(len(at_C)):
        begin, end = at_C[c], at_C[c] + size_C[c]
        if size_C[c] > longest:
            continue
        while begin < end and _class(codes, begin, classes) & BEFORE:
            begin += 1
            is_cut[begin] = True
        while end > begin and _class(codes, end - 1, classes) & AFTER:
            end -= 1
            is_cut[end] = True
        while begin < end:
            key = _packed(codes, begin, end, 8, 8)
            joined = _find(tables.joined, key)
            if joined >= 0:
                is_cut[begin + tables.joined_at[joined]] = True
                break
            if _find(tables.whole, key) >= 0 or _is_address(codes, begin, end, classes):
                break
            size = _prefix(codes, begin, end, classes)
            if size:
                begin += size
                is_cut[begin] = True
                continue
            size = _suffix(codes, begin, end, tables.units, classes)
            if not size:
                _cut_inside(codes, begin, end, classes, is_cut)
                break
            end -= size
            is_cut[end] = True


@compiled
def _class(codes, i, classes):
    return classes[codes[i]] if codes[i] < CODES else np.uint16(0)


@compiled
def _packed(codes, begin, end, bits, most):
    """Return up to `most` code points of so many bits as one number; 0 if there are more or higher ones."""
    key = np.uint64(0)
    if end - begin > most:
        return key
    for i in range(begin, end):
        if codes[i] >> bits:
            return np.uint64(0)
        key = key << np.uint64(bits) | np.uint64(codes[i])
    return key


@compiled
def _find(keys, key):
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) >> 1
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low if low < len(keys) and keys[low] == key else -1


@compiled
def _prefix(codes, begin, end, classes):
    """Return the length of the mark that comes off the beginning, or 0."""
    if _class(codes, begin, classes) & (BEFORE | ICON):
        return 1
    if codes[begin] == _DOT:
        size = 1
        while begin + size < end and codes[begin + size] == _DOT:
            size += 1
        return size if size > 1 else 0
    return int(codes[begin] == _PLUS and not (begin + 1 < end and _class(codes, begin + 1, classes) & DIGIT))


@compiled
def _suffix(codes, begin, end, units, classes):
    """Return the length of the mark, clitic or unit that comes off the end, or 0."""
    size, last = end - begin, codes[end - 1]
    kind = _class(codes, end - 1, classes)
    if kind & (AFTER | ICON):
        return 1
    previous = codes[end - 2] if size > 1 else np.uint32(0)
    before = _class(codes, end - 2, classes) if size > 1 else np.uint16(0)
    if last == _DOT:
        if previous == _DOT:
            dots = 2
            while dots < size and codes[end - dots - 1] == _DOT:
                dots += 1
            return dots
        if size == 1 or (size == 2 and before & ALPHA):
            return 0
        if before & (DIGIT | LOWER | AFTER) or previous in (_PERCENT, _SQUARE, _HYPHEN, _PLUS):
            return 1
        return int(size > 2 and before & UPPER > 0 and _class(codes, end - 3, classes) & UPPER > 0)
    quoted = previous == _APOSTROPHE or previous == _CURLY
    if quoted and size > 2 and last | 32 == _S:
        return 2
    if kind & ALPHA and not before & DIGIT:
        third = codes[end - 3] if size > 3 else np.uint32(0)
        if (third == _APOSTROPHE or third == _CURLY) and previous & 32 == last & 32:  # both are lower case, or upper case
            one, two = previous | 32, last | 32
            if (one == _L and two == _L) or ((one == _R or one == _V) and two == _E):
                return 3
        if quoted and last == _T and third == _N:
            return 3
        if quoted and size > 2 and (last | 32 == _D or last | 32 == _M):
            return 2
    if last == _PLUS or kind & CURRENCY:
        return int(before & DIGIT > 0)
    for unit in range(4, 0, -1):
        if size > unit and _ZERO <= codes[end - unit - 1] <= _NINE:
            if _find(units, _packed(codes, end - unit, end, 16, 4)) >= 0:
                return unit
    return 0


@compiled
def _cut_inside(codes, begin, end, classes, is_cut):
    """Cut at marks between letters or digits, and around characters that are words."""
    plain = True
    for i in range(begin, end):
        plain &= _class(codes, i, classes) & ALPHANUMERIC > 0
    i = begin
    while i < end:
        size = 1
        if not _class(codes, i, classes) & SINGLE:
            size = 0 if plain else _infix(codes, begin, i, end, classes)
        if size:
            is_cut[i] |= i > begin
            is_cut[i + size] |= i + size < end
        i += max(size, 1)


@compiled
def _infix(codes, begin, i, end, classes):
    """Return the length of the mark at i that cuts codes[begin:end], or 0."""
    code, kind = codes[i], _class(codes, i, classes)
    if code == _DOT and i + 1 < end and codes[i + 1] == _DOT:
        size = 2
        while i + size < end and codes[i + size] == _DOT:
            size += 1
        return size
    if code == _DOTS or kind & INNER_ICON:
        return 1
    if i == begin or i + 1 == end or kind & ALPHANUMERIC:
        return 0
    previous, following = _class(codes, i - 1, classes), _class(codes, i + 1, classes)
    if code == _DOT:
        return int(previous & INNER_LOWER > 0 and following & INNER_UPPER > 0)
    if code == _COMMA:
        return int(_is_letter(previous) and _is_letter(following))
    if code in (_PLUS, _HYPHEN, _STAR, _CARET) and _ZERO <= codes[i - 1] <= _NINE:
        if _ZERO <= codes[i + 1] <= _NINE or codes[i + 1] == _HYPHEN:
            return 1
    if not previous & ALPHANUMERIC:
        return 0
    if code in (_COLON, _LESS, _GREATER, _EQUALS, _SLASH, _EN_DASH, _TILDE):
        return int(_is_letter(following))
    if code == _HYPHEN or code == _EM_DASH:
        size, most = 1, 3 if code == _HYPHEN else 2
        while i + size < end and codes[i + size] == code:
            size += 1
        return size if size <= most and i + size < end and _is_letter(_class(codes, i + size, classes)) else 0
    return 0


@compiled
def _is_letter(kind):
    return kind & ALPHANUMERIC > 0 and kind & DECIMAL == 0


@compiled
def _is_address(codes, begin, end, classes):
    """Return whether a chunk with a dot is an address of the web, of mail or of a machine."""
    dot = False
    for i in range(begin, end):
        dot |= codes[i] == _DOT
    if not dot:
        return False
    i = begin
    while i < end and (_class(codes, i, classes) & ALPHANUMERIC or codes[i] in (_UNDERSCORE, _PLUS, _DOT, _HYPHEN)):
        i += 1
    scheme = i - begin >= 2 and i + 2 < end and codes[i] == _COLON and codes[i + 1] == _SLASH and codes[i + 2] == _SLASH
    start = i + 3 if scheme else begin
    while True:  # with a user's name and without, behind the scheme and from the beginning
        user = start
        while user < end and codes[user] != _AT and codes[user] != _SLASH:
            user += 1
        host = user + 1 if start < user < end and codes[user] == _AT else start
        while True:
            if _is_host(codes, host, end, classes):
                return True
            if host == start:
                break
            host = start
        if start == begin:
            return False
        start = begin


@compiled
def _is_host(codes, begin, end, classes):
    """Return whether names with dots between them, or four numbers, begin here, with a port and a path or without."""
    i, labels = begin, 0
    while True:  # a label and a dot; behind the last one there is no dot
        start, low = i, True
        while i < end and (_is_label(codes[i]) or codes[i] == _UNDERSCORE or codes[i] == _HYPHEN):
            low &= _A <= codes[i] <= _Z or 0xDF <= codes[i] <= 0xFF
            i += 1
        if i == end or codes[i] != _DOT:
            if labels and low and 2 <= i - start <= 63 and _is_rest(codes, i, end, classes):
                return True
            break
        if not 1 <= i - start <= 64 or not _is_label(codes[start]) or not _is_label(codes[i - 1]):
            break
        labels += 1
        i += 1
    i = begin
    for part in range(4):
        if part:
            if i == end or codes[i] != _DOT:
                return False
            i += 1
        start = i
        while i < end and i - start < 3 and _class(codes, i, classes) & DECIMAL:
            i += 1
        if i == start:
            return False
    return _is_rest(codes, i, end, classes)


@compiled
def _is_label(code):
    return _A <= code | 32 <= _Z or _ZERO <= code <= _NINE or 0xA1 <= code <= 0xFFFF


@compiled
def _is_rest(codes, i, end, classes):
    """Return whether what follows a host is nothing, a port, or a path."""
    if i < end and codes[i] == _COLON:
        start = i + 1
        i = start
        while i < end and i - start < 5 and _class(codes, i, classes) & DECIMAL:
            i += 1
        if i - start < 2:
            return False
    return i == end or codes[i] == _SLASH or codes[i] == _QUESTION or codes[i] == _HASH
