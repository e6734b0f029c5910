"""The models that an agent asks: one of a checkpoint, one behind OpenAI's API, or a function of the conversation."""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import numpy as np

from data.chat.messages import Messages, make_message
from lm.errors import UserError

MAX_BYTES = 16 << 20  # of an answer of a server
TURN = 1024  # tokens of a turn at most
KEY = "OPENAI_API_KEY"
HERE = ("localhost", "127.0.0.1", "::1")
TOO_LONG = "context_length_exceeded"  # OpenAI's code of a request with more tokens than the model has positions
Schemas = Sequence[Mapping[str, Any]]


class Said(NamedTuple):
    """A turn of a model. calls: [{"name", "arguments"}]. errors: of calls that could not be parsed. tokens: how many it wrote.

    finish: "stop", "length" or "timeout".
    """

    content: str
    calls: Sequence[Mapping[str, Any]] = ()
    errors: Sequence[str] = ()
    tokens: int = 0
    finish: str = "stop"


class Model(Protocol):
    """A function that answers a conversation with one turn, of at most `tokens` tokens within `seconds`."""

    def __call__(self, messages: Messages, schemas: Schemas, tokens: int, seconds: float) -> Said: ...


def open_model(checkpoint: str, **settings: Any) -> Model:
    """Return the model of --checkpoint, with the settings of `local_model`. Raises: UserError if it cannot read messages."""
    from lm.train.checks import check_speaker

    check_speaker("--checkpoint", checkpoint)
    from lm.align.reward_model import chat_template_of
    from lm.infer.engine.open import open_engine
    from lm.infer.engine.room import Capacity

    engine = open_engine(checkpoint, Capacity(rows=1))
    if engine.tokenizer is None:
        raise UserError(f"--checkpoint={checkpoint} has no tokenizer, so it cannot read messages")
    return local_model(engine, chat_template_of(checkpoint), **settings)


def local_model(engine, template: str | None = None, *, temperature: float = 0.0, seed: int = 0, declare: bool = True) -> Model:
    """Return the model of an engine (lm.infer.engine.open.open_engine) that has a tokenizer.

    declare: whether prompts list the tools; False for a model that was trained without that.
    Raises, when it is asked: UserError if a conversation is too long for the model.
    """
    from data.chat.harmony import spelled
    from data.chat.thoughts import divided
    from lm.align.rl.tools import HERMES, OURS, parse_text, parse_turn
    from lm.infer.engine.request import Request
    from lm.infer.prompts import read_chat
    from lm.serve.api.tools import Calls, declared, format_of

    tokenizer = engine.tokenizer
    form = format_of(tokenizer, template)
    known = OURS in tokenizer.controls or form.mark == HERMES[0]
    asked = 0

    def model(messages: Messages, schemas: Schemas, tokens: int, seconds: float) -> Said:
        nonlocal asked
        asked += 1
        listed = list(schemas) if declare else []
        extra = {"tools": listed} if listed and form.declared else {}
        prompt = read_chat(tokenizer, declared(form, messages, listed), template, **extra)
        room = engine.max_positions - len(prompt.ids)
        if room < 1:
            raise UserError(
                f"the conversation has {len(prompt.ids)} tokens, and the model {engine.max_positions} positions: give a "
                "shorter task, or fewer steps (--steps)"
            )
        own = int(np.random.SeedSequence((seed, asked)).generate_state(1)[0])
        limit = max(1, min(room, tokens, TURN))
        request = Request(tuple(prompt.ids), limit, temperature, seed=own, stop_ids=prompt.stops, deadline=max(0.001, seconds))
        event = engine.answers([request])[0]
        if event.finish == "error":
            raise UserError(event.error)
        ids = [i for i in event.tokens if i not in prompt.stops]
        finish = event.finish if event.finish in ("length", "timeout") else "stop"
        if known:
            said = parse_turn(tokenizer, ids)
            if tokenizer.is_harmony:
                said = parse_text(divided(spelled(tokenizer, ids, begun=True), begun=True)[1])
            calls = [call["function"] for call in said.tool_calls]
            return Said(said.content, calls, said.errors, len(event.tokens), finish)
        content, found = Calls(form).feed(tokenizer.decode(ids), over=True)
        calls = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in found]
        return Said(content, calls, (), len(event.tokens), finish)

    return model


def remote_model(url: str, name: str, *, temperature: float = 0.0, seed: int = 0) -> Model:
    """Return the model `name` behind url/chat/completions, such as serve.py's http://127.0.0.1:8000/v1.

    The environment variable KEY holds the server's key, if it has one. A server on this machine is asked directly, any other
    one through the proxy that the environment names (https_proxy), if any.
    Raises: UserError for a url that is none; when it is asked, if the server does not answer or refuses.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url={url} must begin with http:// or https://, such as http://127.0.0.1:8000/v1")
    address = f"{url.rstrip('/')}/chat/completions"
    proxies = urllib.request.ProxyHandler({} if on_this_machine(url) else None)
    opener = urllib.request.build_opener(proxies)

    def model(messages: Messages, schemas: Schemas, tokens: int, seconds: float) -> Said:
        body: dict[str, Any] = {"messages": to_openai(messages), "temperature": temperature, "seed": seed}
        body |= {"max_tokens": max(1, min(tokens, TURN))} | ({"model": name} if name else {})
        body |= {"tools": list(schemas)} if schemas else {}
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}
        for _ in range(2):
            try:
                request = urllib.request.Request(address, json.dumps(body).encode(), headers)
                with opener.open(request, timeout=max(0.001, seconds)) as answer:
                    return _said(url, answer.read(MAX_BYTES))
            except urllib.error.HTTPError as error:
                said = " ".join(error.read(2000).decode("utf-8", "replace").split())
                if TOO_LONG in said and body.pop("max_tokens", 0):
                    continue  # the server knows how many tokens it has left, and then takes those
                raise UserError(f"--url={url}: status {error.code}: {said[:300]}") from None
            except TimeoutError:
                return Said("", finish="timeout")
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a malformed URL
                reason = getattr(error, "reason", error)
                if isinstance(reason, TimeoutError):
                    return Said("", finish="timeout")
                raise UserError(f"--url={url}: no answer ({reason}); is serve.py running there?") from None
        raise AssertionError("the second try returns or raises")

    return model


def on_this_machine(url: str) -> bool:
    """Return whether a URL names this machine: localhost, 127.0.0.1 or ::1."""
    try:
        return urlsplit(url).hostname in HERE
    except ValueError:  # a malformed URL
        return False


def to_openai(messages: Messages) -> Messages:
    """Return messages as OpenAI's API takes them: every call has an id, which its answer names, and its arguments as text."""
    converted: Messages = []
    count, waiting = 0, []  # calls so far, and the ids of those that the next answers belong to
    for message in messages:
        new = make_message(message["role"], message["content"])
        if calls := message.get("tool_calls"):
            waiting = [f"call_{count + n:08d}" for n in range(len(calls))]
            count += len(calls)
            new["tool_calls"] = []
            for id, call in zip(waiting, calls):
                arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                function = {"name": call["function"]["name"], "arguments": arguments}
                new["tool_calls"].append({"id": id, "type": "function", "function": function})
        elif message["role"] == "tool" and waiting:
            new["tool_call_id"] = waiting.pop(0)
        elif message["role"] == "tool":  # it tells the model about a call that could not be parsed
            new["role"] = "user"
        converted.append(new)
    return converted


def _said(url: str, answer: bytes) -> Said:
    try:
        body = json.loads(answer)
        choice = body["choices"][0]
        message = choice["message"]
        calls, errors = [], []
        for call in message.get("tool_calls") or ():
            function = call["function"]
            try:
                arguments = json.loads(function["arguments"] or "{}")
                if not isinstance(arguments, dict):
                    raise ValueError("no object")
                if not isinstance(function["name"], str):
                    raise TypeError("no name")
                calls.append({"name": function["name"], "arguments": arguments})
            except ValueError as error:
                errors.append(f"the arguments of {function['name']} are not JSON ({error})")
        tokens = int((body.get("usage") or {}).get("completion_tokens") or 0)
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        content = message.get("content") or ""
        if not isinstance(content, str):
            raise TypeError("content is no text")
        return Said(content, calls, errors, tokens, finish)
    except (LookupError, TypeError, ValueError, RecursionError, AttributeError):
        said = " ".join(answer.decode("utf-8", "replace").split())
        raise UserError(f"--url={url}: this is no chat completion: {said[:200]}") from None
