"""What could not be read of the files of a unit, for the report and the manifest."""

import os
from typing import Any

from data.sources.source import Quarantined

LISTED = 100  # faults of a file for one reason; more are counted, so that a file of bad lines does not fill the memory


class Unread:
    """Collects {"file", "path", "where", "reason", "place", "count", "documents"} of what could not be read.

    file: the id in the input. place: [first, end), bytes of the file, or None. count: faults that the entry stands for.
    documents: how many the file gave; 0: nothing of it could be read.
    """

    def __init__(self):
        self._rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._of_file: list[dict[str, Any]] = []
        self._faults = 0

    def add(self, found: Quarantined, path: str, id: str) -> None:
        """Add a fault. path, id: of the file, source tree or repository that is being read."""
        self._faults += 1
        inside = os.path.relpath(found.path, path) if found.path.startswith(path + os.sep) else ""
        file = f"{id}/{inside}" if inside else id
        rows = self._rows.setdefault((file, found.reason), [])
        if len(rows) > LISTED:
            rows[-1]["count"] += 1
            rows[-1]["where"] = f"and {rows[-1]['count']:,} more"
            return
        where, place = (found.where, found.place) if len(rows) < LISTED else ("and 1 more", None)
        about = {"file": file, "path": found.path, "where": where, "reason": found.reason, "place": place}
        rows.append(about | {"count": 1, "documents": 0})
        if not inside:
            self._of_file.append(rows[-1])

    def end_file(self, path: str, id: str, documents: int) -> None:
        """Say how many documents the file gave whose faults were added last. A file without any is a fault, too."""
        if not documents and not self._faults:
            self.add(Quarantined(path, "", "no documents"), path, id)
        for row in self._of_file:
            row["documents"] = documents
        self._of_file, self._faults = [], 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for rows in self._rows.values() for row in rows]
