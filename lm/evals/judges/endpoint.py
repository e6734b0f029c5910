"""Asking a model behind an OpenAI-compatible API: conversations in, texts out, and never an exception for a bad answer."""

import concurrent.futures
import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from lm.errors import UserError

AT_ONCE = 8  # conversations
MAX_BYTES = 1 << 20  # of an answer
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # what may be otherwise the next time
Answer = TypeVar("Answer")
MAX_WAIT = 20.0  # seconds between tries


class Reply(NamedTuple):
    """text: None if there is none; then `problem` says why in a line."""

    text: str | None
    problem: str = ""


Chat = Callable[[Sequence[Sequence[dict[str, Any]]]], list[Reply]]  # one reply to each conversation, in order


def endpoint(
    url: str,
    model: str,
    *,
    key_variable: str = "OPENAI_API_KEY",
    timeout: float = 60.0,
    retries: int = 3,
    max_tokens: int = 512,
    temperature: float = 0.0,
    wait: float = 1.0,
) -> Chat:
    """Return a chat with `model` by POST to url/chat/completions. Of several processes the first one asks, and all get its
    replies.

    Args:
      url: such as https://api.openai.com/v1. key_variable: environment variable that holds the key; a server that needs none
        is asked without. timeout: seconds that a server may be silent, and in which a begun try must be over.
      retries: further tries after a time-out, a lost connection or a status of PASSING. wait: seconds before the first of
        them, doubled each time; the server's Retry-After counts where it names seconds; never more than 20.
    Raises: UserError for a url that is none.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"endpoint {url!r}: must begin with http:// or https://, such as http://localhost:8000/v1")
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(key_variable)) else {}

    def ask(messages: Sequence[dict[str, Any]]) -> Reply:
        body = {"model": model, "messages": list(messages), "temperature": temperature, "max_tokens": max_tokens}
        for attempt in range(retries + 1):
            reply, pause = _tried(url.rstrip("/") + "/chat/completions", body, headers, timeout)
            if pause is None or attempt == retries:
                return reply
            time.sleep(min(MAX_WAIT, max(pause, wait * 2**attempt)))
        raise AssertionError("the last try returns")

    def chat(conversations: Sequence[Sequence[dict[str, Any]]]) -> list[Reply]:
        def replies() -> list[Reply]:
            with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
                return list(pool.map(ask, conversations))

        from lm.parallel.hosts import from_first  # configs are judged without JAX, which it loads

        return from_first(replies)

    return chat


def _tried(url: str, body: dict, headers: dict[str, str], timeout: float) -> tuple[Reply, float | None]:
    """Return the reply, and the least seconds to wait before another try makes sense; None: it makes none."""
    import requests  # here, because every verb reads this file at its start and few ask a model
    import urllib3

    end = time.monotonic() + timeout
    try:
        # The timeout of requests is one of each read, which a server that drips could draw out for ever.
        with requests.post(url, json=body, headers=headers, timeout=timeout, stream=True) as response:
            content = b""
            for piece in iter(functools.partial(response.raw.read1, decode_content=True), b""):
                content += piece
                if len(content) > MAX_BYTES:
                    return Reply(None, f"{url}: an answer of more than {MAX_BYTES} bytes"), None
                if time.monotonic() > end:
                    return Reply(None, f"{url}: no answer within {timeout:g} s"), 0.0
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        return Reply(None, f"{url}: no answer within {timeout:g} s"), 0.0
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        return Reply(None, f"{url}: {type(error).__name__}: {_short(error)}"), 0.0
    if response.status_code != 200:
        named = response.headers.get("Retry-After", "")
        pause = float(named) if named.isdecimal() else 0.0
        problem = f"{url}: status {response.status_code}: {_short(content.decode('utf-8', 'replace'))}"
        return Reply(None, problem), pause if response.status_code in PASSING else None
    return _read(url, content), None


def _read(url: str, content: bytes) -> Reply:
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return Reply(None, f"{url}: no chat completion: {_short(content.decode('utf-8', 'replace'))}")
    if not isinstance(text, str):
        return Reply(None, f"{url}: a chat completion without text")
    return Reply(text)


def answers_or_unknown(who: str, ask: Callable[[], Iterable[Answer]], n: int, unknown: Callable[[str], Answer]) -> list[Answer]:
    """Return the n answers of `ask`; if it raises, or returns another number of them, n times unknown(why).

    A UserError passes through, because the user can fix it.
    """
    try:
        answers = list(ask())
    except UserError:
        raise
    except Exception as error:
        return [unknown(f"{who} failed: {type(error).__name__}: {error}"[:200])] * n
    return answers if len(answers) == n else [unknown(f"{who} gave {len(answers)} answers to {n} questions")] * n


def replies_or_none(chat: Chat, conversations: Sequence[Sequence[dict[str, Any]]]) -> list[Reply]:
    """Return a reply to each conversation; if the chat fails, none of them has a text. A UserError passes through."""
    if not conversations:
        return []
    return answers_or_unknown("the model", lambda: chat(conversations), len(conversations), functools.partial(Reply, None))


def _short(text: object) -> str:
    return " ".join(str(text).split())[:200]
