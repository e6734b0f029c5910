"""One connection of HTTP/1.1: uvicorn's protocol on h11, with bounds on the head of a request, and errors in the API's form.

A head is the first line and the headers. h11 reads it even where a faster parser is installed: all servers refuse the same.
"""

import asyncio
import re
import sys
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lm.serve.api.errors import ApiError, encoded

HEAD = 64 << 10  # bytes
LINGER = 2.0  # seconds in which a refused client may go on sending before it reads its answer
VERSION = re.compile(rb" HTTP/1\.[01]\r?$")
BLANK = re.compile(rb"\n\r?\n")


class Connection(H11Protocol):
    """A connection whose client must send a head within `seconds`."""

    def __init__(self, *args, seconds: float, **options):
        super().__init__(*args, **options)
        self._seconds, self._refused = seconds, False
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self.conn.their_state is h11.IDLE and (error := wrong_head((self.conn.trailing_data[0] + data)[:HEAD])):
            return self._refuse(error)
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

    def _await_head(self) -> None:
        """Start or stop the clock: it runs while a head is incomplete."""
        waits = self.conn.their_state is h11.IDLE and not self._refused
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
