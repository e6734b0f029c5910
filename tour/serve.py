"""OpenAI's chat endpoint over continuous batching: requests join and leave a batch that decodes all the time.

The batch has R rows. Each step gives every row one token (Orca: Yu et al. 2022). A request takes a free row and its
pages, is read (prefill), and gives both back when it ends, so a short answer does not wait for a long one.
"""

import dataclasses
import functools
import itertools
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tour.cache import Cache, empty_cache
from tour.generate import PAGE, draw, next_logits, padded
from tour.model import Config, Params, Tokens
from tour.sft import prompt_ids


@dataclasses.dataclass
class Request:
    """A prompt, how to draw, and what the engine adds: tokens for the caller (None at the end), its pages, its place."""

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
def step(params: Params, config: Config, cache: Cache, ids: Tokens, how: dict) -> tuple[jax.Array, Cache]:
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
        """Serve for ever. The caller gives this a thread of its own."""
        while True:
            if not any(self.rows):
                self.waiting.put(self.waiting.get())  # sleep until a request comes
            for r in [r for r, request in enumerate(self.rows) if request is None]:
                if not self.waiting.empty():
                    self.begin(r, self.waiting.get())
            self.advance()

    def begin(self, r: int, request: Request) -> None:
        """Read a prompt into pages of its own, and draw its first token."""
        need = -(-(len(request.prompt) + request.max_tokens) // PAGE)
        request.pages, self.free = self.free[:need], self.free[need:]
        self.rows[r] = request
        self.compute(padded([request.prompt]), [request])

    def advance(self) -> None:
        """Draw one token for each row."""
        if any(self.rows):
            last = np.array([[request.last if request else 0] for request in self.rows], np.int32)
            used = np.array([[int(request is not None)] for request in self.rows], np.int32)
            places = [[len(request.prompt) + request.count - 1 if request else 0] for request in self.rows]
            self.compute(Tokens(jnp.asarray(last), jnp.asarray(used), jnp.array(places, jnp.int32)), self.rows)

    def compute(self, ids: Tokens, requests: list[Request | None]) -> None:
        """Run a step of these rows, tell their callers, and free what has ended."""
        table = np.zeros((len(requests), self.width), np.int32)
        for row, request in zip(table, requests):
            if request:
                row[: len(request.pages)] = request.pages
        some = [request or Request([]) for request in requests]
        names = {"temperature": np.float32, "top_p": np.float32, "seed": np.int32, "count": np.int32}
        how = {name: jnp.array([getattr(one, name) for one in some], kind) for name, kind in names.items()}
        cache = self.cache._replace(table_BN=jnp.asarray(table))
        drawn, self.cache = step(self.params, self.config, cache, ids, how)
        for request, token in zip(requests, np.asarray(drawn).tolist()):
            if request is None:
                continue
            request.last, request.count = token, request.count + 1
            ended = token in self.stop_ids or request.count == request.max_tokens
            for item in [*([] if token in self.stop_ids else [token]), *([None] if ended else [])]:
                request.drawn.put(item)
            if ended:
                self.free += request.pages
                self.rows[self.rows.index(request)] = None


def serve(engine: Engine, tokenizer: Any, port: int = 8000) -> ThreadingHTTPServer:
    """Start the engine and a server of POST /v1/chat/completions on this machine, each in threads, and return the server."""

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
            tokens, text = iter(request.drawn.get, None), ""
            if not body.get("stream"):
                text = tokenizer.decode(list(tokens))
                message = {"role": "assistant", "content": text}
                reason = "length" if request.count == request.max_tokens else "stop"
                choice = {"index": 0, "message": message, "finish_reason": reason}
                return self.send(200, json.dumps({"object": "chat.completion", "choices": [choice]}))
            self.send(200, "", "text/event-stream")
            for sofar in itertools.accumulate([token] for token in tokens):
                new = tokenizer.decode(sofar)
                delta = {"index": 0, "delta": {"content": new[len(text) :]}, "finish_reason": None}
                self.wfile.write(f"data: {json.dumps({'choices': [delta]})}\n\n".encode())
                text = new
            self.wfile.write(b"data: [DONE]\n\n")

        def send(self, code: int, text: str, kind: str = "application/json") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    mesh = jax.sharding.get_mesh()

    def run() -> None:
        with jax.set_mesh(mesh):  # a mesh is set in one thread
            engine.run()

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    for target in (run, server.serve_forever):
        threading.Thread(target=target, daemon=True).start()
    return server
