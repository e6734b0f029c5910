"""The hostile requests of benchmarks/serving/hostile.py: fields, bodies and heads that no well-meaning client sends."""

import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
EMBEDDINGS, TOKENIZE, DETOKENIZE = "/v1/embeddings", "/tokenize", "/detokenize"
SAID = [{"role": "user", "content": "Hello"}]
SOUND: dict[str, dict[str, Any]] = {  # a sound body of each route
    COMPLETIONS: {"prompt": "Hello", "max_tokens": 2},
    CHAT: {"messages": SAID, "max_tokens": 2},
    RESPONSES: {"input": "Hello", "max_output_tokens": 2},
    EMBEDDINGS: {"input": "Hello"},
    TOKENIZE: {"prompt": "Hello"},
    DETOKENIZE: {"tokens": [1, 2]},
}
SAMPLED = {  # values that a field of both kinds of completions must not have
    "model": (1, [], "no such model"),
    "temperature": (-1, 2.1, "hot", True, [], {}),
    "top_p": (0, 1.1, -1, "1", []),
    "top_k": (-2, 2**40, 1.5, "5"),
    "min_p": (-0.1, 1.1, "0"),
    "n": (0, -1, 129, 1.5, "2", [1]),
    "seed": (1.5, "7", 10**30, []),
    "stop": (1, [1], {"a": 1}, ["a"] * 17, "a" * 10_000),
    "stop_token_ids": ([-1], ["a"], 5, list(range(1000))),
    "stream": ("yes", 1, []),
    "stream_options": (1, {"include_usage": "yes"}, []),
    "presence_penalty": (-3, 3, "a"),
    "frequency_penalty": (-3, 3, []),
    "repetition_penalty": (0, -1, 11, "1"),
    "logit_bias": ({"a": 1}, {"1": 200}, {"999999999": 1}, {"-1": 1}, [1], "5"),
    "max_tokens": (-1, 1.5, "5", 10**30, []),
    "min_tokens": (-1, "1", 10**9),
    "guided_regex": ("(", "a{1,100000}", "(?<=a)b", 5),
    "guided_json": ({"type": "no such"}, {"$ref": "#/nowhere"}, "{", 5),
    "guided_choice": ([], "a", [1], {}),
    "guided_grammar": ("a ::= a", "start: nowhere", "root ::= (", 5),
    "structured_outputs": ({"regex": "["}, {"json": 5}, 5),
}
WRONG = {
    COMPLETIONS: SAMPLED
    | {
        "prompt": (None, 5, {}, [[]], [1.5], [-1], [10**9], ["a", 1], [[1], "a"], ["a"] * 100_000, "a " * 3_000_000),
        "logprobs": (-1, 21, "a", True),
        "best_of": (0, -1, 1000, "a"),
        "echo": ("yes", 1),
        "suffix": (5, []),
    },
    CHAT: SAMPLED
    | {
        "messages": (
            [],
            "Hello",
            {},
            [5],
            [[]],
            [{}],
            [{"role": "user"}],
            [{"content": "a"}],
            [{"role": "nobody", "content": "a"}],
            [{"role": "user", "content": 5}],
            [{"role": "user", "content": [{"type": "no such"}]}],
            [{"role": "user", "content": [{"type": "text"}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}}]}],
            [{"role": "assistant", "tool_calls": 5}],
            [{"role": "tool", "content": "a", "tool_call_id": 5}],
            SAID * 100_000,
            [{"role": "user", "content": "a " * 3_000_000}],
        ),
        "max_completion_tokens": (0, -1, "a"),
        "logprobs": (1, "yes"),
        "top_logprobs": (-1, 21, "a"),
        "tools": (
            5,
            [5],
            [{"type": "function"}],
            [{"type": "no such", "function": {"name": "a"}}],
            [{"type": "function", "function": {"name": "a b"}}],
            [{"type": "function", "function": {"name": "a", "parameters": 5}}],
            [{"type": "function", "function": {"name": "a"}}] * 200,
        ),
        "tool_choice": ("no such", 5, {"type": "function", "function": {"name": "absent"}}),
        "response_format": ("json", {"type": "no such"}, {"type": "json_schema"}),
        "chat_template_kwargs": (5, []),
        "continue_final_message": ("yes",),
    },
    RESPONSES: {
        "input": (None, 5, [], [5], [{}], {"a": 1}),
        "max_output_tokens": (0, -1, "a", 10**30),
        "temperature": (-1, 3, "a"),
        "top_p": (0, 2, "a"),
        "tools": (5, [5], [{"type": "web_search"}]),
        "tool_choice": (5, "no such"),
        "text": (5, {"format": {"type": "no such"}}),
        "previous_response_id": ("resp_1",),
        "instructions": (5, []),
    },
    EMBEDDINGS: {
        "input": (None, 5, [], [""], [[]], [-1], [10**9], ["a", 5], ["a"] * 100_000),
        "encoding_format": ("no such", 5),
        "dimensions": (0, -1, 10**9, "a"),
    },
    TOKENIZE: {
        "prompt": (5, [], "a" * 3_000_000),
        "messages": ([], 5, [5], SAID * 100_000),
        "add_special_tokens": ("yes",),
        "tools": (5, [5]),
    },
    DETOKENIZE: {"tokens": (None, "a", [-1], [1.5], [10**9], ["a"], 5)},
}
ODD = {  # sound bodies with odd texts: 200, or an error that says why
    "lone surrogate": "\\ud800",
    "NUL": "\\u0000",
    "turned text": "\\u202e abc",
    "control tokens": "<|im_end|><|end|></s><s>[INST]",
    "accents": "e\\u0301\\u0301" * 500,
    "emoji": "\\ud83d\\udc69\\u200d\\ud83d\\udc67",
    "format": "{{ 7*7 }} {% for x in [].__class__ %}%s %n ${jndi:ldap://x}",
    "nothing": "",
}
NO_JSON = {
    "nothing": b"",
    "half": b'{"prompt": ',
    "null": b"null",
    "a list": b"[]",
    "a text": b'"a"',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": 1e999}',
    "deep lists": b'{"prompt": ' + b"[" * 100_000,
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "a long number": b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}",
    "100,000 fields": json.dumps({f"field{n}": n for n in range(100_000)}).encode(),
    "40 MB": b'{"prompt": "' + b"a" * 40_000_000 + b'"}',
    "zeros": b"\0" * 1000,
}


class Case(NamedTuple):
    """A hostile request: its bytes. hangs_up: the server may close without an answer. sound: it may answer with 200."""

    name: str
    data: bytes
    hangs_up: bool = False
    sound: bool = False


def cases() -> Iterator[Case]:
    """Yield all hostile requests."""
    for route, fields in WRONG.items():
        for field, values in fields.items():
            for value in values:
                yield Case(
                    f"{route} {field}={str(value)[:60]}", post(route, json.dumps(SOUND[route] | {field: value}).encode())
                )
    for (name, text), route in itertools.product(ODD.items(), (COMPLETIONS, CHAT, EMBEDDINGS, TOKENIZE)):
        body = json.dumps(SOUND[route]).replace("Hello", text.replace('"', '\\"')).encode()
        yield Case(f"{route} {name}", post(route, body), sound=True)
    for (name, body), route in itertools.product(NO_JSON.items(), (COMPLETIONS, CHAT, TOKENIZE)):
        yield Case(f"{route} body: {name}", post(route, body))
    yield from of_http()


def of_http() -> Iterator[Case]:
    """Yield requests whose heads, not bodies, are hostile."""
    sound = json.dumps(SOUND[COMPLETIONS]).encode()
    for method, path in itertools.product(
        ("PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "GET"), (COMPLETIONS, CHAT, TOKENIZE)
    ):
        yield Case(f"{method} {path}", head(method, path))
    for path in (
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/v1/models/../../x",
        "/v1/models/%00",
        "/.git",
    ):
        yield Case(f"GET {path}", head("GET", path))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml", ""):
        yield Case(f"content type {kind!r}", post(COMPLETIONS, sound, kind=kind))
    yield Case("gzip", post(COMPLETIONS, b"\x1f\x8b\x08\0", "Content-Encoding: gzip"))
    yield Case("1 MB of one header", head("GET", "/health", f"X-A: {'a' * (1 << 20)}"))
    yield Case("10,000 headers", head("GET", "/health", *(f"X-{n}: a" for n in range(10_000))))
    yield Case("1 MB path", head("GET", "/" + "a" * (1 << 20)))
    for name, lines in {
        "no length": ["Content-Length: a"],
        "negative length": ["Content-Length: -1"],
        "two lengths": ["Content-Length: 1", f"Content-Length: {len(sound)}"],
        "length and chunks": [f"Content-Length: {len(sound)}", "Transfer-Encoding: chunked"],
        "no chunks": ["Transfer-Encoding: chunked"],
        "unknown encoding": ["Transfer-Encoding: no-such"],
    }.items():
        start = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        yield Case(name, (start + "\r\n".join(lines) + "\r\n\r\n").encode() + sound, hangs_up=True)
    for name, data in {
        "HTTP/0.9": b"GET /\r\n\r\n",
        "HTTP/3.0": b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
        "no host": b"GET /health HTTP/1.1\r\n\r\n",
        "a header without a colon": b"GET /health HTTP/1.1\r\nHost: a\r\nabc\r\n\r\n",
        "a header that goes on": b"GET /no HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        "NUL in a header": b"GET /health HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
        "SSH": b"SSH-2.0-OpenSSH_9.0\r\n\r\n",
        "zeros": b"\0" * 100_000,
        "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        "another server": b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
        "a WebSocket": b"GET /v1/x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    }.items():
        yield Case(name, data, hangs_up=True)


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode()


def post(path: str, body: bytes, *lines: str, kind: str = "application/json") -> bytes:
    return head("POST", path, f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines) + body
