"""Count the entries of lists of offensive words. The lists come from files, since none is part of this code.

A file has one entry a line, such as those of LDNOOBW ("List of Dirty, Naughty, Obscene, and Otherwise Bad Words"), and its name
is a language. C4 drops a page with any of them (Raffel et al. 2020, section 2.2): `bad_words > 0`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.errors import UserError

WITHOUT_BOUNDARIES = ("ja", "th", "zh")  # languages that do not separate words: TFDS c4_utils.py, datatrove 0.10.1
# Parts of harmless words; each would drop more than a tenth of the pages in its language. The same source.
ALLOWED = {"ja": ("sm", "グロ", "女の子"), "zh": ("性",)}

_WORD = re.compile(r"\w+")


class WordList(NamedTuple):
    """The entries of one language, in lower case."""

    bounded: bool  # whether an entry must stand between signs, spaces or ends
    words: frozenset[str]  # entries that are one word, if bounded
    phrases: tuple[tuple[frozenset[str], str, re.Pattern], ...]  # words, entry, expression of the others, all if not bounded


def word_list(entries: Iterable[str], language: str = "en") -> WordList:
    """Return the list of a language. Blank entries and those of `ALLOWED` are left out."""
    bounded = language not in WITHOUT_BOUNDARIES
    own = {" ".join(entry.lower().split()) for entry in entries} - {"", *ALLOWED.get(language, ())}
    words = frozenset(entry for entry in own if bounded and _WORD.fullmatch(entry))
    phrases = []
    for entry in sorted(own - words):
        said = r"\s+".join(re.escape(word) for word in entry.split())
        parts = frozenset(_WORD.findall(entry)) if bounded else frozenset()
        phrases.append((parts, entry, re.compile(rf"(?<!\w){said}(?!\w)" if bounded else said)))
    return WordList(bounded, words, tuple(phrases))


def read_word_lists(folder: str | Path) -> dict[str, WordList]:
    """Read the list files of a folder, which are named after languages ("en", "de.txt").

    Raises:
        UserError: the folder holds no file, or a file cannot be read or is no UTF-8 text.
    """
    lists = {}
    for path in sorted(Path(folder).glob("*")):
        if not path.is_file() or not re.fullmatch(r"[a-z]{2,3}(-[\w-]+)?(\.txt)?", path.name):
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot read this word list ({error}); give a UTF-8 text, one entry a line") from error
        language = path.name.removesuffix(".txt")
        lists[language] = word_list(lines, language)
    if not lists:
        raise UserError(f"{folder}: holds no word list; name a folder with files such as en or de.txt, one entry a line")
    return lists


def bad_words(texts: Sequence[str], languages: Sequence[str], lists: Mapping[str, WordList]) -> dict[str, np.ndarray]:
    """Return how many entries of its language's list each text has, in any case.

    Args:
        languages: of each text; the list of "pt" serves "pt-BR", too.

    Returns:
        bad_words: int32 [documents], occurrences of entries. An occurrence inside a longer entry counts, too.
        bad_words_distinct: int32 [documents], different entries.
        bad_words_listed: bool [documents], whether there is a list for the language.
    """
    columns = {
        "bad_words": np.zeros(len(texts), np.int32),
        "bad_words_distinct": np.zeros(len(texts), np.int32),
        "bad_words_listed": np.zeros(len(texts), bool),
    }
    for number, (text, language) in enumerate(zip(texts, languages, strict=True)):
        own = lists.get(language) or lists.get(language.split("-")[0])
        if own is None:
            continue
        found = occurrences(text, own)
        columns["bad_words"][number] = sum(found.values())
        columns["bad_words_distinct"][number] = len(found)
        columns["bad_words_listed"][number] = True
    return columns


def occurrences(text: str, entries: WordList) -> dict[str, int]:
    """Return {entry: occurrences} of the entries in a text.

    Phrases are searched for only if all their words are among those of the text.
    """
    text = text.lower()
    if not entries.bounded:
        return {entry: len(said.findall(text)) for _, entry, said in entries.phrases if said.search(text)}
    words = _WORD.findall(text)
    distinct = set(words)
    found = {word: 0 for word in sorted(entries.words & distinct)}
    if found:
        for word in words:
            if word in found:
                found[word] += 1
    for parts, entry, said in entries.phrases:
        if parts <= distinct:
            count = len(said.findall(text))
            if count:
                found[entry] = count
    return found
