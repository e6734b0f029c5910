"""Sentences on what a curation run could not read."""

from collections.abc import Mapping, Sequence

NAMED = 3  # files of a sentence


def sentences(unread: Sequence[Mapping]) -> list[str]:
    """Return a sentence on the files that were read in part, and one on those that gave no document; [] if all was read.

    unread: as data/recipe/units.py collects it.
    """
    files: dict[str, list[Mapping]] = {}
    for fault in unread:
        files.setdefault(fault["path"], []).append(fault)
    part = {path: rows for path, rows in files.items() if rows[0]["documents"]}
    none = {path: rows for path, rows in files.items() if path not in part}
    lines = []
    if part:
        most = sorted(part.items(), key=lambda fault: -bytes_of(fault[1]))
        lines.append(f"{_files(part, 'was', 'were')} read in part: {_named([f'{path}, {told(rows)}' for path, rows in most])}.")
    if none:
        whole = [f"{path} ({rows[0]['reason']})" for path, rows in none.items()]
        lines.append(f"{_files(none)} gave no document: {_named(whole)}.")
    return lines


def told(rows: Sequence[Mapping]) -> str:
    """Return where most of a file's loss is, and why, with the number of its other faults."""
    row = max(rows, key=lambda row: bytes_of([row]))
    first = ", ".join(filter(None, (row["where"], place(row)))) + f" ({row['reason']})"
    others = sum(row["count"] for row in rows) - 1
    return first + (f" and {others:,} other fault{'s' if others > 1 else ''}" if others else "")


def place(row: Mapping) -> str:
    """Return the bytes of the file that hold what could not be read, "" if they are not known."""
    if not row["place"]:
        return ""
    first, end = row["place"]
    return f"bytes {first:,} to {end:,}" if first < end else f"byte {first:,}, where the file ends"


def bytes_of(rows: Sequence[Mapping]) -> int:
    """Return how many bytes of a file are known to hold what could not be read."""
    return sum(row["place"][1] - row["place"][0] for row in rows if row["place"])


def _files(files: Mapping, one: str = "", more: str = "") -> str:
    return " ".join(filter(None, (f"{len(files):,}", "file" if len(files) == 1 else "files", one if len(files) == 1 else more)))


def _named(names: Sequence[str]) -> str:
    return "; ".join(names[:NAMED]) + (f"; and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
