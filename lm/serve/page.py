"""The chat page: GET /, with its style and scripts from templates/. A browser that shows it may ask no other host.

The page uses /v1/models, /v1/chat/completions and /v1/feedback as any client does. The Content-Security-Policy lets no inline
script run, and no text become HTML.
"""

from collections.abc import Callable
from pathlib import Path

import jinja2
from fastapi import APIRouter
from starlette.responses import Response

from data.media.parts import KINDS
from lm.serve.api import limits
from lm.serve.api.service import Service

HERE = Path(__file__).parent / "templates"
TYPES = {".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; media-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = limits.HEADERS | {"Content-Security-Policy": POLICY}


def router(service: Service) -> APIRouter:
    """Return the routes / and /chat*.css, /chat*.js. The page offers ratings if the service is watched, which stores them."""
    template = jinja2.Environment(autoescape=True).from_string((HERE / "chat.html").read_text(encoding="utf-8"))
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page() -> Response:
        html = template.render(
            name=service.name,
            watched=service.watch is not None,
            media=" ".join(kind for kind in KINDS if service.towers is not None and getattr(service.towers, kind) is not None),
            most=service.limits.max_media,
            bytes=service.limits.media_bytes,
        )
        return Response(html, headers=HEADERS, media_type="text/html")

    for path in sorted(HERE.glob("chat*")):
        if path.suffix in TYPES:
            routes.add_api_route(f"/{path.name}", _file(path))
    return routes


def _file(path: Path) -> Callable[[], Response]:
    content = path.read_bytes()

    def send() -> Response:
        return Response(content, headers=HEADERS, media_type=TYPES[path.suffix])

    return send
