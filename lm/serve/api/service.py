"""What the routes share: the engine, the model's name and template, adapters, and the listeners of answers and feedback."""

import asyncio
import contextlib
import dataclasses
import functools
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from data.chat.media.encoding import Towers
from data.chat.messages import make_message
from lm.errors import UserError
from lm.infer.engine.request import Closed, Event, Full, Handle, Request
from lm.infer.prompts import read_chat, stops_of
from lm.runs.workdir import steps_saved
from lm.serve.api.grammar import Grammars
from lm.serve.api.media import Room
from lm.serve.api.protocol import ApiError
from lm.serve.api.tools import CallFormat, format_of

if TYPE_CHECKING:
    from lm.serve.monitor import Watch

BUSY = 1.0  # seconds after which a client may ask again, before any request has been measured
SHARE = 0.1  # of a new request in the mean time of requests
GRACE = 5.0  # seconds that the engine may be late in ending a request at its deadline
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of an adapter
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Keys of the config of serve.py that have these names; configs/serve/default.py explains them."""

    max_prompt_tokens: int = 0
    max_new_tokens: int = 0
    max_choices: int = 128
    timeout: float = 0.0
    unread_tokens: int = 4096
    max_media: int = 16
    media_bytes: int = 8 << 20


class Service:
    """A model behind the API.

    engine: of lm.infer.engine. name: of the model in requests. template: Jinja for chats; None: the tokenizer's own.
    adapter_dir: folder of adapters that clients may load; None: they may load none. origin: path of the checkpoint.
    towers: what the model sees and hears; None: it reads text. checkpoint: the weights that new requests get, in words.
    sampling: fields of a chat request that does not name them, such as its temperature. watch: lm.serve.monitor.Watch, which
    may check and change what is asked and answered; None: nobody does.
    """

    def __init__(
        self,
        engine,
        name: str,
        *,
        template: str | None = None,
        limits: Limits = Limits(),  # noqa: B008 (it is immutable)
        adapter_dir: Path | None = None,
        origin: str = "",
        towers: Towers | None = None,
        sampling: Mapping[str, float] = MappingProxyType({}),
    ):
        self.sampling = dict(sampling)
        self.engine, self.name, self.template, self.limits, self.origin = engine, name, template, limits, origin
        self.adapter_dir, self.created = adapter_dir, int(time.time())
        self.tokenizer, self.draining = engine.tokenizer, False
        self.towers, self.media = towers, Room()
        self.watch: Watch | None = None
        self.checkpoint = _version(name, origin)
        self.symbols = {i: symbol for symbol, i in self.tokenizer.controls.items()}
        self.seconds = 0.0  # of a request in the engine, a mean that forgets: then there is room for another one
        self._changing = threading.Lock()  # of adapters and weights

    @functools.cached_property
    def no_chat(self) -> str:
        """Return why the model cannot read messages, such as a template without end; "": it can."""
        try:
            read_chat(self.tokenizer, [make_message("user", "a")], self.template)
            return ""
        except UserError as error:
            return str(error)

    @functools.cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.engine.config.vocab_size, stops_of(self.tokenizer, self.template))

    @functools.cached_property
    def calls(self) -> CallFormat:
        return format_of(self.tokenizer, self.template)

    async def call(self, messages: Sequence[Mapping[str, Any]], function: Callable[..., Found], *arguments: Any) -> Found:
        """Return function(self, *arguments) from a thread: one for media if any of the messages has some. Raises: ApiError."""
        contents = [content for message in messages if isinstance(content := message.get("content"), list)]
        parts = [part for content in contents for part in content if isinstance(part, Mapping)]
        if [part for part in parts if part.get("type", "text") != "text"]:
            return await self.media.call(function, self, *arguments)
        return await asyncio.to_thread(function, self, *arguments)

    def adapter_of(self, model: str | None) -> str:
        """Return the adapter that a request names, "" for the model itself. Raises: ApiError for another name."""
        if model in (None, "", self.name):
            return ""
        if model in self.engine.adapters:
            return model
        raise ApiError(404, f"the model {model[:100]!r} does not exist; there are {', '.join(self.models)}", param="model",
                       code="model_not_found")  # fmt: skip

    @property
    def models(self) -> tuple[str, ...]:
        return (self.name, *self.engine.adapters)

    def load_adapter(self, name: str, path: str | None) -> None:
        """Load an adapter of `adapter_dir`. Raises: ApiError for a bad name, a path outside, an adapter that does not fit."""
        folder = confined(self.adapter_dir, name, path)
        with self._changing:
            if name in self.models:
                raise ApiError(400, f"the model {name!r} is loaded already; unload it first", param="lora_name")
            try:
                self.engine.load_adapter(name, folder)
            except UserError as error:
                raise ApiError(400, str(error).replace(str(folder), folder.name), param="lora_path") from None

    def unload_adapter(self, name: str) -> None:
        with self._changing:
            if name not in self.engine.adapters:
                raise ApiError(404, f"no adapter {name[:100]!r} is loaded", param="lora_name", code="model_not_found")
            self.engine.unload_adapter(name)

    def swap(self, path: str) -> None:
        """Take the newest checkpoint at `path`. Running requests finish on the old weights. Raises: UserError."""
        with self._changing:
            self.engine.swap(path)
            self.checkpoint = _version(self.name, path)

    @property
    def most(self) -> int:
        """Return how many tokens a prompt may have."""
        return min(self.engine.max_positions or 1 << 40, self.limits.max_prompt_tokens or 1 << 40)

    def check_count(self, count: int, param: str, what: str = "messages") -> None:
        """Raise ApiError for more token ids than a prompt may have, or more messages, each of which has a token at least."""
        if count > self.most:
            raise _too_long(f"the prompt has {count} {what}, more than the {self.most} tokens that it may have", param)

    def check_size(self, prompt: Sequence[str | Sequence[int]], param: str) -> None:
        """Raise ApiError if texts or token ids are too long for the model: to encode them first takes seconds a megabyte."""
        most, longest = self.most, int(self.tokenizer.bytes_per_token.max())
        for part in prompt:
            if not isinstance(part, str):
                self.check_count(len(part), param, "tokens")
        size = sum([len(part.encode("utf-8", "replace")) for part in prompt if isinstance(part, str)])
        if size > most * longest:
            tokens = f"at least {-(-size // longest)} tokens"
            raise _too_long(f"the prompt has {size} bytes, {tokens}: more than the {most} that it may have", param)

    def prepared(self, request: Request) -> Request:
        """Return the request under the limits. Raises: ApiError if its prompt or its answer would be too long."""
        most = self.engine.max_positions
        if self.limits.max_prompt_tokens and len(request.prompt) > self.limits.max_prompt_tokens:
            raise _too_long(f"the prompt has {len(request.prompt)} tokens, this server takes {self.limits.max_prompt_tokens}")
        if most and len(request.prompt) + request.max_new_tokens > most:
            raise _too_long(
                f"the prompt has {len(request.prompt)} tokens, and {request.max_new_tokens} are asked for: together more than "
                f"the {most} of the model"
            )
        if max(request.prompt, default=0) >= self.engine.config.vocab_size:
            raise ApiError(400, f"token ids must be below {self.engine.config.vocab_size}", param="prompt")
        if not request.prompt:
            raise ApiError(400, "a prompt has no tokens", param="prompt")
        return dataclasses.replace(request, deadline=self.limits.timeout or None, told_by_reader=True)

    def room(self, prompt: int) -> int:
        """Return how many tokens an answer may have after a prompt of so many, at least 1."""
        most = self.engine.max_positions
        room = max(1, most - prompt) if most else 1 << 20
        return min(room, self.limits.max_new_tokens or room)

    @contextlib.asynccontextmanager
    async def run(self, requests: Sequence[Request]) -> AsyncIterator["Run"]:
        """Run requests in the engine; those that are not over at the end of the block are cancelled.

        Raises: ApiError if the server stops, its queue is full, or the engine refuses a request.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", retry=BUSY)
        run = Run(self.limits)
        try:
            for n, request in enumerate(requests):
                run.handles.append(self.engine.submit(request, functools.partial(run.tell, n)))
            yield run
        except Closed:
            raise ApiError(503, "the server is shutting down", retry=BUSY) from None
        except Full:
            if self.watch:
                self.watch.metrics.of("admission_rejections", reason="max_num_queued_reqs").inc()
            raise ApiError(
                429, "the server is busy: its queue is full", code="queue_full", retry=self.seconds or BUSY
            ) from None
        except UserError as error:
            raise ApiError(400, str(error)) from None
        finally:
            run.cancel()
            for n, handle in enumerate(run.handles):
                if n in run.finishes and handle.times.started:
                    taken = time.monotonic() - handle.times.started
                    self.seconds += (SHARE if self.seconds else 1.0) * (taken - self.seconds)
            if self.watch:
                for n, handle in enumerate(run.handles):
                    reason = run.finishes.get(n, "cancelled")  # of the engine, or "content_filter"
                    self.watch.metrics.of("request_success", adapter=handle.request.adapter, finished_reason=reason).inc()


class Run:
    """Requests in the engine, and their events in the order in which they came. Belongs to one event loop.

    finishes: how those that are over have ended, for the engine or for who reads their text.
    """

    def __init__(self, limits: Limits):
        self.handles: list[Handle] = []
        self._limits, self._loop, self._begun = limits, asyncio.get_running_loop(), time.monotonic()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._unread, self._slow = 0, False
        self.finishes: dict[int, str] = {}

    def tell(self, n: int, event: Event) -> None:
        """Take an event of request n, on the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
            self._loop.call_soon_threadsafe(self._put, n, event)

    def _put(self, n: int, event: Event) -> None:
        if event.finish:
            self.finishes.setdefault(n, event.finish)
        self._unread += len(event.tokens)
        if self._unread > self._limits.unread_tokens and not self._slow:
            self._slow = True
            self.cancel()
        if not self._slow or event.finish:
            self._events.put_nowait((n, event))

    async def next(self) -> tuple[int, Event]:
        """Return (number of a request, its next event). Raises: ApiError if the reader was too slow, or it takes too long."""
        if self._slow:
            raise ApiError(408, "the answer was read too slowly", code="slow_reader")
        left = None
        if self._limits.timeout:
            left = max(0.0, self._begun + self._limits.timeout + GRACE - time.monotonic())
        try:
            n, event = await asyncio.wait_for(self._events.get(), left)
        except TimeoutError:
            raise timed_out() from None
        self._unread -= len(event.tokens)
        return n, event

    def end(self, n: int, finish: str) -> None:
        """End a request whose reader has found its end."""
        self.finishes[n] = finish
        self.handles[n].cancel()

    def cancel(self) -> None:
        """Cancel all requests that are not over."""
        for n, handle in enumerate(self.handles):
            if n not in self.finishes:
                handle.cancel()


def newest_step(path: str) -> int:
    """Return the step of a training run's newest checkpoint; −1: it has none, or the path is another kind of model."""
    return max(steps_saved(Path(path)), default=-1)


def _version(name: str, path: str) -> str:
    step = newest_step(path)
    return name if step < 0 else f"{name}, step {step}"


def timed_out() -> ApiError:
    return ApiError(408, "the request took longer than this server allows", code="timeout")


def _too_long(message: str, param: str = "prompt") -> ApiError:
    return ApiError(400, message, param=param, code="context_length_exceeded")


def describe(service: Service) -> list[Mapping[str, Any]]:
    """Return the entries of /v1/models."""
    shared = {
        "object": "model",
        "created": service.created,
        "owned_by": "lmcraft",
        "max_model_len": service.engine.max_positions,
        "default_sampling": service.sampling,
    }
    return [
        {"id": name, **shared, "root": service.name, "parent": None if name == service.name else service.name}
        for name in service.models
    ]


def confined(root: Path | None, name: str, path: str | None) -> Path:
    """Return the folder of an adapter in `root`; path: relative to it, default: the name.

    Raises: ApiError if there is no root, the name is none, or the folder is not inside root, also by way of a link.
    """
    if root is None:
        raise ApiError(403, "this server loads no adapters: it was started without adapters.dir")
    if not NAME.fullmatch(name):
        raise ApiError(400, "lora_name: up to 64 letters, digits, '.', '_' and '-', the first one a letter or a digit",
                       param="lora_name")  # fmt: skip
    try:
        folder = (root / (path if path is not None else name)).resolve()
        inside = folder.is_relative_to(root.resolve()) and folder != root.resolve() and folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a circle
        inside = False
    if not inside:  # the same words whether such a file exists elsewhere or not
        raise ApiError(404, "lora_path: no such folder in adapters.dir", param="lora_path")
    return folder
