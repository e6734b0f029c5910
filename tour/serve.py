"""OpenAI's chat endpoint over continuous batching: requests join and leave a batch that decodes all the time.

The batch has R rows. Each step gives every row one token (Orca: Yu et al. 2022). A request takes a free row and its
pages, is read (prefill), and gives both back when it ends, so a short answer does not wait for a long one. A prompt is
read alone, so the mesh may split heads (tensor), but not rows.
"""

import dataclasses
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tour.generate import empty_cache, last_tokens, padded, step
from tour.model import Batch, Config, Params
from tour.sft import prompt_ids

PAGE = 16  # slots of a page


@dataclasses.dataclass(eq=False)
class Request:
    """A prompt, how to draw, and what the engine adds: its pages (each a range of slots), the answer, and its end."""

    prompt: list[int]
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    pages: list[range] = dataclasses.field(default_factory=list)
    answer: list[int] = dataclasses.field(default_factory=list)
    done: threading.Event = dataclasses.field(default_factory=threading.Event)


class Engine:
    """The batch: its rows, the pages of the cache, and the requests that wait for both. context: a multiple of PAGE."""

    def __init__(self, params: Params, config: Config, stop_ids: tuple[int, ...], rows: int = 8, context: int = 512):
        self.params, self.config, self.stop_ids, self.context = params, config, stop_ids, context
        self.slots_RS = np.zeros((rows, context), np.int32)
        self.cache = empty_cache(config, jnp.array(self.slots_RS))
        self.free = [range(first, first + PAGE) for first in range(0, rows * context, PAGE)]
        self.rows: list[Request | None] = [None] * rows
        self.waiting = queue.Queue[Request]()

    def run(self) -> None:
        """Serve for ever, in a thread of its own."""
        while True:
            while None in self.rows and (not any(self.rows) or not self.waiting.empty()):
                self.begin(self.waiting.get())  # which sleeps until a request comes
            self.compute(
                last_tokens([r.prompt + r.answer if r else [] for r in self.rows]), list(range(len(self.rows)))
            )

    def begin(self, request: Request) -> None:
        """Give a request a row and pages, read its prompt, and draw its first token."""
        row, need = self.rows.index(None), -(-(len(request.prompt) + request.max_tokens) // PAGE)
        request.pages, self.free = self.free[:need], self.free[need:]
        self.slots_RS[row, : need * PAGE] = [slot for page in request.pages for slot in page]
        self.rows[row] = request
        self.compute(padded([request.prompt]), [row])

    def compute(self, batch: Batch, rows: list[int]) -> None:
        """Draw a token for each of these rows, and free those that have ended. An empty row draws for nobody."""
        requests = [self.rows[row] or Request([]) for row in rows]
        how = {name: jnp.array([getattr(r, name) for r in requests]) for name in ("temperature", "top_p")}
        how["key"] = jax.vmap(jax.random.key)(jnp.array([r.seed for r in requests]))
        how["count"] = jnp.array([len(r.answer) for r in requests])
        cache = self.cache._replace(slots_BS=jnp.array(self.slots_RS[rows]))
        drawn_R, self.cache = step(self.params, self.config, cache, batch, how)
        for row, request, token in zip(rows, requests, drawn_R.tolist()):
            request.answer.append(token)
            if token in self.stop_ids or len(request.answer) == request.max_tokens:
                self.free += request.pages
                self.rows[row] = None
                request.done.set()


def reply(engine: Engine, tokenizer: Any, body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to the body of a request, in OpenAI's form, when it is complete."""
    request = Request(prompt_ids(tokenizer, body["messages"]), int(body.get("max_tokens", 64)))
    request.temperature, request.top_p = float(body.get("temperature", 1)), float(body.get("top_p", 1))
    request.seed = int(body.get("seed", time.time_ns() % 2**31))
    if not 0 < request.max_tokens <= engine.context - len(request.prompt):
        raise ValueError(f"prompt and max_tokens must fit into {engine.context} tokens")
    engine.waiting.put(request)
    request.done.wait()
    text = tokenizer.decode([token for token in request.answer if token not in engine.stop_ids])
    reason = "stop" if request.answer[-1] in engine.stop_ids else "length"
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"object": "chat.completion", "choices": [choice]}


def serve(engine: Engine, tokenizer: Any, port: int = 8000) -> ThreadingHTTPServer:
    """Start the engine and a server of POST /v1/chat/completions in threads, and return the server."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                code, content = (
                    200,
                    reply(engine, tokenizer, json.loads(self.rfile.read(int(self.headers["Content-Length"])))),
                )
            except (KeyError, TypeError, ValueError) as error:
                code, content = 400, {"error": {"message": f"{type(error).__name__}: {error}"}}
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    def run(mesh: jax.sharding.Mesh) -> None:
        with jax.set_mesh(mesh):  # a mesh is set for one thread
            engine.run()

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=run, args=(jax.sharding.get_mesh(),), daemon=True).start()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
