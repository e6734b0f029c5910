"""The HTTP application: routes of OpenAI's API and vLLM's, health and adapters; and how answers leave, whole or as events."""

import asyncio
import contextlib
import logging
import types
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from lm.errors import UserError
from lm.serve.api import chat, completions, embeddings, protocol, responses
from lm.serve.api.answers import spelling
from lm.serve.api.limits import Gate, Settings
from lm.serve.api.protocol import ApiError, encoded, json_response, read
from lm.serve.api.service import Service, describe
from lm.serve.metrics import CountRequests

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # of events: proxies must not hold them back
MAX_ENCODED = 1 << 20  # bytes of a text for /tokenize, which need not fit the model

log = logging.getLogger("lm.serve")


def make_app(service: Service, settings: Settings = Settings(), routers: Iterable[APIRouter] = ()) -> FastAPI:  # noqa: B008
    """Return the application. routers: more routes, such as a page; those under /v1/ need a key as all there."""
    app = FastAPI(openapi_url=None)
    app.include_router(routes(service, settings))
    for router in (*routers, *([service.watch.router()] if service.watch else [])):
        app.include_router(router)
    app.add_exception_handler(ApiError, lambda request, error: error.response())
    app.add_exception_handler(UserError, lambda request, error: ApiError(400, str(error)).response())
    for gone in (Gone, ClientDisconnect):  # the second while the body was read
        app.add_exception_handler(gone, lambda request, error: Response(status_code=499))
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Gate, settings=settings)
    if service.watch:
        app.add_middleware(CountRequests, metrics=service.watch.metrics)
    if settings.origins:  # before the key check: a browser asks first without a key
        names = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"], "expose_headers": ["Retry-After"]}
        app.add_middleware(CORSMiddleware, allow_origins=settings.origins, **names)
    return app


def routes(service: Service, settings: Settings) -> APIRouter:
    router = APIRouter()

    async def sampled(request: Request, body: protocol.Sampled, kind: types.ModuleType) -> Response:
        """Answer with completions of a kind, which is a module: chat, completions or responses."""
        planned = await service.call(getattr(body, "messages", ()), kind.plan, body, request.state.user)
        if body.stream:
            return await EventStream(kind.chunks(service, body, planned), settings.read_seconds).start(request)
        return json_response(await unless_gone(request.receive, kind.whole(service, body, planned)))

    @router.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await sampled(request, await read(request, protocol.CompletionRequest), completions)

    @router.post("/v1/chat/completions")
    async def talk(request: Request) -> Response:
        return await sampled(request, await read(request, protocol.ChatRequest), chat)

    @router.post("/v1/responses")
    async def respond(request: Request) -> Response:
        return await sampled(request, responses.asked(await read(request, protocol.ResponseRequest)), responses)

    @router.post("/v1/embeddings")
    async def embed(request: Request) -> Response:
        body = await read(request, protocol.EmbeddingRequest)
        planned = await service.call((), embeddings.plan, body)
        return json_response(await unless_gone(request.receive, embeddings.whole(service, body, planned)))

    @router.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": describe(service)})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        service.adapter_of(name)
        return json_response(next(entry for entry in describe(service) if entry["id"] == name))

    @router.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Response:
        body = await read(request, protocol.LoadAdapter)
        await asyncio.to_thread(service.load_adapter, body.lora_name, body.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> Response:
        body = await read(request, protocol.UnloadAdapter)
        await asyncio.to_thread(service.unload_adapter, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    _text_and_state(router, service)
    return router


def _text_and_state(router: APIRouter, service: Service) -> None:
    """Add the routes that tell of tokens and of the server's state."""

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await read(request, protocol.TokenizeRequest)
        return await service.call(body.messages or (), _tokenized, body)

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await read(request, protocol.DetokenizeRequest)
        service.adapter_of(body.model)
        if max(body.tokens, default=0) >= service.tokenizer.vocab_size:
            raise ApiError(400, f"tokens: ids must be below {service.tokenizer.vocab_size}", param="tokens")
        return json_response({"prompt": await asyncio.to_thread(service.tokenizer.decode, body.tokens)})

    @router.get("/health")
    async def health() -> Response:
        service.engine.stats()
        return json_response({"status": "ok"})

    @router.get("/ready")
    async def ready() -> Response:
        if service.draining:
            raise ApiError(503, "the server is shutting down", retry=1.0)
        return json_response({"status": "ready", "model": service.name})


def _tokenized(service: Service, body: protocol.TokenizeRequest) -> Response:
    service.adapter_of(body.model)
    tokenizer = service.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give a prompt or messages", param="prompt")
    messages = None if body.messages is None else chat.messages_of(service, body.messages)
    field, texts = ("prompt", [body.prompt]) if messages is None else ("messages", [m["content"] for m in messages])
    if sum(len(text.encode("utf-8", "replace")) for text in texts) > MAX_ENCODED:
        raise ApiError(400, f"{field}: give text of at most {MAX_ENCODED} bytes, a part of a longer one", param=field)
    if messages is not None:
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools]
        ids = chat.prompt_of(service, messages, tools, body.chat_template_kwargs).ids
    else:
        ids = tokenizer.prompt_ids(body.prompt) if body.add_special_tokens else tokenizer.encode(body.prompt)
    texts = [spelling(tokenizer, service.symbols, i)[0] for i in ids] if body.return_token_strs else None
    found = {"count": len(ids), "max_model_len": service.engine.max_positions, "tokens": list(ids), "token_strs": texts}
    return json_response(found)  # not on the event loop: a long list takes long


async def _plain(request: Request, error: HTTPException) -> Response:
    """Answer an unknown path or method in OpenAI's form."""
    method, path = request.method, request.url.path[:200]
    return ApiError(error.status_code, f"{error.detail}: {method} {path}", code="unknown_url").response()


async def _failed(request: Request, error: Exception) -> Response:
    """Answer our own errors without their details, which go to the log."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return ApiError(500, "the server failed at this request; its log says why").response()


class Gone(Exception):
    """The client has closed the connection."""


async def unless_gone(receive: Receive, work: Awaitable[Any]) -> Any:
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
    name = f"event: {value['type']}\n" if "type" in value else ""  # of a response
    return name.encode() + b"data: " + encoded(value) + b"\n\n"
