"""Errors for inputs that name no file that can be read: what is near, and what to do."""

from __future__ import annotations

import difflib
import itertools
import os

from data.sources import walk
from lm.errors import UserError, hub_hint, windows_hint

TEXT = (".txt", ".md", ".rst", ".py")
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


def other_format(part: str, extensions: tuple[str, ...]) -> str:
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
