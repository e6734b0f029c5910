"""The page to browse all items of an evaluation: items.html, one file that needs no network and no server.

The page holds an index with one row for each item, and the items themselves in blocks. Both are JSON, compressed (zlib) and in
base64. The page reads the index when it opens, and a block when it shows or searches one of its items. Texts of items and
answers are hostile: in the file they are base64, and templates/items.js makes only text nodes of them.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lm.evals.stats.measures import is_number, scale
from lm.files import saving
from lm.reports.evaluation_items import encodable, entry, item_name, margin
from lm.reports.page import render

PAGE = "items.html"
BLOCK = 1 << 18  # characters of JSON in a block
BEGINNING = 90  # most characters of a list row
GROUPS = ("subtask", "group", "subject", "category", "family", "bias_type", "relation", "axis", "type")  # the first present
STATES = ("wrong", "right", "measured", "not scored")


class Items:
    """The items of an evaluation, added one by one. Memory: a row of the index for each item, and the compressed blocks."""

    def __init__(self):
        self.blocks: list[str] = []
        self._starts: list[int] = []  # number of the first item of each block
        self._open: list[str] = []
        self._size = 0
        self._rows: list[list] = []
        self._numbers: dict[str, dict[str, int]] = {"tasks": {}, "groups": {}, "flags": {}}  # of names, in order
        self._names: dict[tuple[str, str], int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def through(self, samples: Iterable[Mapping]) -> Iterator[Mapping]:
        """Add the samples, and yield each."""
        for sample in samples:
            self.add(sample)
            yield sample

    def add(self, sample: Mapping[str, Any]) -> None:
        if not self._open:
            self._starts.append(len(self._rows))
        task, name, group = task_name(sample), item_name(sample), group_of(sample)
        times = self._names[task, name] = self._names.get((task, name), 0) + 1
        sure = margin(sample)
        self._rows.append(
            [
                self._number("tasks", task),
                name if times == 1 else f"{name} ({times})",
                state(sample),
                self._number("groups", group),
                [self._number("flags", str(flag)) for flag in sample.get("flags") or ()],
                None if sure is None else round(sure, 3),
                beginning(sample),
            ]
        )
        text = json.dumps(saving.plain(entry(sample)), separators=(",", ":"), allow_nan=False)
        self._open.append(text)
        self._size += len(text)
        if self._size >= BLOCK:
            self._close()

    def write(self, workdir: Path, title: str) -> None:
        """Write WORKDIR/items.html; without items, remove an old one."""
        if not self._rows:
            (workdir / PAGE).unlink(missing_ok=True)
            return
        if self._open:
            self._close()
        index = {kind: list(numbers) for kind, numbers in self._numbers.items()}
        index |= {"states": STATES, "starts": self._starts, "rows": self._rows}
        report = {"title": title, "finished": True}
        page = render("items.html.j2", report, index=packed(json.dumps(index, separators=(",", ":"))), blocks=self.blocks)
        saving.write(workdir / PAGE, page.encode(errors="backslashreplace"))

    def _number(self, kind: str, name: str) -> int:
        return self._numbers[kind].setdefault(name, len(self._numbers[kind]))

    def _close(self) -> None:
        self.blocks.append(packed(f"[{','.join(self._open)}]"))
        self._open, self._size = [], 0


def packed(text: str) -> str:
    """Return an ASCII text compressed, in base64."""
    return base64.b64encode(zlib.compress(text.encode("ascii"), 6)).decode("ascii")


def address(task: str, item: str | None = None, **filters: str) -> str:
    """Return the link to a task or to an item on the page.

    >>> address("mmlu", "law 3"), address("mmlu", state="wrong")
    ('items.html#mmlu/law%203', 'items.html#mmlu?state=wrong')
    """
    path = "/".join(quote(encodable(part), safe="") for part in (task, item) if part is not None)
    query = "&".join(f"{key}={quote(value, safe='')}" for key, value in filters.items())
    return f"{PAGE}#{path}{'?' if query else ''}{query}"


def task_name(sample: Mapping) -> str:
    return encodable(str(sample.get("task")))


def group_of(sample: Mapping) -> str:
    return next((encodable(str(sample[key])) for key in GROUPS if sample.get(key) not in (None, "")), "")


def state(sample: Mapping) -> int:
    """Return an index into STATES. An item whose metrics are no shares, such as bits per byte, is only measured."""
    if sample.get("failed"):
        return 0
    known = {name: value for name, value in (sample.get("metrics") or {}).items() if is_number(value)}
    if not known:
        return 3
    return 1 if any(scale(name, value) != "open" for name, value in known.items()) else 2


def beginning(sample: Mapping) -> str:
    """Return the beginning of an item's own question, without few-shot examples: of the last long paragraph or message."""
    question, messages = sample.get("request") or sample.get("prompt") or "", sample.get("messages")
    if isinstance(messages, list) and not sample.get("request"):
        users = [m for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
        question = users[-1].get("content") if users else question
    if isinstance(question, list):
        question = question[0] if question and isinstance(question[0], str) else ""
    *_, before, own = ("", "", *str(question).strip().split("\n\n")[-2:])
    own = (own if len(own) >= BEGINNING else f"{before} {own}").strip() or str(next(iter(sample.get("choices") or ()), ""))
    return " ".join(own[: 4 * BEGINNING].split())[:BEGINNING]
