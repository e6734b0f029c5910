"""The page "Read it in an evening": the notes of tour/README.md, and under the note of each file the file itself."""

import re
from collections.abc import Callable

import source_pages
from links import ROOT, TOUR, for_site

NOTE = re.compile(r"^(?=### )", re.M)
FILE = re.compile(r"\]\((\w+\.py)\)")


def page(found: Callable[[str], None]) -> str:
    """Return the page in Markdown. `found` is called with each path of the repository that a link leads to."""
    notes = NOTE.split((ROOT / TOUR / "README.md").read_text())
    return "\n".join(for_site(f"{TOUR}/README.md", note, found) + _files(note) for note in notes)


def _files(note: str) -> str:
    """Return the files that the heading of a note links to, as blocks of code."""
    heading = note.split("\n")[0]
    return "".join(f"\n{source_pages.listing(f'{TOUR}/{file}')}\n" for file in FILE.findall(heading))
