"""The status page: what the Grafana dashboard shows, without Grafana, from samples in memory.

    GET /status               a page; no other host is asked for anything
    GET /status.json          {"times", "charts", "behaviours", "alerts", …}; ?since=TIME leaves out older samples

A thread reads all metrics every few seconds and computes the lines of lm/serve/watch/charts.py.
"""

import math
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse
from markupsafe import Markup

from lm.serve.watch.charts import CHARTS, reading, values

HERE = Path(__file__).parents[1] / "templates"
DIGITS = 4  # significant ones of the numbers that are sent


class Status:
    """The newest `samples` samples of a server's metrics, one every `seconds`. 0 seconds: only when `take` is called."""

    def __init__(self, watch, title: str, seconds: float, samples: int):
        self.watch, self.title, self.seconds = watch, title, seconds
        self.begun = time.time()
        # (time, [{label: value} of each line of each chart])
        self._samples: deque[tuple[float, list[list[dict[str, float]]]]] = deque(maxlen=samples)
        self._before, self._at = reading(watch.metrics.registry), time.monotonic()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        if seconds:
            self._thread.start()

    def take(self) -> None:
        """Take a sample now."""
        self.watch.show()
        now, at = reading(self.watch.metrics.registry), time.monotonic()
        with self._lock:
            seconds = max(at - self._at, 1e-3)
            found = [[values(line, self._before, now, seconds) for line in chart.lines] for chart in CHARTS]
            self._samples.append((time.time(), found))
            self._before, self._at = now, at

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def json(self, since: float = 0.0) -> dict[str, Any]:
        """Return what the page draws. Unknown numbers are null."""
        with self._lock:
            samples = [sample for sample in self._samples if sample[0] > since]
        charts = []
        for n, chart in enumerate(CHARTS):
            lines: dict[str, list[float | None]] = {}
            for at, (_, found) in enumerate(samples):
                for line in found[n]:
                    for label, value in line.items():
                        lines.setdefault(label, [None] * len(samples))[at] = _short(value)
            charts.append({"title": chart.title, "note": chart.note, "unit": chart.unit, "lines": lines})
        return {
            "title": self.title,
            "begun": self.begun,
            "now": time.time(),
            "seconds": self.seconds,
            "times": [sample[0] for sample in samples],  # in full: a page asks for what is newer
            "charts": charts,
            **_plain(self.watch.snapshot()),
        }

    def page(self) -> str:
        """Return the page as HTML."""
        from lm.reports import page  # here, because matplotlib comes with it

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader([HERE, Path(page.__file__).parent / "templates"]), autoescape=True, trim_blocks=True
        )
        environment.filters |= page.FILTERS
        script = Markup((HERE / "status.js").read_text(encoding="utf-8"))
        report = {"title": f"{self.title}: status"}
        return environment.get_template("status.html.j2").render(report=report, charts=CHARTS, script=script)

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(include_in_schema=False)

        @router.get("/status")
        def status() -> HTMLResponse:
            return HTMLResponse(self.page(), headers={"cache-control": "no-store"})

        @router.get("/status.json")
        def status_json(since: float = 0.0) -> JSONResponse:
            return JSONResponse(self.json(since), headers={"cache-control": "no-store"})

        return router

    def _run(self) -> None:
        while not self._closed.wait(self.seconds):
            self.take()


def _short(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return _short(value) if abs(value) < 1e6 else value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value
