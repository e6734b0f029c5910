"""What a store keeps: notes, files and exchanges, and how they are read from the command line and from files."""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data.chat.messages import messages_of
from lm.errors import UserError
from lm.files import untrusted as strangers

HISTORY = "text on the command line stays in the shell's history; add - reads a note from the standard input instead"
KINDS = ("note", "file", "exchange")
LARGEST = 16 << 20  # bytes of a file
TEXTS = tuple(".csv .html .json .log .md .org .py .rst .tex .text .toml .tsv .txt .xml .yaml".split())


class Item(NamedTuple):
    """Something that is kept.

    id: of the content (`item_id`), so that the same content is stored once. name: of a file, else "". time: when it was added,
    in seconds since 1970. text: of a note or a file. messages: {role, content} of an exchange.
    """

    id: str
    kind: str
    name: str
    time: float
    text: str = ""
    messages: tuple[dict[str, str], ...] = ()

    @property
    def shown(self) -> str:
        """Return the whole content as text."""
        return self.text or "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


def item_id(kind: str, name: str, content: object) -> str:
    """Return the first 16 hexadecimal digits of SHA-256 of what an item says, without the time."""
    return hashlib.sha256(json.dumps([kind, name, content], ensure_ascii=True).encode()).hexdigest()[:16]


def note(text: str) -> Item:
    if not text.strip():
        raise UserError("the note is empty: write its text after add, or - to read it from the standard input")
    return Item(item_id("note", "", text), "note", "", time.time(), _utf8(text))


def exchange(messages: Sequence[dict], where: str) -> Item:
    """Return an exchange. Raises UserError if the messages are not of the form that align.py reads."""
    kept = tuple({"role": message["role"], "content": _utf8(message["content"])} for message in messages_of(messages, where))
    if not any(message["content"].strip() for message in kept):
        raise UserError(f"{where}: the exchange says nothing")
    return Item(item_id("exchange", "", kept), "exchange", "", time.time(), messages=kept)


def from_arguments(arguments: Sequence[str]) -> list[Item]:
    """Return the items that the arguments of `add` name: a path is read, anything else is a note; - is the standard input."""
    if not arguments:
        raise UserError("add what? a text, a file, a folder, exchanges.jsonl, or - for the standard input")
    found: list[Item] = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if argument == "-":
            found.append(note(sys.stdin.read()))
        elif _exists(path):
            found.extend(from_path(path))
        elif " " not in argument and ("/" in argument or argument.endswith((*TEXTS, ".jsonl", ".pdf", ".docx"))):
            raise UserError(f"{strangers.short(argument)}: no such file or folder; put a note in quotes, with a space in it")
        else:
            found.append(note(argument))
    return found


def is_text(argument: str) -> bool:
    """Return whether an argument of `add` is a note itself, which the shell's history keeps."""
    return argument != "-" and not _exists(Path(argument).expanduser())


def from_path(path: Path) -> Iterator[Item]:
    """Yield the items of a file, or of all text files below a folder. A .jsonl file holds exchanges.

    A file of a folder that cannot be read, or is empty, is left out, and a line on stderr says so.
    Raises: UserError if nothing is left.
    """
    if not path.is_dir():
        yield from _exchanges(path) if path.suffix == ".jsonl" else [_file(path, path.name)]
        return
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in (*TEXTS, ".jsonl"))
    if not files:
        raise UserError(f"{path} has no text files: they end in {', '.join((*TEXTS, '.jsonl'))}")
    is_any_read = False
    for file in files:
        try:
            items = list(_exchanges(file)) if file.suffix == ".jsonl" else [_file(file, str(file.relative_to(path)))]
        except (UserError, OSError) as error:
            reason = f"{file}: {error.strerror}" if isinstance(error, OSError) else error
            print(f"lm.personal: left out: {strangers.shown(str(reason))}", file=sys.stderr)
            continue
        is_any_read = True
        yield from items
    if not is_any_read:
        raise UserError(f"{path} has no text file that can be read")


def to_line(item: Item) -> dict:
    """Return the item as one record of JSON, which `from_line` reads."""
    return {key: value for key, value in item._asdict().items() if value or key in ("name", "time")}


def from_line(line: dict) -> Item:
    return Item(**{**line, "messages": tuple(line.get("messages", ()))})


def _file(path: Path, name: str) -> Item:
    try:
        text = strangers.content(path, LARGEST).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text: convert it to text first") from None
    if not text.strip():
        raise UserError(f"{path} is empty")
    return Item(item_id("file", name, text), "file", name, time.time(), text)


def _exchanges(path: Path) -> Iterator[Item]:
    """Yield the exchanges of JSON lines: {"messages": […]}, as lm.chat's /save writes them, or what `export` wrote."""
    for number, line in enumerate(strangers.content(path).decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = strangers.parsed(line)
        except ValueError as error:
            raise UserError(f"{where}: no JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: each line must be an object with messages")
        if isinstance(record.get("text"), str) and record.get("kind") in ("note", "file"):
            kind, name = record["kind"], str(record.get("name", ""))
            when = record.get("time")
            when = float(when) if isinstance(when, int | float) else time.time()
            yield Item(item_id(kind, name, record["text"]), kind, name, when, _utf8(record["text"]))
        elif "messages" in record:
            yield exchange(record["messages"], where)
        else:
            raise UserError(f"{where}: no messages; a line is {{'messages': [{{'role': …, 'content': …}}, …]}}")


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a note that is longer than any file name
        return False
