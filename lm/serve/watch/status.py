"""The routes of the monitor. The status page is what the Grafana dashboard shows, without Grafana, from samples in memory.

    GET /status               a page; no other host is asked for anything
    GET /status.json          {"times", "charts", "behaviours", "alerts", …}; ?since=TIME leaves out older samples
    POST /v1/feedback         a person's rating of an answer, on disk before the answer 200
    POST /v1/monitor/accept   {"checkpoint", "adapter"}: the behaviour as it is now is the new reference

A thread reads all metrics every few seconds and computes the lines of lm/serve/watch/charts.py.
"""

import asyncio
import math
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse
from markupsafe import Markup
from pydantic import ConfigDict, Field
from starlette.responses import Response

from lm.files.saving import plain
from lm.reports import page
from lm.serve.api.protocol import ApiError, Body, json_response, read
from lm.serve.store import Feedback
from lm.serve.watch.charts import CHARTS, reading, values

HERE = Path(__file__).parents[1] / "templates"
DIGITS = 4  # significant ones of the numbers that are sent
Text = Annotated[str, Field(max_length=20_000)]
RATINGS = {"up": 1, "down": -1, 1: 1, -1: -1}


class FeedbackRequest(Body):
    """id: of the answer. The user of the API key, if there is one, counts instead of `user`."""

    model_config = ConfigDict(extra="forbid")
    id: Annotated[Text, Field(min_length=1)]
    rating: Text | int | float
    choice: int = Field(0, ge=0, lt=1 << 16)
    comment: Text = ""
    correction: Text = ""
    user: Text = ""


class AcceptRequest(Body):
    checkpoint: str
    adapter: str


class Status:
    """The newest samples of a server's metrics, one every `seconds`. 0 seconds: only when `take` is called."""

    def __init__(self, watch):
        self.watch, self.title, self.seconds = watch, watch.metrics.model_name, watch.settings.status_seconds
        self.begun = time.time()
        # (time, [{label: value} of each line of each chart])
        self._samples: deque[tuple[float, list[list[dict[str, float]]]]] = deque(maxlen=watch.settings.status_samples)
        self._before, self._at = reading(watch.metrics.registry), time.monotonic()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        if self.seconds:
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
            kept = list(self._samples)
        samples, charts = [sample for sample in kept if sample[0] > since], []
        for n, chart in enumerate(CHARTS):
            lines: dict[str, list[float | None]] = {}
            for at, (_, found) in enumerate(samples):
                for line in found[n]:
                    for label, value in line.items():
                        lines.setdefault(label, [None] * len(samples))[at] = _short(value)
            happened = any(_short(value) for _, found in kept for line in found[n] for value in line.values())
            about = {"title": chart.title, "note": chart.note, "unit": chart.unit}
            charts.append(about | {"quiet": "" if happened else chart.quiet, "lines": lines})
        return {
            "title": self.title,
            "begun": self.begun,
            "now": time.time(),
            "seconds": self.seconds,
            "times": [sample[0] for sample in samples],  # in full: a page asks for what is newer
            "charts": charts,
            **plain(self.watch.snapshot()),
        }

    def page(self) -> str:
        """Return the page as HTML."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader([HERE, Path(page.__file__).parent / "templates"]), autoescape=True, trim_blocks=True
        )
        environment.filters |= page.FILTERS
        script = Markup((HERE / "status.js").read_text(encoding="utf-8"))
        report = {"title": f"{self.title}: status"}
        return environment.get_template("status.html.j2").render(report=report, charts=CHARTS, script=script)

    def router(self) -> APIRouter:
        """Return the routes. Answers can be rated for a while, and as long as the store keeps them; later feedback gets 404."""
        router = APIRouter(include_in_schema=False)

        @router.get("/status")
        def status() -> HTMLResponse:
            return HTMLResponse(self.page(), headers={"cache-control": "no-store"})

        @router.get("/status.json")
        def status_json(since: float = 0.0) -> JSONResponse:
            return JSONResponse(self.json(since), headers={"cache-control": "no-store"})

        @router.post("/v1/feedback")
        async def give_feedback(request: Request) -> Response:
            body = await read(request, FeedbackRequest)
            if body.rating not in RATINGS:
                raise ApiError(400, 'rating: must be "up" or "down", or 1 or -1', param="rating")
            user = getattr(request.state, "user", "") or body.user
            feedback = Feedback(body.id, RATINGS[body.rating], body.choice, user, body.comment, body.correction)
            try:
                number, _, _ = await asyncio.wrap_future(self.watch.on_feedback(feedback))
            except LookupError:
                raise ApiError(404, f"no answer {body.id!r} is known, or it was deleted") from None
            except sqlite3.Error as error:
                raise ApiError(503, f"the store cannot be written: {error}") from None
            return json_response({"object": "feedback", "id": body.id, "number": number, "stored": True})

        @router.post("/v1/monitor/accept")
        async def accept(request: Request) -> Response:
            body = await read(request, AcceptRequest)
            if not self.watch.accept(body.checkpoint, body.adapter):
                raise ApiError(404, "no such checkpoint and adapter is watched")
            return json_response({"accepted": True})

        return router

    def _run(self) -> None:
        while not self._closed.wait(self.seconds):
            self.take()


def _short(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
