"""Who may ask, and how much, before any route: connections, the head of a request, names of the host, API keys, requests a
minute, the body.

A head is the first line and the headers. h11 reads it even where a faster parser is installed: all servers refuse the same.
"""

import asyncio
import dataclasses
import hashlib
import hmac
import re
import sys
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

import h11
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from lm.errors import UserError
from lm.files.untrusted import short
from lm.serve.api.protocol import ApiError, encoded

HEAD, MAX_HEADERS = 64 << 10, 200  # bytes of a head, and headers
REQUESTS = 1024  # that are answered at once; more get 503
# Connections without a whole request yet, of an address and of all. When there are more, the oldest one is closed. So whoever
# opens many and sends nothing keeps nobody out; a client that sends its request is never among them.
SHARE, WAITING = 512, 1024
LINGER = 2.0  # seconds in which a refused client may go on sending before it reads its answer
VERSION = re.compile(rb" HTTP/1\.[01]\r?$")
BLANK = re.compile(rb"\n\r?\n")
HEADERS = {  # of pages, beside their Content-Security-Policy
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
GUARDED = ("/v1/", "/tokenize", "/detokenize")
MAX_USERS = 10_000  # whose rates are remembered
MAX_CHUNKS = 20_000  # of a body: each costs the server a microsecond or two, whatever it holds
WASTE = 16  # times the limit that a client with too large a body may still send, to get its answer


@dataclasses.dataclass(frozen=True)
class Settings:
    """keys: of `read_keys`; none: no key is asked for. per_minute: requests of a user; 0: no limit. body_bytes: of a request.

    read_seconds: in which a body must have come, and in which a client must take a part of a stream. hosts: names by which a
    server without keys may be called; none: any. A browser sends the name of the page's own address, so a page of the web whose
    name is made to point to this machine (DNS rebinding) is refused. origins: of web pages that may ask too (CORS); *: any.
    """

    keys: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    per_minute: int = 0
    body_bytes: int = 4 << 20
    read_seconds: float = 60.0
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


def read_keys(path: Path) -> dict[str, bytes]:
    """Return {name: SHA-256 of the key} of a file with a line "NAME DIGEST" for each key; # begins a comment.

    Raises: UserError for another line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"auth.key_file={path}: {getattr(error, 'strerror', None) or 'not text'}; name a file of keys"
        ) from None
    keys = {}
    for number, line in enumerate(lines, start=1):
        parts = line.partition("#")[0].split()
        if not parts:
            continue
        if len(parts) != 2 or not re.fullmatch(r"[0-9a-fA-F]{64}", parts[1]) or parts[0] in keys:
            cure = "write lines NAME DIGEST, each name once, with DIGEST of: printf %s KEY | sha256sum"
            raise UserError(f"auth.key_file={path}: line {number} is no key; {cure}")
        keys[parts[0]] = bytes.fromhex(parts[1])
    if not keys:
        raise UserError(f"auth.key_file={path} has no key; without auth.key_file the server asks for none")
    return keys


def named(keys: Mapping[str, bytes], header: str) -> str:
    """Return whose key the header Authorization holds. Raises: ApiError. Takes the same time for every wrong key."""
    scheme, _, key = header.partition(" ")
    digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
    found = [name for name, known in keys.items() if hmac.compare_digest(digest, known)]
    if not found or scheme.lower() != "bearer":
        what = "wrong API key" if key else "no API key"
        raise ApiError(401, f"{what}: send the header Authorization: Bearer KEY", code="invalid_api_key")
    return found[0]


def host_of(header: str) -> str:
    """Return the name in the header Host, in lower case and without a port: [::1]:8000 is [::1]."""
    return re.sub(r":\d*$", "", header.strip().lower())


class Rates:
    """A token bucket a user: `per_minute` requests, at most as many at once. 0: no limit."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self._most, self._clock = per_minute, clock
        self._left: dict[str, tuple[float, float]] = {}  # of each user: requests left, and when that was so

    def take(self, user: str) -> None:
        """Count a request. Raises: ApiError if the user has none left."""
        if not self._most:
            return
        now = self._clock()
        left, since = self._left.pop(user, (float(self._most), now))
        left = min(self._most, left + (now - since) * self._most / 60)
        if len(self._left) >= MAX_USERS:
            del self._left[next(iter(self._left))]  # the one that has been away longest
        self._left[user] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            message = f"rate limit: {self._most} requests a minute"
            raise ApiError(429, message, code="rate_limit_exceeded", retry=(1 - left) * 60 / self._most)


class Gate:
    """ASGI middleware: checks the key, the rate and the body of each request. Sets state["user"]: the name of the key, or the
    client's address if the server has no keys."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app, self._settings, self._rates, self._running = app, settings, Rates(settings.per_minute), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        self._running += 1
        try:
            await self._checked(scope, receive, send)
        finally:
            self._running -= 1

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, o = Request(scope), self._settings
        try:
            if self._running > REQUESTS:
                raise ApiError(503, f"the server is busy: it answers {REQUESTS} requests at once", code="busy", retry=1.0)
            if len(scope["headers"]) > MAX_HEADERS:
                raise ApiError(431, f"the request has more than {MAX_HEADERS} headers")
            user = (scope.get("client") or ("",))[0]
            host = host_of(request.headers.get("host", ""))
            if o.hosts and not o.keys and host not in o.hosts:
                raise ApiError(403, f"host {short(host)} is none of auth.hosts={','.join(o.hosts)}", code="wrong_host")
            if scope["path"].startswith(GUARDED):
                if o.keys:
                    user = named(o.keys, request.headers.get("authorization", ""))
                self._rates.take(user)
            scope.setdefault("state", {})["user"] = user
            receive = await self._whole(request, receive)
        except ApiError as error:
            return await error.response()(scope, receive, send)
        await self._app(scope, receive, send)

    async def _whole(self, request: Request, receive: Receive) -> Receive:
        """Return a `receive` that gives the whole body at once. Raises: ApiError if it is too large or comes too slowly."""
        if request.method in ("GET", "HEAD"):
            return receive
        parts, size, most = [], 0, self._settings.body_bytes
        try:
            async with asyncio.timeout(self._settings.read_seconds):
                more = True
                while more and size <= WASTE * most:
                    message = await receive()
                    if message["type"] != "http.request":
                        return _again(message, receive)
                    size += len(message.get("body", b""))
                    parts += [message.get("body", b"")] if size <= most else []
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, "the body of the request came too slowly", code="timeout") from None
        if size > most:
            raise ApiError(413, f"the body of the request is larger than {most} bytes", code="request_too_large")
        return _again({"type": "http.request", "body": b"".join(parts), "more_body": False}, receive)


def _again(first: Message, receive: Receive) -> Receive:
    messages = [first]

    async def give() -> Message:
        return messages.pop() if messages else await receive()

    return give


class Connection(H11Protocol):
    """A connection whose client must send a head within `seconds`.

    waiting: {address: connections of it without a whole request, oldest first}, which all connections of a server share.
    """

    def __init__(self, *args, seconds: float, waiting: "dict[str, dict[Connection, None]]", **options):
        super().__init__(*args, **options)
        self._seconds, self._waiting, self._refused, self._lines = seconds, waiting, False, 0
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self.conn.their_state is h11.IDLE and (error := wrong_head((self.conn.trailing_data[0] + data)[:HEAD])):
            return self._refuse(error)
        if self.conn.their_state is h11.SEND_BODY and (b"transfer-encoding", b"chunked") in self.headers:
            self._lines += data.count(b"\r\n")
            if self._lines > 2 * MAX_CHUNKS:
                return self._refuse(ApiError(400, f"the body of the request has more than {MAX_CHUNKS} chunks"))
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._refused = True
        self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 could not read; uvicorn calls this while it handles the error."""
        error = sys.exception()
        self._refuse(ApiError(getattr(error, "error_status_hint", 400), f"this is no request of HTTP/1.1: {error or msg}"))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._lines = 0
        self._await_head()

    def _count(self, waits: bool) -> None:
        """Note whether the request is incomplete. Close the oldest such connection if there are too many."""
        address = self.client[0] if self.client else ""
        own = self._waiting.setdefault(address, {})
        if waits and self not in own:
            own[self] = None
            if len(own) > SHARE or sum(map(len, self._waiting.values())) > WAITING:
                most = max(self._waiting.values(), key=len)
                oldest = next(iter(most))
                del most[oldest]
                oldest.transport.abort()
        elif not waits:
            own.pop(self, None)
        if not own:
            del self._waiting[address]

    def _await_head(self) -> None:
        """Start or stop the clock: it runs while a head is incomplete."""
        waits = self.conn.their_state is h11.IDLE and not self._refused
        self._count(waits or self.conn.their_state is h11.SEND_BODY and not self._refused)
        if waits and self._late is None:
            self._late = self.loop.call_later(self._seconds, self._give_up)
        elif not waits and self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(ApiError(408, "the head of the request came too slowly", code="timeout"))
        else:  # the client has opened a connection and asks nothing
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error, and close the connection when the client has had time to read it."""
        self._refused = True
        self._await_head()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = encoded(error.body())
            head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nContent-Type: application/json\r\n"
            self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        if self.cycle is not None and not self.cycle.response_complete:  # the body was wrong: for its route the client is gone
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.loop.call_later(LINGER, self.transport.close)


def wrong_head(begun: bytes) -> ApiError | None:
    """Return why a head is refused that begins with these bytes, HEAD at most; None: it may go on."""
    line, ended, _ = begun.lstrip(b"\r\n").partition(b"\n")
    if not ended and len(begun) == HEAD:
        return ApiError(414, f"the first line of the request is longer than {HEAD} bytes")
    if ended and not VERSION.search(line):
        return ApiError(400, "the first line of the request does not end in HTTP/1.1, which this server speaks")
    if len(begun) == HEAD and not BLANK.search(begun):
        return ApiError(431, f"the headers of the request are larger than {HEAD} bytes")
    return None
