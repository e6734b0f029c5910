"""Send requests to a server of OpenAI's API and note what comes back, with asyncio and httpx."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from urllib.parse import urlsplit

import httpx

from benchmarks.serving.load import Ask, Outcome

WAIT = 900.0  # seconds for an answer
BUFFER = 4096  # bytes that the system keeps for a slow reader


class Client:
    """Connections to one server. Use it as an async context."""

    def __init__(self, url: str):
        """url: without /v1."""
        self.url = url.rstrip("/").removesuffix("/v1")
        limits, timeout = httpx.Limits(max_connections=None, max_keepalive_connections=64), httpx.Timeout(WAIT)
        self.http = httpx.AsyncClient(base_url=self.url, limits=limits, timeout=timeout)
        narrow = httpx.AsyncHTTPTransport(limits=limits, socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)])
        self._slow = httpx.AsyncClient(base_url=self.url, transport=narrow, timeout=timeout)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *error) -> None:
        await asyncio.gather(self.http.aclose(), self._slow.aclose())

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(path)

    async def send(self, ask: Ask) -> Outcome:
        """Send one request and return what became of it. Errors of the connection are part of that."""
        found = Outcome(ask, begun=time.perf_counter())
        try:
            if ask.half:
                await self._half(ask)
                found.left = True
            elif ask.leave_seconds:
                async with asyncio.timeout(ask.leave_seconds):
                    await self._ask(ask, found)
            else:
                await self._ask(ask, found)
        except TimeoutError:
            found.left = True
        except (httpx.HTTPError, OSError) as error:
            found.error = found.error or f"{type(error).__name__}: {error}"
        except ValueError as error:
            found.error = f"the answer cannot be read: {error}"
        found.ended = time.perf_counter()
        return found

    async def _ask(self, ask: Ask, found: Outcome) -> None:
        client = self._slow if ask.pause else self.http
        async with client.stream(ask.method, ask.path, content=ask.content, headers=list(ask.headers)) as response:
            found.status = response.status_code
            if found.status != 200 or not ask.stream:
                _take(await response.aread(), found)
                return
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                value = line[5:].strip()
                if value == "[DONE]":
                    return
                _event(json.loads(value), found)
                if ask.leave_chunks and found.events >= ask.leave_chunks:
                    found.left = True
                    return
                if ask.pause and found.events == 1:
                    await asyncio.sleep(ask.pause)
            found.error = found.error or "the stream ended without [DONE]"

    async def _half(self, ask: Ask) -> None:
        parts = urlsplit(self.url)
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = [f"{ask.method} {ask.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(ask.content)}"]
        head += [f"{name}: {value}" for name, value in ask.headers]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + ask.content[: len(ask.content) // 2])
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _take(body: bytes, found: Outcome) -> None:
    """Read an answer that came at once."""
    if found.status != 200:
        try:
            error = json.loads(body).get("error", {})
            found.error = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError):
            found.error = body[:200].decode("utf-8", "replace")
        return
    found.first = time.perf_counter()
    value = json.loads(body)
    for choice in value.get("choices", ()):
        found.texts[choice["index"]] = choice.get("text") or (choice.get("message") or {}).get("content") or ""
        found.finishes[choice["index"]] = choice.get("finish_reason") or ""
    _usage(value, found)


def _event(value: dict, found: Outcome) -> None:
    """Read an event of a stream."""
    now = time.perf_counter()
    if "error" in value:
        found.error = str((value["error"] or {}).get("message", value["error"]))
        return
    for choice in value.get("choices", ()):
        n, text = choice["index"], choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        found.texts[n] = found.texts.get(n, "") + text
        found.finishes[n] = choice.get("finish_reason") or found.finishes.get(n, "")
        if text:
            if found.first:
                found.gaps.append(now - found.last)
            found.first, found.last = found.first or now, now
            found.events += 1
            found.answer_tokens += 1  # until the server says better
    if value.get("usage"):
        _usage(value, found)


def _usage(value: dict, found: Outcome) -> None:
    """Take the server's counts, which are better than the events'."""
    usage = value.get("usage") or {}
    found.prompt_tokens = usage.get("prompt_tokens") or 0
    found.answer_tokens = usage.get("completion_tokens") or 0


async def in_turns(
    client: Client, asks: Iterator[Ask], concurrency: int, seconds: float = 0.0, count: int = 0
) -> list[Outcome]:
    """Keep `concurrency` requests going for so many seconds, or until so many are sent. All answers are awaited."""
    end, found, sent = time.perf_counter() + (seconds or float("inf")), [], 0

    async def work() -> None:
        nonlocal sent
        while time.perf_counter() < end and (not count or sent < count):
            sent += 1
            found.append(await client.send(next(asks)))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return found


async def at_times(client: Client, timed: Iterable[tuple[float, Ask]]) -> AsyncIterator[Outcome]:
    """Send each request at its time, in seconds from now, whether or not others are answered. Yield outcomes as they come."""
    begin, over, running = time.perf_counter(), asyncio.Queue(), set()

    async def one(ask: Ask) -> None:
        over.put_nowait(await client.send(ask))

    async def send_all() -> None:
        for at, ask in timed:
            await asyncio.sleep(begin + at - time.perf_counter())
            task = asyncio.create_task(one(ask))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        over.put_nowait(None)

    sending = asyncio.create_task(send_all())
    while (found := await over.get()) is not None:
        yield found
    await sending
