"""Split a text without white space into words, punctuation, clitics and units: "(don't" gives "(", "do", "n't".

The rules follow those of spaCy's English tokenizer, since the published filters count its words: marks come off both ends one
at a time, then what is left is cut at hyphens and similar marks between letters. Web addresses and abbreviations stay whole.
tests/data/filters/test_splitting.py states how often the two differ. Ideographs and kana, which have no white space between
words, are words of one character each.
"""

import functools
import re

from data.filters.characters import QUOTES, is_icon, ranges

LONGEST = 1000  # characters; a longer text without white space is no prose and stays whole

_MARKS = frozenset("…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪") | QUOTES
CURRENCY = frozenset("$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿")
BEFORE = _MARKS | CURRENCY | frozenset("§%=—–")
AFTER = _MARKS | frozenset("—–")
UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa mbar "
    "mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ см мм кг г мг"
).split()
WHOLE = frozenset(
    "a.m. p.m. e.g. E.g. i.e. I.e. vs. v.s. and/or w/o o'clock O'clock ma'am Ma'am Adm. Bros. co. Co. Corp. D.C. Dr. Gen. "
    "Gov. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. Mt. Ph.D. Prof. Rep. Rev. Sen. St. Ala. Apr. Ariz. Ark. Aug. "
    "Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Ky. La. Mar. Mass. Mich. Minn. Miss. "
    "Neb. Nev. Nov. Oct. Okla. Ore. Pa. Sep. Sept. Tenn. Va. Wash. Wis. N.C. N.D. N.H. N.J. N.M. N.Y. S.C.".split()
)
JOINED = {
    "cannot": ("can", "not"),
    "Cannot": ("Can", "not"),
    "gonna": ("gon", "na"),
    "Gonna": ("Gon", "na"),
    "gotta": ("got", "ta"),
    "Gotta": ("Got", "ta"),
}
_CLITIC = re.compile(r"(.+?)(n['’]t|['’](?:ll|LL|re|RE|ve|VE|d|D|m|M))\Z", re.DOTALL)
_UNIT = re.compile("(?<=[0-9])(?:{})\\Z".format("|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))))
_DOTS = re.compile(r"\.\.+\Z")
_LABEL = "[A-Za-z0-9\u00a1-\uffff](?:[A-Za-z0-9\u00a1-\uffff_-]{0,62}[A-Za-z0-9\u00a1-\uffff])?"
_ADDRESS = re.compile(
    rf"(?:[\w+.-]{{2,}}://)?(?:[^\s@/]+@)?(?:(?:{_LABEL}\.)+[a-z\u00df-\u00ff]{{2,63}}|\d{{1,3}}(?:\.\d{{1,3}}){{3}})"
    r"(?::\d{2,5})?(?:[/?#]\S*)?\Z"
)
# Kana and ideographs: characters that are words.
SINGLE = (("\u3040", "\u30ff"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0002fa1f"))
_SINGLE = "".join(f"{first}-{last}" for first, last in SINGLE)
_SINGLES = re.compile(f"([{_SINGLE}])")


def split(chunk: str) -> list[str]:
    """Return the words of a non-empty text without white space; together they are the text."""
    if len(chunk) > LONGEST:
        return [chunk]
    begin, end = 0, len(chunk)
    while begin < end and chunk[begin] in BEFORE:
        begin += 1
    while end > begin and chunk[end - 1] in AFTER:
        end -= 1
    middle = chunk[begin:end]
    if middle.isascii() and (middle.isalpha() or middle.isdigit()):
        return [*chunk[:begin], *JOINED.get(middle, (middle,)), *chunk[end:]]
    return [*chunk[:begin], *_core(middle), *chunk[end:]]


def _core(chunk: str) -> list[str]:
    """Split a text that does not begin or end with a single mark."""
    before, after = [], []
    while chunk:
        if chunk in WHOLE or chunk in JOINED:
            before += JOINED.get(chunk, (chunk,))
            break
        if "." in chunk and _ADDRESS.match(chunk):
            before.append(chunk)
            break
        if size := _prefix(chunk):
            before.append(chunk[:size])
            chunk = chunk[size:]
        elif size := _suffix(chunk):
            after.append(chunk[-size:])
            chunk = chunk[:-size]
        else:
            before += _inside(chunk)
            break
    return before + after[::-1]


def _prefix(chunk: str) -> int:
    """Return the length of the mark that comes off the beginning, or 0."""
    first = chunk[0]
    if first in BEFORE or (not first.isascii() and is_icon(first)):
        return 1
    if first == ".":
        size = len(chunk) - len(chunk.lstrip("."))
        return size if size > 1 else 0
    return int(first == "+" and not chunk[1:2].isdigit())


def _suffix(chunk: str) -> int:
    """Return the length of the mark, clitic or unit that comes off the end, or 0."""
    last, previous = chunk[-1], chunk[-2:-1]
    if last in AFTER or (not last.isascii() and is_icon(last)):
        return 1
    if last == ".":
        if previous == ".":
            return len(_DOTS.search(chunk)[0])
        if len(chunk) == 2 and previous.isalpha():  # an initial, or a mark of a list
            return 0
        if previous.isdigit() or previous.islower() or previous in AFTER or previous in "%²-+":
            return len(previous)
        return int(len(chunk) > 2 and previous.isupper() and chunk[-3].isupper())
    if last in "sS" and previous in ("'", "’") and len(chunk) > 2:
        return 2
    if not previous.isdigit() and last.isalpha():
        if match := _CLITIC.match(chunk):
            return len(match[2])
    if last == "+" or last in CURRENCY:
        return int(previous.isdigit())
    match = _UNIT.search(chunk)
    return len(match[0]) if match else 0


def _inside(chunk: str) -> list[str]:
    """Cut a text at marks between letters or digits; the marks are words too."""
    if chunk.isalnum():
        return [part for part in _SINGLES.split(chunk) if part] if not chunk.isascii() else [chunk]
    words, begin = [], 0
    for match in _infix().finditer(chunk):
        words += (chunk[begin : match.start()], match[0])
        begin = match.end()
    words.append(chunk[begin:])
    return [word for word in words if word]


@functools.cache
def _infix() -> re.Pattern:
    letter, lower, upper = r"[^\W\d_]", ranges(str.islower), ranges(str.isupper)
    quotes = "".join(map(re.escape, sorted(QUOTES)))
    icons = ranges(is_icon)
    return re.compile(
        rf"\.\.+|…|[{icons}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{lower}{quotes}])\.(?=[{upper}{quotes}])|(?<={letter}),(?={letter})"
        rf"|(?<=[^\W_])(?:---|--|——|[-–—~])(?={letter})|(?<=[^\W_])[:<>=/](?={letter})|[{_SINGLE}]"
    )
