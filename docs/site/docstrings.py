"""Docstrings, which are plain text with fields such as `Args:`, as HTML."""

import html
import inspect
import re
import textwrap
from collections.abc import Callable

_FIELD = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Examples?):(?:\s+(.*))?$")
_ITEM = re.compile(r"(\d+\.|[-*•]) +")
_ENTRY = re.compile(r"([\w*]+(?:, [\w*]+)*): (.*)", re.S)
_COLUMNS = re.compile(r"( *)(\S(?:.*?\S)?) {2,}(?=\S)")
_NAME = re.compile(r"\b(?:lm|data)(?:(?:\.[A-Za-z_]\w*)+|(?:/\w+)+(?:\.py)?)")
SHORT = 96  # characters; a line that had room for the next word in so many ends where its author wanted
Address = Callable[[str], str | None]


def to_html(docstring: str, address: Address = lambda name: None) -> str:
    """Return the docstring as HTML. Wrapped lines are joined. Indented blocks and code (>>>, python …) keep their lines.

    Lists, columns and the entries of a field become lists and tables.
    address: gives the address of a name such as lm.infer.sampler.generate or lm/infer/sampler.py, or None.
    """
    parts, lines = [], inspect.cleandoc(docstring).split("\n")
    while lines:
        line, (rows, number) = lines[0], _rows(lines)
        field = _FIELD.match(line)
        if not line.strip():
            lines.pop(0)
        elif rows:
            del lines[:number]
            parts.append(_table(rows, address))
        elif field and not field[2]:
            lines.pop(0)
            parts.append(f"<p><strong>{field[1]}:</strong></p>{_entries(_indented(lines), address)}")
        elif line[0] == " ":
            parts.append(_block(_indented(lines)))
        elif line.startswith((">>>", "python ")):
            parts.append(_block(_while(lines, str.strip)))
        elif _ITEM.match(line):
            items = _while(lines, lambda line: line[:1] == " " or _ITEM.match(line))
            parts.append(_list([_ITEM.sub("", item, count=1) for item in _hanging(items, 0)], address))
        else:
            parts += _paragraph(lines, address)
    return "".join(parts)


def inline(text: str, address: Address = lambda name: None) -> str:
    """Return plain text with `code` and names as HTML. Line breaks stay."""

    def linked(found):
        to = address(found[0])
        return f'<a href="{to}">{found[0]}</a>' if to else found[0]

    escaped = _NAME.sub(linked, html.escape(text, quote=False)).replace("\n", "<br>")
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)


def _paragraph(lines: list[str], address: Address) -> list[str]:
    """Return a paragraph, up to a blank line, a field or a list, and the indented entries after a colon at its end."""
    taken = [lines.pop(0)]
    while lines and lines[0].strip() and not (_FIELD.match(lines[0]) or _ITEM.match(lines[0]) or _rows(lines)[0]):
        if taken[-1].endswith(":") and lines[0][0] == " ":
            break
        taken.append(lines.pop(0))
    text = inline(_joined(taken), address)
    parts = ["<p>" + (re.sub(r"^(\w+):", r"<strong>\1:</strong>", text) if _FIELD.match(taken[0]) else text) + "</p>"]
    if lines and lines[0][:1] == " " and not _rows(lines)[0]:
        parts.append(_entries(_indented(lines), address))
    return parts


def _while(lines: list[str], belongs: Callable) -> list[str]:
    """Remove the first lines that belong together, and return them."""
    number = next((number for number, line in enumerate(lines) if not belongs(line)), len(lines))
    taken, lines[:] = lines[:number], lines[number:]
    return taken


def _indented(lines: list[str]) -> list[str]:
    """Remove the first lines that are indented, with blank lines between them, and return them."""
    number = next((number for number, line in enumerate(lines) if line.strip() and line[0] != " "), len(lines))
    while number and not lines[number - 1].strip():
        number -= 1
    taken, lines[:] = lines[:number], lines[number:]
    return taken


def _block(lines: list[str]) -> str:
    return f"<pre>{html.escape(textwrap.dedent(chr(10).join(lines)), quote=False)}</pre>"


def _hanging(lines: list[str], indent: int) -> list[str]:
    """Return the texts that begin at this indent; their further lines are indented more."""
    found: list[list[str]] = []
    for line in filter(str.strip, lines):
        if len(line) - len(line.lstrip()) > indent and found:
            found[-1].append(line.strip())
        else:
            found.append([line.strip()])
    return [_joined(each) for each in found]


def _entries(lines: list[str], address: Address) -> str:
    """Return the entries of a field as a list: `name: text`, or text."""
    own = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return _list(_hanging(lines, own), address, named=True)


def _list(items: list[str], address: Address, named: bool = False) -> str:
    def shown(item: str) -> str:
        entry = _ENTRY.match(item) if named else None
        return f"<code>{entry[1]}</code>: {inline(entry[2], address)}" if entry else inline(item, address)

    return f"<ul>{''.join(f'<li>{shown(item)}</li>' for item in items)}</ul>"


def _rows(lines: list[str]) -> tuple[list[list[str]], int]:
    """Return the rows of a table of two columns with which `lines` begin, none if they do not, and its number of lines."""
    first = _COLUMNS.match(lines[0])
    if not first:
        return [], 0
    column, rows, number = first.end(), [], 0
    for line in lines:
        if line[:column].strip() and line[column - 2 : column] == "  " and line[column : column + 1].strip():
            rows.append([line[:column].strip(), line[column:]])
        elif rows and line.strip() and not line[:column].strip():
            rows[-1].append(line[column:].strip())
        else:
            break
        number += 1
    return (rows, number) if len(rows) > 1 else ([], 0)


def _table(rows: list[list[str]], address: Address) -> str:
    cells = (f"<tr><td>{inline(row[0], address)}</td><td>{inline(' '.join(row[1:]), address)}</td></tr>" for row in rows)
    return f"<table><tbody>{''.join(cells)}</tbody></table>"


def _joined(lines: list[str]) -> str:
    """Return wrapped lines as one. A line break stays if the next word had room."""
    text = lines[0]
    for before, line in zip(lines, lines[1:]):
        wanted = len(before) + 1 + len(line.split(maxsplit=1)[0]) <= SHORT
        text += ("\n" if wanted else " ") + line.strip()
    return text
