"""The HTTP application: the page over many runs of lm/reports/runs.py, which follows what the runs write. It only reads.

    GET /                   the page; 304 if the browser has the newest one
    GET /report?run=NAME    the run's own report, in a sandbox without scripts

A run is named as on the page, never by a path. The files are looked at when a browser asks, and files that did not change are
not read again. All that takes at most a tenth of the time, so the runs keep the machine for themselves.
"""

import hashlib
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lm.errors import UserError
from lm.files.untrusted import content, shown
from lm.reports.run_alerts import full_disks
from lm.reports.run_folders import Cache, Run, read_runs
from lm.reports.runs import SCRIPT_HASH, Live, html, matching
from lm.serve.api import limits

SHARE = 0.1  # of the time that looking at the files may take
MAX_RUNS = 2000
MAX_REPORT = 64 << 20  # bytes of a report.html
CLOSED = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
PAGE_POLICY = f"{CLOSED}; script-src '{SCRIPT_HASH}'; connect-src 'self'"
REPORT_POLICY = f"sandbox; {CLOSED}"
HEADERS = limits.HEADERS | {"Cross-Origin-Resource-Policy": "same-origin"}


class Page:
    """The newest page over the runs in and below some folders.

    Links that lead out of them are not followed. patterns: shell patterns of names; none: all runs. seconds: between two looks
    at the files, at least. share: of the time that looking may take.
    """

    def __init__(self, folders: Sequence[Path], patterns: Sequence[str] = (), seconds: float = 2.0, share: float = SHARE):
        self._folders, self._patterns, self._seconds, self._share = list(folders), tuple(patterns), seconds, share
        self._cache, self._lock = Cache(), threading.Lock()
        self._next = 0.0  # the time of the next look
        self._runs: list[Run] = []
        self._text, self._tag = "", ""

    def newest(self) -> tuple[str, str]:
        """Return (the page, a tag that changes with it)."""
        with self._lock:
            begin = time.monotonic()
            if begin >= self._next:
                self._look()
                self._next = time.monotonic() + max(self._seconds, (time.monotonic() - begin) * (1 / self._share - 1))
            return self._text, self._tag

    def report(self, name: str) -> bytes | None:
        """Return the report.html of a run that the page lists, or None if it has none that can be read."""
        run = next((run for run in self._runs if run.name == name and "report.html" in run.files), None)
        try:
            return content(run.folder / "report.html", MAX_REPORT) if run else None
        except (OSError, UserError):
            return None

    def _look(self) -> None:
        runs = matching(read_runs(self._folders, confined=True, cache=self._cache), self._patterns)
        notices = full_disks(self._folders)
        if len(runs) > MAX_RUNS:
            notices.append(f"{len(runs):,} runs are there, and the newest {MAX_RUNS:,} are shown; --runs chooses others.")
        state = [(run.name, run.state, run.place, run.faults, run.versions) for run in runs]
        tag = hashlib.sha256(repr((state, notices)).encode("utf-8", "replace")).hexdigest()[:16]
        if tag != self._tag:
            where = ", ".join(map(shown, self._folders))
            link = lambda run: f"report?run={quote(run.name)}"  # noqa: E731
            self._runs = runs[:MAX_RUNS]
            self._text, self._tag = html(self._runs, where, link, notices, Live(self._seconds, tag)), tag


def make_app(page: Page, hosts: Collection[str] = ()) -> Starlette:
    """Return the application. hosts: names by which a browser may call it, against DNS rebinding; none: any."""

    def check(request: Request) -> None:
        if hosts and (host := limits.host_of(request.headers.get("host", ""))) not in hosts:
            raise HTTPException(403, f"host {shown(host)[:100]!r} is none of {', '.join(hosts)}; --hosts names more")

    def newest(request: Request) -> Response:
        check(request)
        text, tag = page.newest()
        headers = HEADERS | {"ETag": tag, "Content-Security-Policy": PAGE_POLICY}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(text.encode("utf-8", "replace"), media_type="text/html", headers=headers)

    def report(request: Request) -> Response:
        check(request)
        if (data := page.report(request.query_params.get("run", ""))) is None:
            raise HTTPException(404, "no such run, or it has no report that can be read")
        return Response(data, media_type="text/html", headers=HEADERS | {"Content-Security-Policy": REPORT_POLICY})

    def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = HEADERS | {"Content-Security-Policy": CLOSED} | dict(error.headers or {})
        return Response(f"{error.detail}\n", error.status_code, headers, "text/plain")

    return Starlette(
        routes=[Route("/", newest), Route("/report", report)],
        middleware=[Middleware(GZipMiddleware, minimum_size=2000, compresslevel=4)],
        exception_handlers={HTTPException: refused},
    )
