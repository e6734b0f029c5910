"""Read raw archives of any kind for curation. Bad data never raises: it is quarantined with a reason.

Formats, by the name of a file, or else by its first bytes: WARC and WET, HTML, JSON lines, Parquet, plain text and Markdown,
mail (mbox, messages, maildir), MediaWiki dumps, source files and source trees, git repositories among them. Files may be
compressed with gzip, zstd, bzip2 or xz. TFDS datasets are read too, and builtin:python, the Python installation that runs this
program.

Memory is bounded for input of any size. Limits are constants in capitals in each reader. The largest needs are about 200 times
`html.MAX_HTML_BYTES` for a hostile HTML page, and the window of a zstd file, up to 2 GiB if it was packed so.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator

from data.sources import streams, until, walk
from data.sources.archives import html, mail, mediawiki, plain, rows, source_tree, warc, xml
from data.sources.archives.programming_languages import PROSE, language_of
from data.sources.source import Document, Quarantined, Source
from data.sources.streams import Unreadable, open_stream
from lm.errors import UserError

TFDS = "tfds:"  # the beginning of a path that is the name of a TFDS dataset
INSTALLATION = "builtin:python"  # the beginning of the path of a source of the Python installation
_SNIFFED_BYTES = 1 << 13

_READERS: dict[str, Callable[[str, str, "Options"], Iterator[Document | Quarantined]]] = {
    "warc": lambda path, id, options: warc.read(path, id, main_content=options.main_content),
    "html": lambda path, id, options: html.read(path, id, main_content=options.main_content),
    "json lines": lambda path, id, options: rows.read_json_lines(path, id, options.text_key),
    "parquet": lambda path, id, options: rows.read_parquet(path, id, options.text_key),
    "mbox": lambda path, id, options: mail.read_mbox(path, id),
    "mail": lambda path, id, options: mail.read_message(path, id),
    "mediawiki": lambda path, id, options: mediawiki.read(path, id),
    "plain": lambda path, id, options: plain.read(path, id),
    "code": lambda path, id, options: source_tree.read_file(path, id),
}
FORMATS = (*_READERS, "tfds")
# Endings of names without that of a compressor; those of source files are in programming_languages.py.
_ENDINGS = {
    "warc": (".warc", ".wet"),
    "html": (".html", ".htm", ".xhtml"),
    "json lines": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
    "mbox": (".mbox", ".mbx"),
    "mail": (".eml",),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How to read archives.

    text_key: the field of JSON lines, the column of Parquet files or the feature of a TFDS dataset that holds the text.
    main_content: leave out navigation, footers and the like of HTML pages.
    format: one of `FORMATS` for all files, instead of looking at their names. "code" makes a folder one source tree.
    max_bytes: UTF-8 bytes of text to read from each TFDS dataset, and from each source of builtin:python; None: all.
    """

    text_key: str = "text"
    main_content: bool = True
    format: str | None = None
    max_bytes: int | None = None

    def __post_init__(self):
        if self.format is not None and self.format not in FORMATS:
            raise UserError(f"format={self.format!r} is not known; choose one of {', '.join(FORMATS)}")


def units(input: str, options: Options = Options()) -> Iterator[tuple[str, str]]:  # noqa: B008 (it is frozen)
    """Yield (path, id) of everything to read, in a fixed order: files, git repositories, TFDS datasets, built-in sources.

    Each can be read by itself with `read`. Memory grows with the largest folder, not with the number of files.

    Args:
        input: a file, a folder (searched recursively; hidden names and links to folders are skipped), a glob, the address
            of an object or a folder in a bucket (gs://, s3://, … by fsspec), a TFDS name, or builtin:python; several separated
            by commas.

    Raises: UserError if a part of the input does not exist.
    """
    whole = os.path.expanduser(input.strip())
    parts = (
        [whole] if os.path.lexists(whole) else [os.path.expanduser(part.strip()) for part in input.split(",") if part.strip()]
    )
    for part in parts:
        if part == INSTALLATION:
            yield from ((f"{INSTALLATION}/{name}", name) for name in _installation())
        elif "://" in part:
            yield from _in_bucket(part)
        elif options.format == "tfds" or part.startswith(TFDS):
            yield TFDS + part.removeprefix(TFDS), part.removeprefix(TFDS)
        else:
            yield from _on_disk(part, options)


def read(path: str, id: str, options: Options = Options()) -> Iterator[Document | Quarantined]:  # noqa: B008
    """Yield the documents of a file, a git repository, a source tree or a TFDS dataset, and what could not be read.

    Args:
        path: of `units`, or any other.
        id: its name in the ids of documents, which begin with it unless the data bring their own.

    Raises: UserError only if the installation or the options are at fault, such as a missing driver for a bucket.
    """
    shown = _encodable(path)
    try:
        for one in _read(path, id, options):
            if shown != path:
                here = {"path": shown} if isinstance(one, Quarantined) else {"origin": one.origin.replace(path, shown)}
                one = dataclasses.replace(one, **here)
            yield one
    except Unreadable as error:
        place = error.lost and (error.lost[0], _size(path) or error.lost[1])  # the reader has ended there
        yield Quarantined(shown, "", error.reason, place)
    except OSError as error:
        yield Quarantined(shown, "", streams.reason(error))
    except (UserError, ImportError, GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # Parsers meet hostile data here, and one file must not end the run. A panic of those in Rust is no Exception.
        yield Quarantined(shown, "", f"reader failed: {type(error).__name__}")


def _size(path: str) -> int | None:
    """Return the bytes of a file on this machine, None of other input."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return None


def _read(path: str, id: str, options: Options) -> Iterator[Document | Quarantined]:
    if path.startswith(TFDS):
        from data.sources import tfds_source

        return _capped(tfds_source.read(path.removeprefix(TFDS), options.text_key), options)
    if path.startswith(INSTALLATION):
        return _capped(_installation()[path.rpartition("/")[2]].read(), options)
    if "://" not in path and os.path.isdir(path):
        if options.format == "code" or source_tree.is_repository(path):
            return source_tree.read(path, id)
        raise Unreadable("a folder")
    reader = _READERS.get(options.format or format_of(path) or "")
    if reader is None:
        raise Unreadable("unknown format")
    return reader(path, id, options)


def _installation() -> dict[str, Source]:
    from data.sources import python_installation

    return {source.name: source for source in python_installation.open_installation()}


def _capped(documents: Iterator[Document | Quarantined], options: Options) -> Iterator[Document | Quarantined]:
    return documents if options.max_bytes is None else until(documents, options.max_bytes)


def format_of(path: str) -> str | None:
    """Return the format of a file by its name, or else by its first bytes. Raises: Unreadable, OSError."""
    name = os.path.basename(path).lower()
    compressed = name.endswith(streams.COMPRESSED)
    if compressed:
        name = name.rpartition(".")[0]
        if name.endswith(".json"):  # corpora such as C4 publish JSON lines so
            return "json lines"
    for kind, endings in _ENDINGS.items():
        if name.endswith(endings):
            return kind
    if os.path.basename(os.path.dirname(path)) in ("cur", "new"):  # of a maildir
        return "mail"
    language = language_of(name)
    if language and not compressed:
        return "plain" if language in PROSE else "code"
    with open_stream(path) as stream:
        return _sniffed(stream.read(_SNIFFED_BYTES), name)


def _sniffed(head: bytes, name: str) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"WARC/"):
        return "warc"
    if start.startswith(b"filedesc://"):
        raise Unreadable("arc, the format before warc; convert it with warcio")
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"From ") and b"\n" in start:
        return "mbox"
    if re.match(rb"(?i)<!doctype html|<html\b", start):
        return "html"
    if start.startswith(b"<") or name.endswith(".xml"):
        return "mediawiki" if xml.root(head) == "mediawiki" else None
    if re.match(rb"(?i)(?:return-path|received|from|delivered-to|message-id|x-[\w-]+): ", start):
        return "mail"
    if name.endswith(".json"):
        return "json lines" if start.startswith(b"{") else None
    return "plain"


def _on_disk(part: str, options: Options) -> Iterator[tuple[str, str]]:
    from data.sources import files

    if not os.path.lexists(part) and not any(mark in part for mark in "*?["):
        from data.sources import tfds_source

        if tfds_source.is_known(part):
            yield TFDS + part, part
            return
    matches = [part] if os.path.lexists(part) else walk.matches(part)
    if not matches:
        raise files.missing(part)
    base = files.fixed_folder(part)
    for match in matches:
        if not os.path.isdir(match) or source_tree.is_repository(match) or options.format == "code":
            yield match, _id(match, base)
            continue
        for path, is_folder in walk.entries(match, enter=lambda folder: not source_tree.is_repository(folder)):
            if not is_folder or source_tree.is_repository(path):
                yield path, _id(path, base)


def _in_bucket(address: str) -> Iterator[tuple[str, str]]:
    """Yield the objects below an address, or those that match a glob, in order of names."""
    from data.sources import objects

    found = objects.listed(address)
    if not found:
        raise UserError(f"data.input={address!r}: nothing is there; name an object, a folder or a glob")
    base = objects.fixed(address)
    base = os.path.dirname(base) if found == [base] else base
    yield from ((url, url.removeprefix(base).lstrip("/")) for url in found)


def _id(path: str, base: str) -> str:
    inside = os.path.relpath(path, base).replace(os.sep, "/")
    return _encodable(os.path.basename(os.path.abspath(path)) if inside == "." else inside)


def _encodable(path: str) -> str:
    """Return a path that UTF-8 can hold: names on disk may have any bytes."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")
