"""Docstrings as HTML: wrapped lines become paragraphs; what is indented, listed or set in columns stays as it was typed."""

import html
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable

_FIELD = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Examples?):")
_TYPED = re.compile(r" |\S.* {2,}\S|(\d+\.|[-*•]) ")  # how a line begins that keeps its place
_NAME = re.compile(r"\b(?:lm|data)(?:(?:\.[A-Za-z_]\w*)+|(?:/\w+)+(?:\.py)?)")
SHORT = 96  # characters; a line that had room for the next word in so many ends where its author wanted
Address = Callable[[str], str | None]


def to_html(docstring: str, address: Address = lambda name: None) -> str:
    """Return the docstring as HTML.

    address: gives the address of a name such as lm.infer.generate.generate or lm/infer/generate.py, or None.
    """
    parts: list[tuple[str, list[str]]] = []
    for line in inspect.cleandoc(docstring).split("\n"):
        before = parts[-1][0] if parts else ""
        kind = "code" if before == "code" and line.strip() else _kind(line)
        if kind == before and not _FIELD.match(line):
            parts[-1][1].append(line)
        else:
            parts.append((kind, [line]))
    return "".join(_part(kind, lines, address) for kind, lines in parts)


def _kind(line: str) -> str:
    if not line.strip():
        return "blank"
    return "code" if line.startswith((">>>", "python ")) else "typed" if _TYPED.match(line) else "text"


def _part(kind: str, lines: list[str], address: Address) -> str:
    if kind == "text":
        return "<p>" + _FIELD.sub(r"<strong>\1:</strong>", inline(_joined(lines), address), count=1) + "</p>"
    return "" if kind == "blank" else f"<pre>{inline(textwrap.dedent(chr(10).join(lines)), address, breaks=False)}</pre>"


def inline(text: str, address: Address = lambda name: None, breaks: bool = True) -> str:
    """Return plain text with `code` and names as HTML. breaks: whether line breaks become elements."""

    def linked(found: re.Match) -> str:
        to = address(found[0])
        return f'<a href="{to}">{found[0]}</a>' if to else found[0]

    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", _NAME.sub(linked, html.escape(text, quote=False)))
    return escaped.replace("\n", "<br>") if breaks else escaped


def _joined(lines: list[str]) -> str:
    """Return wrapped lines as one. A line break stays if the next word had room."""
    text = lines[0]
    for before, line in itertools.pairwise(lines):
        wanted = len(before) + 1 + len(line.split(maxsplit=1)[0]) <= SHORT
        text += ("\n" if wanted else " ") + line.strip()
    return text
