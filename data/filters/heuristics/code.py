"""Measures of source files: comments, lines, letters. The thresholds of NeMo Curator and StarCoder are in the preset `code`."""

import re
from collections.abc import Sequence

import numpy as np

# One alternative a group: strings come first, so that a comment mark inside a string is none.
_PYTHON = re.compile(
    r"""(?P<string>(?i:\b[rbuf]{1,2})?(?:\"\"\"(?s:.*?)(?:\"\"\"|\Z)|'''(?s:.*?)(?:'''|\Z)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?))"""
    r"""|(?P<comment>\#[^\n]*)"""
)
_STRING = r"""(?P<string>"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|`(?:\\.|[^`\\])*`?)"""
_BLOCKS = re.compile(rf"(?P<comment>//[^\n]*|/\*(?s:.*?)(?:\*/|\Z))|{_STRING}")
_HASHES = re.compile(rf"(?P<comment>\#[^\n]*)|{_STRING}")
_DASHES = re.compile(
    rf"(?P<comment>--(?:\[\[(?s:.*?)(?:\]\]|\Z)|[^\n]*)|/\*(?s:.*?)(?:\*/|\Z)|\{{-(?s:.*?)(?:-\}}|\Z))|{_STRING}"
)
_PERCENT = re.compile(r"(?P<comment>%[^\n]*)|(?P<string>\"(?:\\.|[^\"\\\n])*\"?)")
_TAGS = re.compile(r"(?P<comment><!--(?s:.*?)(?:-->|\Z))|(?P<string>\Z\A)")
_BY_LANGUAGE = {
    "python": _PYTHON,
    **dict.fromkeys(
        "c c++ c# css d dart go groovy java javascript kotlin objective-c php rust scala swift typescript zig".split(), _BLOCKS
    ),
    **dict.fromkeys("bash cmake dockerfile elixir julia make makefile perl r ruby shell toml yaml".split(), _HASHES),
    **dict.fromkeys("ada haskell lua sql vhdl".split(), _DASHES),
    **dict.fromkeys("erlang latex matlab prolog tex".split(), _PERCENT),
    **dict.fromkeys("html markdown xml".split(), _TAGS),
}
_MARKS = re.compile(r"#!?|//|/\*+|\*/|<!--|-->|--|%+|\"\"\"|'''|^[ \t]*\*", re.MULTILINE)


def code(texts: Sequence[str], languages: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Return measures [N] of source files. languages: names such as "Python"; None or an unknown one: comments are not found.

    code_lines: int64, newlines + 1;  code_longest_line, code_mean_line: characters
    code_comments: float64, characters of comments, in Python also docstrings, without their marks, of all; NaN if not found
    code_letters: float64, share of characters that are letters
    code_xml: bool, whether an XML declaration is in the first 100 characters, whatever the name says
    """
    lines = [[len(line) for line in text.split("\n")] for text in texts]
    return {
        "code_lines": np.array([len(some) for some in lines], np.int64),
        "code_longest_line": np.array([max(some) for some in lines], np.int64),
        "code_mean_line": np.array([sum(some) / len(some) for some in lines], np.float64),
        "code_comments": np.array([comments(text, language) for text, language in zip(texts, languages)], np.float64),
        "code_letters": np.array([sum(map(str.isalpha, text)) / max(len(text), 1) for text in texts], np.float64),
        "code_xml": np.array(["<?xml version=" in text[:100] for text in texts], bool),
    }


def comments(text: str, language: str | None) -> float:
    """Return the share of a file's characters in comments, see `code`."""
    pattern = _BY_LANGUAGE.get((language or "").lower())
    if pattern is None or not text:
        return np.nan
    found = 0
    for match in pattern.finditer(text):
        if match.lastgroup == "comment" or (pattern is _PYTHON and _is_docstring(text, match.start())):
            found += len(_MARKS.sub("", match[0]))
    return found / len(text)


def _is_docstring(text: str, begin: int) -> bool:
    """Return whether a string in Python source begins a logical line after a colon, another statement or nothing."""
    line = text.rfind("\n", 0, begin) + 1
    if not text[line:begin].isspace() and line != begin:
        return False
    before = text[:line].rstrip()
    return not before or before[-1] in ":\n" or (before[-1] not in "([{,=+\\" and text[line - 2 : line] == "\n\n")
