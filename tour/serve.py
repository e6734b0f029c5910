"""OpenAI's chat endpoint over continuous batching: requests join and leave a batch that decodes all the time.

The batch has R rows. Each step gives every row one token (Orca: Yu et al. 2022). A request takes a free row and its
pages, is read (prefill), and gives both back when it ends, so a short answer does not wait for a long one. A prompt is
read alone, so the mesh may split heads (tensor), but not rows.
"""

import dataclasses
import functools
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tour.cache import Cache, empty_cache
from tour.generate import PAGE, draw, next_logits, padded
from tour.model import Config, Params, Tokens
from tour.sft import prompt_ids


@dataclasses.dataclass
class Request:
    """A prompt, how to draw, and what the engine adds: drawn tokens (None ends them), pages, last token, count."""

    prompt: list[int]
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    drawn: queue.Queue = dataclasses.field(default_factory=queue.Queue)
    pages: list[int] = dataclasses.field(default_factory=list)
    last: int = 0
    count: int = 0


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def step(params: Params, config: Config, cache: Cache, ids: Tokens, how: dict) -> tuple[Array, Cache]:
    """Return the next token of each row, int32 [R], and the cache with the tokens read: prompts, or each row's last."""
    logits_RV, cache = next_logits(params, config, ids, cache)
    keys_R = jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(how["seed"], how["count"])
    return draw(logits_RV, keys_R, how["temperature"], how["top_p"]), cache


class Engine:
    """The batch: its rows, the pages of the cache, and the requests that wait for both."""

    def __init__(self, params: Params, config: Config, stop_ids: tuple[int, ...], rows: int = 8, context: int = 512):
        self.params, self.config, self.stop_ids = params, config, stop_ids
        self.width, self.context = -(-context // PAGE), context  # pages of the longest row
        pages = rows * self.width
        shape = (config.num_layers, pages, PAGE, config.num_kv_heads, config.head_dim)
        self.cache = empty_cache(shape, config.dtype, jnp.zeros((rows, self.width), jnp.int32))
        self.free, self.waiting = list(range(pages)), queue.Queue[Request]()
        self.rows: list[Request | None] = [None] * rows

    def run(self) -> None:
        """Serve for ever, in a thread of its own."""
        while True:
            while None in self.rows and (not any(self.rows) or not self.waiting.empty()):
                self.begin(self.waiting.get())  # which sleeps until a request comes
            self.advance()

    def begin(self, request: Request) -> None:
        """Give a request a row and pages, read its prompt, and draw its first token."""
        need = -(-(len(request.prompt) + request.max_tokens) // PAGE)
        request.pages, self.free = self.free[:need], self.free[need:]
        self.rows[self.rows.index(None)] = request
        self.compute(padded([request.prompt]), [request])

    def advance(self) -> None:
        """Draw one token for each row; an empty row is padding."""
        last = [(one.last, 1, len(one.prompt) + one.count - 1) if one else (0, 0, 0) for one in self.rows]
        self.compute(Tokens(*(jnp.array(column, jnp.int32)[:, None] for column in zip(*last))), self.rows)

    def compute(self, ids: Tokens, requests: list[Request | None]) -> None:
        """Run a step of these rows, tell their callers, and free what has ended."""
        some = [request or Request([]) for request in requests]
        table = [one.pages + [0] * (self.width - len(one.pages)) for one in some]
        names = ("seed", "count", "temperature", "top_p")
        how = {name: jnp.array([getattr(one, name) for one in some]) for name in names}
        cache = self.cache._replace(table_BN=jnp.array(table, jnp.int32))
        drawn, self.cache = step(self.params, self.config, cache, ids, how)
        for request, token in zip(requests, np.asarray(drawn).tolist()):
            if request is None:
                continue
            request.last, request.count = token, request.count + 1
            ended = token in self.stop_ids or request.count == request.max_tokens
            if token not in self.stop_ids:
                request.drawn.put(token)
            if ended:
                request.drawn.put(None)
                self.free += request.pages
                self.rows[self.rows.index(request)] = None


def serve(engine: Engine, tokenizer: Any, port: int = 8000) -> ThreadingHTTPServer:
    """Start the engine and a server of POST /v1/chat/completions in threads, and return the server."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = Request(prompt_ids(tokenizer, body["messages"]), int(body.get("max_tokens", 64)))
                request.temperature, request.top_p = float(body.get("temperature", 1)), float(body.get("top_p", 1))
                request.seed = int(body.get("seed", time.time_ns() % 2**31))
                assert 0 < request.max_tokens <= engine.context - len(request.prompt), "the context is too long"
            except (AssertionError, KeyError, TypeError, ValueError) as error:
                return self.send(400, json.dumps({"error": {"message": f"{type(error).__name__}: {error}"}}))
            engine.waiting.put(request)
            message = {"role": "assistant", "content": tokenizer.decode(list(iter(request.drawn.get, None)))}
            reason = "stop" if request.last in engine.stop_ids else "length"
            choice = {"index": 0, "message": message, "finish_reason": reason}
            self.send(200, json.dumps({"object": "chat.completion", "choices": [choice]}))

        def send(self, code: int, text: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    def run(mesh: jax.sharding.Mesh = jax.sharding.get_mesh()) -> None:  # noqa: B008
        with jax.set_mesh(mesh):  # a mesh is set for one thread
            engine.run()

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    for target in (run, server.serve_forever):
        threading.Thread(target=target, daemon=True).start()
    return server
