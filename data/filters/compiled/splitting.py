"""Cut chunks into words: the rules of data/filters/splitting.py on code points."""

from typing import NamedTuple

import numpy as np

from data.filters.compiled import compiled

CODES = 0x40000  # code points; those above are of no class
# Classes of characters, as bits.
LETTER, LOW, HIGH, QUOTE, ICON, BEFORE, AFTER, BEFORE_FULL_STOP, CURRENCY, WORD, INNER = (1 << k for k in range(11))

_ZERO, _NINE, _A, _Z = map(ord, "09az")
_DOT, _PLUS, _HYPHEN, _COLON, _SLASH, _AT, _UNDERSCORE, _QUESTION, _HASH, _DOLLAR = map(ord, ".+-:/@_?#$")
_STAR, _CARET, _COMMA, _LESS, _GREATER, _EQUALS, _APOSTROPHE, _CURLY = map(ord, "*^,<>='’")
_EN_DASH, _EM_DASH, _TILDE, _DOTS, _DEGREE = map(ord, "–—~…°")
_UPPER_A, _C, _F, _K, _UPPER_S, _U, _S = map(ord, "ACFKSUs")
_PRIME, _OFFSET = np.uint64(0x100000001B3), np.uint64(0xCBF29CE484222325)  # of FNV-1a (Fowler, Noll and Vo) with 64 bits


class Tables(NamedTuple):
    """What is known of characters and words. Keys, uint64, stand in hash tables with open addressing; 0 where there is none.

    classes: uint16 [CODES]
    exceptions: keys of the texts that the rules do not split as English wants
    words, parts: uint16, of an exception: where its words and, if there are several, the rules' parts begin; bit k: at k > 0
    after_digit: keys of what comes off the end behind a digit
    longest, longest_after_digit: int, code points
    """

    classes: np.ndarray
    exceptions: np.ndarray
    words: np.ndarray
    parts: np.ndarray
    after_digit: np.ndarray
    longest: int
    longest_after_digit: int


@compiled
def cut(codes, at_C, size_C, tables, is_cut):
    """Set is_cut where a word begins in the chunks codes[at_C[c] : at_C[c] + size_C[c]]; it is False there before."""
    classes, keys, longest = tables.classes, tables.exceptions, tables.longest
    for c in range(len(at_C)):
        first, last = at_C[c], at_C[c] + size_C[c]
        begin, end = first, last
        while begin < end:
            exception = _exception(codes, begin, end, keys, longest)
            if exception >= 0:
                _set(begin, end - begin, tables.words[exception], is_cut)
                break
            inner, outer = begin + _prefix(codes, begin, end, classes), end
            if inner == begin or _exception(codes, inner, end, keys, longest) < 0:
                outer -= _suffix(codes, inner, end, tables.after_digit, tables.longest_after_digit, classes)
                if outer < end and inner > begin and _exception(codes, begin, outer, keys, longest) >= 0:
                    inner = begin  # the first mark belongs to the exception
            if inner == begin and outer == end:
                if not _is_address(codes, begin, end, classes):
                    _cut_inside(codes, begin, end, classes, is_cut)
                break
            begin, end = inner, outer
            is_cut[begin] = is_cut[end] = True
        if _has_cut_exception(codes, first, last, keys, tables.parts, longest, is_cut):
            _join(codes, first, last, tables, is_cut)


@compiled
def _class(codes, i, classes):
    return classes[codes[i]] if codes[i] < CODES else np.uint16(0)


@compiled
def key_of(codes, begin, end):
    """Return a number for up to 15 code points: a hash, and how many they are in the lowest four bits."""
    hash = _OFFSET
    for i in range(begin, end):
        hash = _more(hash, codes[i])
    return _end(hash, end - begin)


@compiled
def _more(hash, code):
    return (hash ^ np.uint64(code)) * _PRIME


@compiled
def _end(hash, size):
    return hash << np.uint64(4) | np.uint64(size)


@compiled
def find(keys, key):
    """Return where the key is in the table, or −1 − the place where it would be."""
    slot = np.int64(key >> np.uint64(4) & np.uint64(len(keys) - 1))
    while keys[slot] and keys[slot] != key:
        slot = (slot + 1) & (len(keys) - 1)
    return slot if keys[slot] else -1 - slot


@compiled
def _exception(codes, begin, end, keys, longest):
    """Return the place of an exception in its table, or a number below 0."""
    if begin == end or end - begin > longest:
        return -1
    return find(keys, key_of(codes, begin, end))


@compiled
def _set(begin, size, mask, is_cut):
    """Let words begin at begin + k where bit k of the mask is set, and not elsewhere between begin and begin + size."""
    for k in range(1, size):
        is_cut[begin + k] = mask >> k & 1


@compiled
def _prefix(codes, begin, end, classes):
    """Return the length of the mark that comes off the beginning, or 0."""
    first, kind = codes[begin], _class(codes, begin, classes)
    if kind & (BEFORE | ICON | CURRENCY):
        return 1
    if first == _DOT:
        size = 1
        while begin + size < end and codes[begin + size] == _DOT:
            size += 1
        return size if size > 1 else 0
    if first == _PLUS:
        return int(not (begin + 1 < end and _is_digit(codes[begin + 1])))
    currency = 2 if first == _U and begin + 1 < end and codes[begin + 1] == _UPPER_S else 1 if first in (_C, _UPPER_A) else 0
    return currency + 1 if currency and begin + currency < end and codes[begin + currency] == _DOLLAR else 0


@compiled
def _suffix(codes, begin, end, after_digit, longest, classes):
    """Return the length of the mark or unit that comes off the end, or 0."""
    size = end - begin
    if not size:
        return 0
    for most in range(min(longest, size - 1), 0, -1):
        if _is_digit(codes[end - most - 1]) and find(after_digit, key_of(codes, end - most, end)) >= 0:
            return most
    last, previous = codes[end - 1], codes[end - 2] if size > 1 else np.uint32(0)
    if size > 1 and ((last == _DOTS and previous == _DOTS) or (last | 32 == _S and (previous in (_APOSTROPHE, _CURLY)))):
        return 2
    if last != _DOT:
        return int(_class(codes, end - 1, classes) & (AFTER | ICON) > 0)
    dots = 1
    while dots < size and codes[end - dots - 1] == _DOT:
        dots += 1
    if dots > 1 or size == 1:
        return dots if dots > 1 else 0
    kind = _class(codes, end - 2, classes)
    if kind & (BEFORE_FULL_STOP | LOW):
        return 1
    before = _class(codes, end - 3, classes) if size > 2 else np.uint16(0)
    degrees = size > 2 and codes[end - 3] == _DEGREE and previous in (_C, _F, _K)
    return int(degrees or (kind & HIGH > 0 and before & HIGH > 0))


@compiled
def _is_digit(code):
    return _ZERO <= code <= _NINE


@compiled
def _cut_inside(codes, begin, end, classes, is_cut):
    """Cut at marks between letters or digits."""
    i = begin
    while i < end:
        size = _infix(codes, begin, i, end, classes) if _class(codes, i, classes) & INNER else 0
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
    if code == _DOTS or kind & ICON:
        return 1
    if i == begin or i + 1 == end:
        return 0
    previous, following = _class(codes, i - 1, classes), _class(codes, i + 1, classes)
    if code == _DOT:
        return int(previous & (LOW | QUOTE) > 0 and following & (HIGH | QUOTE) > 0)
    if code == _COMMA:
        return int(previous & LETTER > 0 and following & LETTER > 0)
    is_digit = _is_digit(codes[i - 1])
    if is_digit and code in (_PLUS, _HYPHEN, _STAR, _CARET) and (_is_digit(codes[i + 1]) or codes[i + 1] == _HYPHEN):
        return 1
    if not (is_digit or previous & LETTER):
        return 0
    if code in (_COLON, _LESS, _GREATER, _EQUALS, _SLASH, _EN_DASH, _TILDE):
        return int(following & LETTER > 0)
    if code == _HYPHEN or code == _EM_DASH:
        size, most = 1, 3 if code == _HYPHEN else 2
        while i + size < end and codes[i + size] == code:
            size += 1
        return size if size <= most and i + size < end and _class(codes, i + size, classes) & LETTER else 0
    return 0


@compiled
def _is_address(codes, begin, end, classes):
    """Return whether a chunk is an address of the web, of mail or of a machine."""
    dot = False
    for i in range(begin, end):
        dot |= codes[i] == _DOT
    if not dot:
        return False
    if _is_host(codes, begin, end, classes):
        return True
    i = begin
    while i < end and (_class(codes, i, classes) & WORD or codes[i] in (_PLUS, _DOT, _HYPHEN)):
        i += 1
    if i - begin >= 2 and i + 2 < end and codes[i] == _COLON and codes[i + 1] == _SLASH and codes[i + 2] == _SLASH:
        if _is_host(codes, i + 3, end, classes):
            return True
    for i in range(begin + 1, end):
        if codes[i] == _AT and _is_host(codes, i + 1, end, classes):
            return True
    return False


@compiled
def _is_host(codes, begin, end, classes):
    """Return whether names with dots between them, or four numbers, begin here, with a port and a path or without."""
    i, labels = begin, 0
    while True:  # a label and a dot; behind the last one there is no dot
        start = i
        while i < end and _class(codes, i, classes) & LOW:
            i += 1
        if labels and 2 <= i - start <= 63 and _is_rest(codes, i, end):
            return True
        i = start
        while i < end and (_is_label(codes[i]) or codes[i] == _UNDERSCORE or codes[i] == _HYPHEN):
            i += 1
        if i == end or codes[i] != _DOT or not 1 <= i - start <= 64:
            break
        if not _is_label(codes[start]) or not _is_label(codes[i - 1]):
            break
        labels += 1
        i += 1
    return _is_public_machine(codes, begin, end)


@compiled
def _is_label(code):
    return _A <= code | 32 <= _Z or _is_digit(code) or 0xA1 <= code <= 0xFFFF


@compiled
def _is_public_machine(codes, begin, end):
    """Return whether four numbers begin here that are the address of a machine, and none of a private network."""
    i, first, second = begin, 0, 0
    for part in range(4):
        if part:
            if i == end or codes[i] != _DOT:
                return False
            i += 1
        start, number = i, 0
        while i < end and i - start < 3 and _is_digit(codes[i]):
            number = 10 * number + codes[i] - _ZERO
            i += 1
        size = i - start
        least, most = (1, 223) if part == 0 else (1, 254) if part == 3 else (0, 255)
        if not size or not least <= number <= most or (codes[start] == _ZERO and (size == 3 or least)):
            return False
        first, second = number if part == 0 else first, number if part == 1 else second
    if first in (10, 127) or (first == 169 and second == 254) or (first == 192 and second == 168):
        return False
    return not (first == 172 and 16 <= second <= 31) and _is_rest(codes, i, end)


@compiled
def _is_rest(codes, i, end):
    """Return whether what follows a host is nothing, a port, or a path."""
    if i < end and codes[i] == _COLON:
        start = i + 1
        i = start
        while i < end and i - start < 5 and _is_digit(codes[i]):
            i += 1
        if i - start < 2:
            return False
    return i == end or codes[i] == _SLASH or codes[i] == _QUESTION or codes[i] == _HASH


@compiled
def _has_cut_exception(codes, first, last, keys, parts, longest, is_cut):
    """Return whether parts of codes[first:last] make an exception."""
    end = last - 1  # of the last part that another one follows
    while end > first and not is_cut[end]:
        end -= 1
    for begin in range(first, end):
        if begin > first and not is_cut[begin]:
            continue
        hash, mask = _OFFSET, 0
        for size in range(1, min(longest, last - begin) + 1):
            hash = _more(hash, codes[begin + size - 1])
            if begin + size == last or is_cut[begin + size]:
                slot = find(keys, _end(hash, size)) if mask else -1
                if slot >= 0 and parts[slot] == mask:
                    return True
                mask |= 1 << size
    return False


@compiled
def _join(codes, first, last, tables, is_cut):
    """Give the exceptions among the parts of codes[first:last] their words: the longest first, of equal ones the leftmost."""
    was_cut, free = is_cut[first : last + 1].copy(), np.ones(last - first, np.bool_)
    was_cut[0] = was_cut[last - first] = True
    for parts in range(tables.longest, 1, -1):
        for begin in range(last - first):
            size, mask, count = 0, 0, 0
            while was_cut[begin] and count < parts and begin + size < last - first and size < tables.longest:
                size += 1
                if was_cut[begin + size]:
                    count += 1
                    mask |= 1 << size if count < parts else 0
            slot = _exception(codes, first + begin, first + begin + size, tables.exceptions, tables.longest)
            if slot < 0 or count < parts or tables.parts[slot] != mask:
                continue
            start = size - 1
            while not was_cut[begin + start]:
                start -= 1
            if free[begin] and free[begin + start]:
                _set(first + begin, size, tables.words[slot], is_cut)
            free[begin : begin + size] = False
