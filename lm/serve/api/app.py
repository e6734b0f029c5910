"""The HTTP application: routes of OpenAI's API and vLLM's, health and adapters."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

from lm.errors import UserError
from lm.serve.api import chat, completions
from lm.serve.api.answers import Plan
from lm.serve.api.errors import ApiError, json_response
from lm.serve.api.limits import Gate, Rates
from lm.serve.api.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    LoadAdapter,
    Sampled,
    TokenizeRequest,
    UnloadAdapter,
    reading,
)
from lm.serve.api.service import Service, describe
from lm.serve.api.stream import EventStream, Gone, answer
from lm.serve.api.text import spelling
from lm.serve.metrics import CountRequests

MAX_ENCODED = 1 << 20  # bytes of a text for /tokenize, which need not fit the model

log = logging.getLogger("lm.serve")


@dataclasses.dataclass(frozen=True)
class Settings:
    """keys: of `read_keys`; none: no key is asked for. per_minute: requests of a user; 0: no limit. body_bytes: of a request.

    read_seconds: in which a body must have come, and in which a client must take a part of a stream. hosts: see Gate.
    """

    keys: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    per_minute: int = 0
    body_bytes: int = 4 << 20
    read_seconds: float = 60.0
    hosts: tuple[str, ...] = ()


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
    app.add_middleware(
        Gate,
        keys=settings.keys,
        rates=Rates(settings.per_minute),
        body_bytes=settings.body_bytes,
        seconds=settings.read_seconds,
        hosts=settings.hosts,
    )
    if service.watch:
        app.add_middleware(CountRequests, metrics=service.watch.metrics)
    return app


def routes(service: Service, settings: Settings) -> APIRouter:
    router = APIRouter()

    async def sampled(
        request: Request,
        body: Sampled,
        plan: Callable[[Service, Any, str], Plan],
        whole: Callable[..., Any],
        chunks: Callable[..., AsyncIterator[Any]],
    ) -> Response:
        user = request.state.user
        planned = await service.media.call(getattr(body, "messages", ()), plan, service, body, user)
        if body.stream:
            return await EventStream(chunks(service, body, planned), settings.read_seconds).start(request)
        found = await answer(request, whole(service, body, planned))
        return found if isinstance(found, Response) else json_response(found)

    @router.post("/v1/completions")
    async def complete(request: Request, body: Annotated[CompletionRequest, Depends(reading(CompletionRequest))]) -> Response:
        return await sampled(request, body, completions.plan, completions.whole, completions.chunks)

    @router.post("/v1/chat/completions")
    async def talk(request: Request, body: Annotated[ChatRequest, Depends(reading(ChatRequest))]) -> Response:
        return await sampled(request, body, chat.plan, chat.whole, chat.chunks)

    @router.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": describe(service)})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        service.adapter_of(name)
        return json_response(next(entry for entry in describe(service) if entry["id"] == name))

    @router.post("/v1/load_lora_adapter")
    async def load(body: Annotated[LoadAdapter, Depends(reading(LoadAdapter))]) -> Response:
        await asyncio.to_thread(service.load_adapter, body.lora_name, body.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter")
    async def unload(body: Annotated[UnloadAdapter, Depends(reading(UnloadAdapter))]) -> Response:
        await asyncio.to_thread(service.unload_adapter, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    _text_and_state(router, service)
    return router


def _text_and_state(router: APIRouter, service: Service) -> None:
    """Add the routes that tell of tokens and of the server's state."""

    @router.post("/tokenize")
    async def tokenize(body: Annotated[TokenizeRequest, Depends(reading(TokenizeRequest))]) -> Response:
        return await service.media.call(body.messages or (), _tokenized, service, body)

    @router.post("/detokenize")
    async def detokenize(body: Annotated[DetokenizeRequest, Depends(reading(DetokenizeRequest))]) -> Response:
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


def _tokenized(service: Service, body: TokenizeRequest) -> Response:
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
