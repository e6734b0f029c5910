"""Split a text into sentences, by rules."""

import re
from collections.abc import Iterator

ABBREVIATIONS = set(
    "dr mr mrs ms prof st no vs e.g i.e jr sr inc ltd co corp approx fig vol ca cf gen col lt sgt capt rev hon gov sen rep mt "
    "jan feb mar apr jun jul aug sep sept oct nov dec u.s u.k a.m p.m d.c ph.d b.c a.d etc al".split()
)
ENDING = {"inc", "ltd", "co", "corp", "jr", "sr", "u.s", "u.k", "a.m", "p.m", "d.c", "ph.d", "b.c", "a.d", "etc", "al"}
STARTERS = set(
    "the a an he she it they we i you his her its their this that these those in on at after before when but".split()
)
LINE = 60  # a line of at least so many characters without an end continues on the next line

_END = re.compile(r"""[.!?]+["'”’)\]]*(?=\s+["'“‘(\[]*(\w+))""")
_ITEM = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.)]|#+)\s+")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; each line that is a list item, a heading or a verse is separate."""
    parts = []
    for paragraph in _paragraphs(text):
        begin = 0
        for match in _END.finditer(paragraph):
            following = match[1]
            if not (following[0].isupper() or following[0].isdigit() or not following[0].isascii()):
                continue
            before = paragraph[max(begin, match.start() - 30) : match.start()].split(" ")[-1]
            word = before.strip("([\"'“‘").lower()
            if match[0][0] == "." and (word in ABBREVIATIONS or re.fullmatch(r"[^\W\d]|(?:[^\W\d]\.)+[^\W\d]", word)):
                if word not in ENDING or following.lower() not in STARTERS:
                    continue
            parts.append(paragraph[begin : match.end()].strip())
            begin = match.end()
        parts.append(paragraph[begin:].strip())
    return [sentence for sentence in parts if re.search(r"\w", sentence)]


def _paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs: consecutive lines joined."""
    joined = ""
    for line in text.splitlines():
        apart = not line.strip() or _ITEM.match(line) or joined.endswith((".", "!", "?", ":")) or (0 < len(joined) < LINE)
        if joined and apart:
            yield joined
            joined = ""
        joined = f"{joined} {_ITEM.sub('', line).strip()}".strip()
    if joined:
        yield joined
