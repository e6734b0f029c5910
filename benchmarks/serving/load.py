"""What a load generator asks and when, and the figures of the answers. Nothing here touches the network."""

import dataclasses
import json
import random
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 99)


@dataclasses.dataclass(frozen=True)
class Ask:
    """One HTTP request.

    kind: for the counts. content: the body's bytes. expected: statuses that are right; 0: no answer. stream: read events.
    leave_chunks: close the connection after so many events; 0: never. leave_seconds: the same after so long; 0: never.
    pause: seconds in which a slow reader does not read, after its first event. half: send half of the body, and close.
    prompt, most, choices: the text, tokens and number of answers that the body asks for.
    """

    kind: str
    content: bytes
    path: str = "/v1/completions"
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    expected: frozenset[int] = frozenset({200})
    stream: bool = False
    leave_chunks: int = 0
    leave_seconds: float = 0.0
    pause: float = 0.0
    half: bool = False
    prompt: str = ""
    most: int = 0
    choices: int = 1


@dataclasses.dataclass
class Outcome:
    """What became of an Ask. Times are seconds of one clock; 0 for what has not happened.

    status: of HTTP; 0: none came. gaps: seconds between two events with text. texts, finishes: one a choice. error: of the
    server's answer, of an event of a stream, or of the connection. left: the client closed the connection, as it meant to.
    """

    ask: Ask
    begun: float = 0.0
    first: float = 0.0
    last: float = 0.0
    ended: float = 0.0
    status: int = 0
    gaps: list[float] = dataclasses.field(default_factory=list)
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    finishes: dict[int, str] = dataclasses.field(default_factory=dict)
    events: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    error: str = ""
    left: bool = False

    @property
    def whole(self) -> bool:
        """Return whether all choices came to their end."""
        return self.status == 200 and not self.error and bool(self.finishes) and all(self.finishes.values())


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Return the times of a Poisson process with `rate` arrivals a second, within `seconds`, in order."""
    draw, now, found = random.Random(seed), 0.0, []
    while (now := now + draw.expovariate(rate)) < seconds:
        found.append(now)
    return found


def words() -> list[str]:
    """Return the words of Python's documentation, in the order of the text."""
    from pydoc_data import topics

    return " ".join(topics.topics.values()).split()


def between(draw: random.Random, low: int, high: int) -> int:
    """Return an integer whose logarithm is uniform: most requests are short, some are long."""
    return min(high, round(low * (high / low) ** draw.random()))


def prompts(
    seed: int, *, length: tuple[int, int], answer: tuple[int, int], shared: float, prefixes: int, prefix: int
) -> Iterator[tuple[str, int]]:
    """Yield (prompt, tokens of its answer) without end: pieces of real text, cut anywhere.

    length: words of a prompt, from and to. answer: tokens. shared: share of prompts that begin with one of `prefixes` common
    texts of `prefix` words.
    """
    draw, text = random.Random(seed), words()

    def piece(count: int) -> str:
        begin = draw.randrange(len(text) - count)
        return " ".join(text[begin : begin + count])

    heads = [piece(prefix) for _ in range(prefixes)]
    while True:
        head = draw.choice(heads) + "\n\n" if heads and draw.random() < shared else ""
        yield head + piece(between(draw, *length)), between(draw, *answer)


def asks(pairs: Iterator[tuple[str, int]], *, model: str, chat: bool, headers: tuple, extra: dict[str, Any]) -> Iterator[Ask]:
    """Yield a streamed request for each (prompt, tokens). extra: more fields of the body."""
    for prompt, most in pairs:
        asked = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        body = {"model": model, **asked, "max_tokens": most, "stream": True, "stream_options": {"include_usage": True}, **extra}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        content = json.dumps(body).encode()
        yield Ask("load", content, path, headers=json_headers(headers), stream=True, prompt=prompt, most=most)


def json_headers(more: tuple) -> tuple[tuple[str, str], ...]:
    return (("content-type", "application/json"), *more)


def marker(draw: random.Random) -> str:
    """Return eight letters that no text holds by chance (26⁸ of them)."""
    return "".join(draw.choices(string.ascii_lowercase, k=8))


def percentiles(values: Sequence[float], digits: int = 4) -> dict[str, float] | None:
    """Return {"p50", "p90", "p99"} by linear interpolation between the sorted values; None of nothing."""
    if not len(values):
        return None
    return {f"p{p}": round(float(x), digits) for p, x in zip(PERCENTILES, np.percentile(values, PERCENTILES))}


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the figures of a run: counts by status, tokens a second, and percentiles of seconds.

    first: from the request to the first text. between: between two events with text (an event may hold several tokens).
    token: from the first text to the end, over the tokens but one. whole: from the request to the end.
    Percentiles are those of requests that came to their end.
    """
    done = [one for one in outcomes if one.whole]
    if not outcomes:
        return {"requests": 0}
    seconds = max(one.ended for one in outcomes) - min(one.begun for one in outcomes)
    answered = sum(one.answer_tokens for one in outcomes)
    return {
        "requests": len(outcomes),
        "finished": len(done),
        "statuses": {str(status): count for status, count in sorted(Counter(one.status for one in outcomes).items())},
        "errors": dict(Counter(one.error[:80] for one in outcomes if one.error).most_common(10)),
        "seconds": round(seconds, 2),
        "requests_per_second": round(len(done) / seconds, 3) if seconds else None,
        "prompt_tokens": sum(one.prompt_tokens for one in outcomes),
        "answer_tokens": answered,
        "answer_tokens_per_second": round(answered / seconds, 2) if seconds else None,
        "first": percentiles([one.first - one.begun for one in done if one.first]),
        "between": percentiles([gap for one in done for gap in one.gaps]),
        "token": percentiles([(one.ended - one.first) / (one.answer_tokens - 1) for one in done if one.answer_tokens > 1]),
        "whole": percentiles([one.ended - one.begun for one in done]),
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as lines."""
    if not found["requests"]:
        return "no requests"
    counts = ", ".join(f"{status}: {count}" for status, count in found["statuses"].items())
    lines = [f"{found['finished']} of {found['requests']} requests finished in {found['seconds']} s (status {counts})"]
    lines.append(f"{found['requests_per_second']} requests/s, {found['answer_tokens_per_second']} tokens/s")
    lines.append(f"{'milliseconds':24}" + "".join(f"{f'p{p}':>10}" for p in PERCENTILES))
    names = {"first": "to the first token", "between": "between events", "token": "a token after it", "whole": "of a request"}
    for name, told in names.items():
        shown = [f"{1000 * value:>10.1f}" for value in (found[name] or {}).values()] or [f"{'-':>10}"]
        lines.append(f"{told:24}" + "".join(shown))
    return "\n".join(lines + [f"{count} × {error}" for error, count in found["errors"].items()])
