"""Mixed load at twice the capacity of a server, with all that clients do wrong; then the server's counters against our truth.

The mix: answers in a stream and at once, greedy and sampled, several choices, log-probabilities, a regular expression; clients
that leave in the middle of an answer or before it, that read slowly, or send half a request; bodies that are too large, not
JSON, of wrong types, too long for the model; unknown models, paths and methods, and wrong keys.
Each good prompt names eight letters of its own. No answer may hold the letters of another one, and some greedy answers must be
the same when they are asked again alone.
"""

import asyncio
import dataclasses
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.serving import truth
from benchmarks.serving.client import Client, at_times, in_turns
from benchmarks.serving.load import Ask, Outcome, arrivals, between, json_headers, marker, summary, words
from benchmarks.serving.server import Memory, Metrics, growth, parse_metrics

CAPACITY_SECONDS = 30.0  # of the closed loop that measures the capacity
OVERLOAD = 2.0
AGAIN = 20  # greedy answers that are asked again alone
SHARE, MIN = 0.05, 64 << 20  # memory may grow by this share, or by so many bytes
QUIET = 90.0  # seconds in which the server must have forgotten all requests
# Of our own server in a soak: a short queue and impatience, so that it comes to 429, and to the end of slow readers.
FLAGS = ("--config.queue=64", "--config.unread_tokens=64", "--config.read_seconds=20", "--config.body_bytes=262144")
PAUSE = 45.0  # seconds in which a slow reader reads nothing
TOO_LARGE = 300_000  # bytes; vLLM and llama.cpp have no limit near it
BUSY = frozenset({200, 429, 503})
GOOD_KINDS = {"greedy": 8, "greedy whole": 3, "sampled": 2, "chat": 3, "choices": 1, "likely": 1, "regex": 1}  # shares


@dataclasses.dataclass(frozen=True)
class Target:
    """The server of a soak. keys: a header each user, () if it asks for none. ours: it has lmcraft's limits and statuses."""

    model: str
    keys: tuple[tuple, ...]
    positions: int
    ours: bool


def good(draw: random.Random, target: Target, text: list[str], markers: set[str]) -> Iterator[Ask]:
    """Yield requests that get an answer. They differ in length, route and options."""
    while True:
        mark = marker(draw)
        markers.add(mark)
        begin, count = draw.randrange(len(text) - 200), between(draw, 5, 120)
        prompt = f"The code is {mark}.\n{' '.join(text[begin : begin + count])}\nThe code is"
        most = between(draw, 8, 96)
        kind = draw.choices(("greedy", "greedy whole", "sampled", "chat", "choices", "likely", "regex"), (8, 3, 2, 3, 1, 1, 1))[
            0
        ]
        body: dict[str, Any] = {"model": target.model, "max_tokens": most, "temperature": 0, "stream": kind != "greedy whole"}
        body |= {"messages": [{"role": "user", "content": prompt}]} if kind == "chat" else {"prompt": prompt}
        body |= {
            "sampled": {"temperature": 1.0, "top_p": 0.9, "seed": draw.randrange(2**31), "stop": ["\n\n\n"]},
            "choices": {"n": 2, "temperature": 0.8},
            "likely": {"logprobs": 3},
            "regex": {"guided_regex": "[a-z ]{4,40}"},
        }.get(kind, {})
        if body["stream"]:
            body["stream_options"] = {"include_usage": True}
        path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
        yield asked(
            draw,
            target,
            kind,
            body,
            path=path,
            expected=BUSY,
            stream=body["stream"],
            prompt=prompt,
            most=most,
            choices=body.get("n", 1),
        )


def asked(draw: random.Random, target: Target, kind: str, body, **more) -> Ask:
    headers = json_headers(draw.choice(target.keys) if target.keys else ())
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Ask(kind, content, **({"headers": headers} | more))


def rude(draw: random.Random, target: Target, text: list[str], markers: set[str]) -> Iterator[Ask]:
    """Yield what servers must survive."""
    model, long = target.model, {"max_tokens": 400, "temperature": 0, "ignore_eos": True, "stream": True}
    fine = good(draw, target, text, markers)

    def one(kind: str, body, statuses: tuple[int, ...], **more) -> Ask:
        return asked(draw, target, kind, body, expected=frozenset(statuses), **more)

    def lasting(kind: str, more: dict = {}, **options) -> Ask:  # noqa: B006
        """A long answer, whose prompt has a marker of its own."""
        prompt = next(fine).prompt
        return one(kind, {"model": model, "prompt": prompt, **long, **more}, usual, stream=True, prompt=prompt, **options)

    def short() -> dict:
        return {"model": model, "prompt": "x", "max_tokens": 2}

    deep = b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    usual = (200, 429, 503)
    kinds: list[tuple[int, Callable[[], Ask]]] = [
        (8, lambda: lasting("leaves", leave_chunks=3)),
        (4, lambda: lasting("leaves early", leave_seconds=0.3)),
        (2, lambda: one("half a request", short(), (), half=True)),
        (2, lambda: lasting("slow", {"logprobs": 20}, pause=PAUSE)),
        (2, lambda: one("not JSON", b'{"prompt": ', (400,))),
        (1, lambda: one("not UTF-8", b'{"prompt": "\xff\xfe"}', (400,))),
        (2, lambda: one("wrong type", short() | {"max_tokens": "many"}, (400, 422))),
        (1, lambda: one("not an object", b"[1, 2]", (400, 422))),
        (2, lambda: one("too long", short() | {"prompt": "word " * (target.positions + 10)}, (400, 413))),
        (1, lambda: one("unknown model", short() | {"model": "no-such-model"}, (404,))),
        (1, lambda: one("unknown path", short(), (404,), path="/v1/no/such/path")),
    ]
    if target.ours:
        kinds += [
            (1, lambda: one("too deep", deep, (400,))),
            (1, lambda: one("negative", short() | {"max_tokens": -5}, (400,))),
            (1, lambda: one("many choices", short() | {"n": 10**9}, (400,))),
            (1, lambda: one("infinite", b'{"prompt": "x", "temperature": Infinity}', (400,))),
            (1, lambda: one("bad regex", short() | {"guided_regex": "(("}, (400,))),
            (1, lambda: one("wrong method", b"", (405,), path="/v1/completions", method="PUT")),
            (2, lambda: one("too large", short() | {"prompt": "x" * TOO_LARGE}, (413,))),
            (1, lambda: one("not called JSON", short(), (415,), headers=(("content-type", "text/plain"), *draw_key()))),
        ]
    if target.keys:
        wrong = (("content-type", "application/json"), ("authorization", "Bearer wrong"))
        kinds.append((1, lambda: one("wrong key", short(), (401,), headers=wrong)))

    def draw_key() -> tuple:
        return draw.choice(target.keys) if target.keys else ()

    weights, makers = zip(*kinds)
    while True:
        yield draw.choices(makers, weights)[0]()


async def soak(url: str, pid: int, target: Target, minutes: float, seed: int) -> dict[str, Any]:
    """Return {"summary", "capacity", "checks", "wrong", "failures"}. pid: of the server; 0: its memory is not watched."""
    draw, text, known = random.Random(seed), words(), truth.Truth()
    fine = good(draw, target, text, known.markers)
    async with Client(url) as client:
        tell("measuring the capacity")
        await in_turns(client, fine, 4, count=8)
        before, first = await metrics(client), truth.Truth()
        closed = await in_turns(client, fine, 32, seconds=min(CAPACITY_SECONDS, 20 * minutes))
        for one in closed:
            first.add(one)
        checks = [("alone with good requests", first.against(before, await settled(client)))]
        wrong = list(first.wrong)
        figures = summary(closed)
        rate = OVERLOAD * figures["requests_per_second"]
        tell(f"capacity {figures['requests_per_second']} requests/s; {minutes:g} minutes at {rate:.2f} good requests/s")

        bad = rude(draw, target, text, known.markers)
        mixed = (next(bad) if draw.random() < 0.35 else next(fine) for _ in itertools.count())
        times = arrivals(rate / 0.65, 60 * minutes, seed)
        before, watch, outcomes, last = await metrics(client), pid and Memory(pid), [], time.monotonic()
        async for one in at_times(client, zip(times, mixed)):
            known.add(one)
            outcomes.append(keep(one))
            if foreign := known.foreign(one):
                known.wrong.append(f"{one.ask.kind}: an answer holds {foreign}, which are of other requests")
            if time.monotonic() - last > 60:
                last = time.monotonic()
                tell(f"{len(outcomes)} of {len(times)} requests, {dict(known.statuses)}, {len(known.wrong)} wrong")
                for text in known.wrong[-3:]:
                    tell(f"  such as {text}")
        after = await settled(client)
        if target.ours:
            checks.append(("mixed load", [truth.Check("requests refused with 429", known.statuses[429], 1, len(outcomes))]))
        checks.append(("mixed load", known.against(before, after) + truth.idle(after)))
        if watch and (samples := watch.stop()):
            checks.append(("memory", [truth.memory(*growth(samples), SHARE, MIN)]))
        wrong += known.wrong + await alone(client, outcomes, draw)
    flat = [check for _, some in checks for check in some]
    return {
        "capacity": figures,
        "summary": summary(outcomes),
        "kinds": dict(known.kinds),
        "checks": [{"when": when, **dataclasses.asdict(check), "ok": check.ok} for when, some in checks for check in some],
        "wrong": wrong,
        "failures": truth.failures(flat, wrong),
        "shown": [f"{check} ({when})" for when, some in checks for check in some],
    }


def keep(one: Outcome) -> Outcome:
    """Return an outcome without what is not needed again, since a soak has very many."""
    if one.ask.kind == "greedy" and one.whole:
        return one
    return dataclasses.replace(one, ask=dataclasses.replace(one.ask, content=b""), texts={})


async def alone(client: Client, outcomes: list[Outcome], draw: random.Random) -> list[str]:
    """Return what differs when greedy requests are sent again, one at a time."""
    done, wrong = [one for one in outcomes if one.ask.kind == "greedy" and one.whole], []
    for one in draw.sample(done, min(AGAIN, len(done))):
        again = await client.send(one.ask)
        if again.texts != one.texts:
            wrong.append(f"alone {again.texts} (status {again.status}, {again.error}), in the crowd {one.texts}")
    if not done:
        wrong.append("no greedy answer came to its end, so none was compared")
    tell(f"{min(AGAIN, len(done))} greedy answers were asked again alone, {len(wrong)} differ")
    return wrong


async def metrics(client: Client) -> Metrics:
    """Return the server's metrics; none if it has no /metrics."""
    found = await client.get("/metrics")
    return parse_metrics(found.text) if found.status_code == 200 else {}


async def settled(client: Client) -> Metrics:
    """Return the metrics when nothing runs and waits any more, or after a while."""
    end = time.monotonic() + QUIET
    while True:
        await asyncio.sleep(1.0)
        found = await metrics(client)
        if all(check.ok for check in truth.idle(found)) or time.monotonic() > end:
            return found


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
