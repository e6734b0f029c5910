"""Show progress: a bar on a terminal, plain lines elsewhere.

A file, a pipe or a job's log gets lines without control characters: the first at once, then at most one every SECONDS, and the
last at the end.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 5.0  # between two lines
COMPILING = "compiling…"


def progress(
    what: str,
    total: float | None = None,
    *,
    unit: str = "",
    done: float = 0,
    soon: bool = True,
    enabled: bool = True,
    file: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    **bar: Any,
) -> "tqdm | Lines":
    """Return a progress display for `what`. Call update(n) for n more items and close() at the end, or use it in `with`.

    Args:
      total: number of items, if known. unit: of the count; bytes, "B", are printed with a prefix, as in 1.2MB.
      done: items finished before. soon: print a line at once; if False, work of less than SECONDS prints nothing.
      enabled: False prints nothing. file: None: stderr. clock: returns seconds. bar: extra tqdm options, on a terminal.
    """
    file = sys.stderr if file is None else file
    if enabled and not file.isatty():
        return Lines(what, total, unit, done, soon, file, clock)
    return Bar(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        file=file,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=not enabled,
        **bar,
    )


def shown(items: Iterable, what: str, total: int | None = None, **options: Any) -> Iterator:
    """Yield the items and show how many were yielded. options: those of `progress`."""
    with progress(what, total, **options) as bar:
        for item in items:
            yield item
            bar.update(1)


class Bar(tqdm):
    def compiling(self) -> None:
        """Show that a program is being compiled, until the next update."""
        self.set_postfix_str(COMPILING)

    def update(self, n: float = 1) -> bool | None:
        if not self.disable and self.postfix == COMPILING:
            self.set_postfix_str("", refresh=False)
        return super().update(n)


class Lines:
    """The used part of tqdm's interface; prints lines such as "train 12/200, loss 3.1, 1.9/s, 01:39 left"."""

    def __init__(self, what, total, unit, done, soon, file, clock):
        self.n, self._begin = done, done
        self._what, self._total, self._unit, self._file, self._clock = what, total, unit, file, clock
        self._postfix, self._started = "", clock()
        self._next, self._silent, self._written = self._started + (0 if soon else SECONDS), not soon, None

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        self.n += n
        if self._clock() >= self._next:
            self._write()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self._postfix = text

    def compiling(self) -> None:
        """Print that a program is being compiled."""
        self._write(COMPILING)

    def write(self, text: str) -> None:
        """Print a separate line on stdout, like tqdm."""
        print(_plain(text, keep="\n"), flush=True)

    def close(self) -> None:
        if not self._silent and self.n != self._written:
            self._write()

    def _write(self, note: str = "") -> None:
        now = self._clock()
        seconds, more = now - self._started, self.n - self._begin
        number = tqdm.format_sizeof if self._unit == "B" else "{:.10g}".format
        count = number(self.n) + (f"/{number(self._total)}" if self._total is not None else "") + self._unit
        parts = [f"{self._what}: {count}", note or self._postfix]
        if more and seconds > 0 and not note:
            parts.append(f"{number(round(more / seconds, 2))}{self._unit}/s")
            if self._total is not None and self._total > self.n:
                parts.append(f"{tqdm.format_interval((self._total - self.n) * seconds / more)} left")
        print(_plain(", ".join(filter(None, parts))), file=self._file, flush=True)
        self._next, self._silent, self._written = now + SECONDS, False, None if note else self.n


def _plain(text: str, keep: str = "") -> str:
    """Remove control characters, because file names and model outputs may hold any."""
    return "".join([c if c.isprintable() or c in keep else " " for c in text])
