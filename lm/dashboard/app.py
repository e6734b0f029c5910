"""The HTTP application: a page with its scripts, and JSON that the page asks for. It only reads.

    GET /                the page
    GET /api/runs        ?since=VERSION: the runs that changed since then, and the version now; with ETag
    GET /api/curves      ?run=ID&metric=NAME&points=N&low=STEP&high=STEP: thinned curves; run and metric may be repeated
    GET /api/run         ?run=ID: config, checkpoints, samples, goodput and starts of one run
    GET /api/compare     ?run=ID&run=ID: differing settings, and results
    GET /report          ?run=ID: the run's own report, in a sandbox without scripts
    GET /export          the page over many runs as one file, as `python -m lm.reports` writes it

A run is named by its number, never by a path.
"""

import json
import math
import secrets
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, FastAPI, Query, Request
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lm.dashboard import details
from lm.dashboard.store import Store
from lm.dashboard.watched import Watched
from lm.errors import UserError
from lm.files.untrusted import content, shown
from lm.serve.api.limits import host_of

HERE = Path(__file__).parent / "templates"
TYPES = {".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
INLINE = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
MOST_RUNS, MOST_METRICS = 200, 100  # of one request
MOST_POINTS = 400_000  # of one answer
LEAST_POINTS = 40  # of a curve
REPORT = 64 << 20  # bytes of a report.html

Ids = Annotated[list[int], Query(alias="run", max_length=MOST_RUNS)]


class Gate:
    """ASGI middleware: answers only GET, and only by the names in `hosts`; none: by any name.

    A browser sends the name of the page's own address. So a page of the web whose name is made to point to this machine (DNS
    rebinding) is refused. Every answer gets HEADERS that it does not set itself.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        host = host_of(Request(scope).headers.get("host", ""))
        if self._hosts and host not in self._hosts:
            text = f"host {shown(host)[:100]!r} is none of {', '.join(self._hosts)}; --hosts names more\n"
            return await PlainTextResponse(text, 403, HEADERS)(scope, receive, send)
        if scope["method"] != "GET":
            return await PlainTextResponse("only GET\n", 405, HEADERS | {"Allow": "GET"})(scope, receive, send)

        async def with_headers(message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in more if pair[0] not in known)]
            await send(message)

        await self._app(scope, receive, with_headers)


def make_app(store: Store, hosts: Collection[str] = ()) -> FastAPI:
    """Return the application. hosts: see Gate."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(_data(store))
    app.include_router(_pages(store))
    for path in sorted(HERE.iterdir()):
        if path.suffix in TYPES:
            app.add_api_route(f"/{path.name}", static(path), include_in_schema=False)
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=4)
    app.add_middleware(Gate, hosts=hosts)
    app.add_exception_handler(HTTPException, lambda request, error: PlainTextResponse(f"{error.detail}\n", error.status_code))
    return app


def _chosen(store: Store, ids: Ids) -> list[Watched]:
    found = [store.runs[id] for id in dict.fromkeys(ids) if id in store.runs]
    if not found:
        raise HTTPException(404, "no such run")
    return found


def _data(store: Store) -> APIRouter:
    """Return the routes with numbers for the page, in JSON."""
    router = APIRouter(prefix="/api")
    boot = secrets.token_hex(4)  # numbers of runs hold for this process

    def answer(request: Request, make: Callable[[], Any]) -> Response:
        """Return JSON with an ETag of the version; 304 if the client has it."""
        store.asked()
        tag = f'W/"{boot}-{store.version}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        with store.lock:
            tag = f'W/"{boot}-{store.version}"'
            value = make()
        return Response(encoded(value), media_type="application/json", headers={"ETag": tag})

    @router.get("/runs")
    def runs(request: Request, since: int = 0) -> Response:
        def make() -> dict[str, Any]:
            listed = [one for one in store.runs.values() if one.is_run]
            names = {key for one in listed for key in one.series if shown(key) == key}
            return {
                "boot": boot,
                "version": store.version,
                "reading": store.behind,
                "ids": [one.id for one in listed],
                "runs": [details.row(one) for one in listed if one.version > since],
                "metrics": {name: details.about(name) for name in sorted(names)},
                "faults": store.faults,
            }

        return answer(request, make)

    @router.get("/curves")
    def curves(
        request: Request,
        run: Ids,
        metric: Annotated[list[str], Query(max_length=MOST_METRICS)],
        points: Annotated[int, Query(ge=2, le=2000)] = 400,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> Response:
        most = max(LEAST_POINTS, min(points, MOST_POINTS // (len(run) * len(metric) or 1)))

        def make() -> dict[str, Any]:
            return {"runs": {one.id: details.curves(one, metric, most, low, high) for one in _chosen(store, run)}}

        return answer(request, make)

    @router.get("/run")
    def one(request: Request, run: int) -> Response:
        return answer(request, lambda: details.details(_chosen(store, [run])[0]))

    @router.get("/compare")
    def compare(request: Request, run: Ids) -> Response:
        return answer(request, lambda: {"ids": list(dict.fromkeys(run)), **details.compared(_chosen(store, run))})

    return router


def _pages(store: Store) -> APIRouter:
    """Return the routes with pages: the dashboard, the report of a run, and one file with all runs."""
    router = APIRouter()
    exporting = threading.Lock()
    template = jinja2.Environment(autoescape=True).from_string((HERE / "dashboard.html.j2").read_text(encoding="utf-8"))

    @router.get("/")
    def page() -> Response:
        store.asked()
        where = ", ".join(shown(folder) for folder in store.folders)
        return Response(template.render(where=where, seconds=store.seconds), media_type="text/html")

    @router.get("/report")
    def report(run: int) -> Response:
        folder = _chosen(store, [run])[0].folder
        try:
            if not folder.inside("report.html"):
                raise UserError("it leads out of the folder")
            page = content(folder.path / "report.html", REPORT)
        except (OSError, UserError):
            raise HTTPException(404, "it has no report that can be read") from None
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": f"sandbox; {INLINE}"})

    @router.get("/export")
    def export() -> Response:
        from lm.reports.runs import html

        where = ", ".join(shown(folder) for folder in store.folders)
        with exporting:  # it draws for seconds, so one at a time
            with store.lock:
                found = [one.copied() for one in store.runs.values() if one.is_run]
            page = html(sorted(found, key=lambda run: -run.written), where, store.folders[0].absolute())
        headers = {
            "Content-Security-Policy": f"sandbox allow-downloads; {INLINE}",
            "Content-Disposition": 'attachment; filename="runs.html"',
        }
        return Response(page.encode("utf-8", "replace"), media_type="text/html", headers=headers)

    return router


def static(path: Path) -> Callable[[], Response]:
    """Return a route that sends a file of the page."""
    data = path.read_bytes()

    def send() -> Response:
        return Response(data, media_type=TYPES[path.suffix])

    return send


def encoded(value: Any) -> bytes:
    """Return JSON. A number that is not finite is null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def finite(value: Any) -> Any:
    """Return the value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
