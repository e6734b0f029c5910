"""Files of the media of rows, beside the columns of data/chat/example_files.py, and their arrays in batches.

The media are stored as they are encoded, since tiles as numbers have about ten times their size. A batch decodes them again.
    media.npy        uint8: the files, one after the other
    media_ends.npy   int64 [M]: the end of each file
    media_kinds.npy  uint8 [M]: its index in data.media.parts.KINDS
    media_counts.npy int32 [M]: the number of its tiles or windows that the row has
    media_rows.npy   int64 [R]: the end of each row in these
Letters: M media, R rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.chat.example_files import MEDIA_COLUMNS as COLUMNS
from data.chat.example_files import Row, appending
from data.chat.media.encoding import Kept, Towers, arrays_of
from data.media.parts import KINDS

NAMES = ("images", "audio")  # in batches and in counts.json, in the order of KINDS


def store(folder: Path, rows: Iterable[Row], most: dict[str, int]) -> Iterator[Row]:
    """Yield the rows, and write the files of the media in their column `media`, a list of `Kept`, to a folder.

    The folder exists when the first row is asked for; the files are complete after the last one. most: gets the largest number
    of tiles and of windows of a row, by NAMES.
    """
    most |= dict.fromkeys(NAMES, 0)
    ends = {"media_ends": 0, "media_rows": 0}
    with appending(folder, COLUMNS) as append:
        for row in rows:
            media: list[Kept] = row.columns.get("media", [])
            for kind, file, count in media:
                ends["media_ends"] += len(file)
                values = {"media_ends": ends["media_ends"], "media_kinds": KINDS.index(kind), "media_counts": count}
                append(values | {"media": np.frombuffer(file, np.uint8)})
            ends["media_rows"] += len(media)
            append({"media_rows": ends["media_rows"]})
            for name, kind in zip(NAMES, KINDS):
                most[name] = max(most[name], sum(kept.count for kept in media if kept.kind == kind))
            yield row


def media_of(columns: Mapping[str, np.ndarray], row: int) -> list[Kept]:
    """Return the media of a row, in order."""
    begin, end = (int(columns["media_rows"][row - 1]) if row else 0), int(columns["media_rows"][row])
    found = []
    for n in range(begin, end):
        first = int(columns["media_ends"][n - 1]) if n else 0
        file = columns["media"][first : columns["media_ends"][n]].tobytes()
        found.append(Kept(KINDS[columns["media_kinds"][n]], file, int(columns["media_counts"][n])))
    return found


def arrays(
    columns: Mapping[str, np.ndarray], rows: Sequence[int], towers: Towers, most: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return the media of rows for a batch: images float32 [b, N, S, S, 3] and audio float32 [b, K, F, M], if there are any.

    Rows with fewer than N tiles or K windows end in zeros. They are in the order of their tokens in the row.
    Args: rows: [b], −1 for an empty row. most: N and K by NAMES, as `store` gives them.
    """
    return filled([media_of(columns, row) if row >= 0 else [] for row in rows], towers, most)


def filled(every: Sequence[Iterable[Kept]], towers: Towers, most: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the arrays of the media of each row, as `arrays`; rows with fewer end in zeros."""
    made = [arrays_of(media, towers, f"medium of row {n}") for n, media in enumerate(every)]
    found = {}
    for n, name in enumerate(NAMES):
        if most[name]:
            found[name] = np.zeros((len(made), most[name], *made[0][n].shape[1:]), np.float32)
            for b, each in enumerate(made):
                found[name][b, : len(each[n])] = each[n]
    return found
