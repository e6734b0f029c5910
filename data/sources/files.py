"""Find the files that an input names: text, JSON lines (plain, gzip, zstd) and Parquet, on a disk or in a bucket."""

import difflib
import itertools
import os
import re
from collections.abc import Iterator

from data.sources import corpus, objects, walk
from data.sources.reading import JSON_LINES, PARQUET, TEXT, read_file
from data.sources.source import Document, Source
from lm.bucket.store import is_url
from lm.errors import UserError, hub_hint, windows_hint

EXTENSIONS = TEXT + JSON_LINES + PARQUET

_NAMED = re.compile(r"([a-z0-9_]+)=(.+)")  # sources become names of TFDS datasets
# What to do with files of other formats, by the ending of their names.
_CURES = {
    (".html", ".htm", ".warc", ".warc.gz", ".wet.gz", ".mbox", ".eml"): "curate.py reads {0} files: python curate.py "
    "--config=configs/curate/default.py --workdir=corpus --config.input={1}, then name corpus",
    (".pdf", ".docx", ".doc", ".odt", ".epub", ".rtf", ".pptx"): "take the text out of {0} files first, such as with "
    "pdftotext or pandoc, and name the .txt files",
    (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar"): "unpack {0} files first, and name the folder",
    (".csv", ".tsv", ".xlsx"): "write the rows of {0} files as JSON lines (.jsonl), one object a line",
    (".json", ".ipynb"): "write {0} files as JSON lines (.jsonl), one object a line",
    TEXT: "plain text is for train.py: python train.py --config=configs/train/tiny.py --config.data.input={1}",
}


def is_path(input: str) -> bool:
    """Return whether `input` must mean files: it exists, is a glob or a list, names a source, or looks like a path."""
    return (
        os.path.exists(os.path.expanduser(input))
        or input.startswith((".", "/", "~"))
        or input.endswith(("/", *EXTENSIONS))
        or any(c in input for c in "*?[,\\")
        or is_url(input)
        or named(input)[0] is not None
    )


def named(part: str) -> tuple[str | None, str]:
    """Split NAME=FILES into (NAME, FILES). A part without a name, or that exists as it is written, gives (None, part)."""
    match = None if os.path.exists(os.path.expanduser(part)) else _NAMED.fullmatch(part)
    return (match[1], match[2]) if match else (None, part)


def open_files(input: str, text_key: str = "text") -> list[Source]:
    """Return a source of the readable files under `input`, ordered by path, and one for each name of NAME=FILES.

    Args:
        input: a file, a folder (searched recursively; hidden names are skipped) or a glob (`**` matches any number
            of folders), or several of these separated by commas. NAME=FILES puts files into the source NAME.
        text_key: the field or column that holds the text. String fields `id`, `url` or `source`, and
            `license` or `licence` give the document's id, origin and licence. The default id is file and line.

    Raises:
        UserError: nothing matches, or no match has one of `EXTENSIONS`.
    """
    sources: dict[str | None, list[str]] = {}
    for name, part in _named_parts(input):
        sources.setdefault(name, []).append(part)
    return [_source(name, parts, text_key) for name, parts in sources.items()]


def _source(name: str | None, parts: list[str], text_key: str) -> Source:
    paths = sorted({path for part in parts for path in _find(part, EXTENSIONS)})
    roots = [fixed_folder(part) for part in parts]
    base = os.path.commonpath([os.path.abspath(root) for root in roots])
    name = name or "_".join(_identifier(part) for part in parts)[:64]

    def read() -> Iterator[Document]:
        for path in paths:
            yield from read_file(path, os.path.relpath(path, base), text_key)

    return Source(name, read)


def find(input: str, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Return the files of `input` (see `open_files`) with these extensions, ordered by path."""
    return sorted({path for part in _parts(input) for path in _find(part, extensions)})


def present(input: str, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Return the same as `find`, but skip missing parts of the input; empty if all are missing."""
    return sorted({path for part in _parts(input) for path in _readable(part, extensions)})


def first_files(input: str, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Return the first file of each part of an input. Raises: UserError for a part without one."""
    found = [(part, next(_readable(part, extensions), None)) for part in _parts(input)]
    for part, path in found:
        if path is None:
            raise _none(part, extensions)
    return [path for _, path in found]


def folders(input: str) -> list[str]:
    """Return the parts of an input that are folders; those of a corpus are its documents."""
    return [part for part in _parts(input) if os.path.isdir(part)]


def urls(input: str) -> list[str]:
    """Return the parts of an input that are in buckets, each up to its first glob character."""
    return [objects.fixed(part) for part in _parts(input) if is_url(part)]


def _parts(input: str) -> list[str]:
    return [part for _, part in _named_parts(input)]


def _named_parts(input: str) -> list[tuple[str | None, str]]:
    whole = os.path.expanduser(input)
    if os.path.exists(whole):
        return [(None, whole)]
    parts = [named(part.strip()) for part in input.split(",") if part.strip()]
    if not parts:
        raise missing(input)
    found = [(name, os.path.expanduser(part)) for name, part in parts]
    # The other folders of a corpus hold what its recipe dropped.
    return [(name, os.path.join(part, corpus.DOCUMENTS) if corpus.is_corpus(part) else part) for name, part in found]


def _find(part: str, extensions: tuple[str, ...]) -> list[str]:
    found = list(_readable(part, extensions))
    if not found:
        raise _none(part, extensions)
    return found


def _readable(part: str, extensions: tuple[str, ...]) -> Iterator[str]:
    """Yield the files with these extensions of one part of an input."""
    if is_url(part):
        yield from (url for url in objects.listed(part) if url.endswith(extensions))
        return
    matches = [part] if os.path.exists(part) else walk.matches(part)
    for match in matches:
        # A FIFO or a device is found too: leaving it out in silence would hide a mistake. Opening it is an error.
        paths = walk.below(match) if os.path.isdir(match) else [match]
        yield from (os.path.normpath(path) for path in paths if path.endswith(extensions))


def _none(part: str, extensions: tuple[str, ...]) -> UserError:
    if is_url(part):
        return UserError(f"data.input={part!r}: no object there can be read; accepted: {' '.join(extensions)}")
    if not os.path.exists(part) and not walk.matches(part):
        return missing(part)
    return UserError(
        f"data.input={part!r} holds no file that can be read; accepted: {' '.join(extensions)}{_other_format(part, extensions)}"
    )


def fixed_folder(part: str) -> str:
    """Return the folder that document ids are relative to: the part before the first glob character."""
    if is_url(part):
        is_object = part.endswith(EXTENSIONS) and not objects.has_glob(part)
        return part.rpartition("/")[0] if is_object else objects.fixed(part)
    if os.path.isdir(part):
        return part
    fixed = part if os.path.exists(part) else re.split(r"[*?\[]", part, maxsplit=1)[0]
    return os.path.dirname(fixed) or "."


def _identifier(part: str) -> str:
    """Return a source name: `my corpus/part-1.jsonl.gz` gives `part_1`; a glob gives the name of its fixed folder."""
    is_whole = os.path.exists(part) or (is_url(part) and not objects.has_glob(part))
    last = os.path.basename(os.path.abspath(part if is_whole else fixed_folder(part)))
    for extension in sorted(EXTENSIONS, key=len, reverse=True):
        last = last.removesuffix(extension)
    return re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_") or "text"


# Errors that say what is near, and what to do.


def _other_format(part: str, extensions: tuple[str, ...]) -> str:
    """Return "; …" with what to do, if the files of a part have a known format that is not read."""
    paths = [part] if os.path.isfile(part) else (path for match in walk.matches(part) for path in walk.below(match))
    for path in itertools.islice(paths, 1000):
        for endings, cure in _CURES.items():
            ending = next((e for e in endings if path.lower().endswith(e) and e not in extensions), None)
            if ending:
                return "; " + cure.format(ending, part)
    return ""


def siblings(part: str) -> list[str]:
    """Return the names in the deepest existing folder of the path `part`."""
    return sorted(os.listdir(_existing(part)[0] or "."))


def _existing(part: str) -> tuple[str, str]:
    """Return the deepest existing folder of a path, "" for the working directory, and the first name in it that is missing."""
    wrong = os.path.expanduser(part).rstrip("/")
    while (folder := os.path.dirname(wrong)) and not os.path.isdir(folder):
        wrong = folder
    return folder, os.path.basename(wrong)


def missing(part: str) -> UserError:
    """Return the error for a missing path, with the nearest existing name."""
    folder, wrong = _existing(part)
    near = difflib.get_close_matches(wrong, siblings(part), n=1, cutoff=0.5)
    hint = f"nearest: {os.path.join(folder, near[0])!r}" if near else f"nothing like it in {folder or os.getcwd()!r}"
    if not near:
        hint += windows_hint(part) or ("/" in part and hub_hint(part, "dataset") or "")
    if "://" in part and "huggingface.co" not in part:
        hint = "nothing is downloaded here, except from gs:// and s3://: fetch it first, then name the file or folder"
    return UserError(f"no file matches data.input={part!r}; {hint}")
