"""Answers over HTTP: server-sent events, and what happens when the client is gone or reads too slowly."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lm.serve.api.errors import ApiError, encoded

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies must not hold events back
Result = TypeVar("Result")


class Gone(Exception):
    """The client has closed the connection."""


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """Return the result of the work, which is cancelled if the client leaves. Raises: Gone, and what the work raises."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def answer(request: Request, work: Awaitable[Any]) -> Any:
    """Return the result of `unless_gone`, or a response that nobody will read."""
    try:
        return await unless_gone(request.receive, work)
    except Gone:
        return Response(status_code=499)  # as nginx logs it


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response of server-sent events that ends with data: [DONE]. Closes its source whatever happens.

    chunks: JSON values; None is nothing. An ApiError among them is sent as an event. seconds: in which a client must take one.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[Any], seconds: float):
        self._chunks, self._seconds = chunks, seconds
        super().__init__(headers=HEADERS, media_type=self.media_type)
        del self.headers["content-length"]

    async def start(self, request: Request) -> "EventStream":
        """Wait for the first chunk, so that an error before it has a status code of its own. Raises: ApiError, Gone."""
        self._first = await unless_gone(request.receive, anext(self._chunks))
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def put(body: bytes, more: bool = True) -> None:
            async with asyncio.timeout(self._seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with contextlib.suppress(Gone, OSError, TimeoutError):
                await unless_gone(receive, self._events(put))
        finally:
            await self._chunks.aclose()

    async def _events(self, put) -> None:
        if self._first is not None:
            await put(_event(self._first))
        try:
            async for chunk in self._chunks:
                if chunk is not None:
                    await put(_event(chunk))
        except ApiError as error:
            await put(_event(error.body()))
        await put(b"data: [DONE]\n\n", more=False)


def _event(value: Any) -> bytes:
    return b"data: " + encoded(value) + b"\n\n"
