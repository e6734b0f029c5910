"""Sentences on what a curation run could not read."""

from collections import Counter
from collections.abc import Mapping, Sequence

from lm.reports.page import count

NAMED = 3  # files of a sentence


def sentences(unread: Sequence[Mapping]) -> list[str]:
    """Return a sentence on the files that were read in part, and one on those that gave no document; [] if all was read.

    unread: as data/recipe/units.py collects it.
    """
    files: dict[str, list[Mapping]] = {}
    for fault in unread:
        files.setdefault(fault["path"], []).append(fault)
    part = [path for path, rows in files.items() if rows[0]["documents"]]
    none = [f"{path} ({rows[0]['reason']})" for path, rows in files.items() if path not in part]
    most = [f"{path}, {loss(files[path])}" for path in sorted(part, key=lambda path: -bytes_of(files[path]))]
    was = "was" if len(part) == 1 else "were"
    lines = [f"{count(len(part), 'file')} {was} read in part: {_named(most)}."] if part else []
    return lines + ([f"{count(len(none), 'file')} gave no document: {_named(none)}."] if none else [])


def loss(rows: Sequence[Mapping]) -> str:
    """Return where most of a file's loss is, and why, with the number of its other faults."""
    row = max(rows, key=lambda row: bytes_of([row]))
    first = ", ".join(filter(None, (row["where"], place(row)))) + f" ({row['reason']})"
    others = sum(row["count"] for row in rows) - 1
    return first + (f" and {count(others, 'other fault')}" if others else "")


def place(row: Mapping) -> str:
    """Return the bytes of the file that hold what could not be read, "" if they are not known."""
    if not row["place"]:
        return ""
    first, end = row["place"]
    return f"bytes {first:,} to {end:,}" if first < end else f"byte {first:,}, where the file ends"


def bytes_of(rows: Sequence[Mapping]) -> int:
    """Return how many bytes of a file are known to hold what could not be read."""
    return sum(row["place"][1] - row["place"][0] for row in rows if row["place"])


def by_reason(unread: Sequence[Mapping]) -> list[tuple[str, int]]:
    """Return (reason, files or records), the commonest first."""
    counts: Counter = Counter()
    for fault in unread:
        counts[fault["reason"]] += fault["count"]
    return counts.most_common()


def cure(unread: Sequence[Mapping]) -> str:
    """Return why no document could be read, and what to do."""
    why = ", ".join(reason + (f" ({n:,} times)" if n > 1 else "") for reason, n in by_reason(unread)[:3])
    keys = "docs/curate.md lists the formats, and --config.read.text_key names the field of the text"
    return f"nothing could be read: {why or 'the files hold no text'}; {keys}"


def _named(names: Sequence[str]) -> str:
    return "; ".join(names[:NAMED]) + (f"; and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
