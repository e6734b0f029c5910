"""More hostile requests of benchmarks/serving/hostile.py, by what an attacker wants: time, memory, a file."""

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.serving.hostile_cases import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    EMBEDDINGS,
    RESPONSES,
    SAID,
    SOUND,
    TOKENIZE,
    Case,
    head,
    post,
)


def nested(depth: int) -> dict[str, Any]:
    """Return a JSON schema of objects in objects."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


TINY = 5e-324  # the smallest float64; as a float32 it is 0
SCHEMAS = {  # of answers; a grammar of each may cost much time or memory
    "objects in 400 objects": nested(400),
    "an enum of 100,000": {"enum": [f"value {n}" for n in range(100_000)]},
    "itself": {"$ref": "#"},
    "two that need each other": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "another host": {"$ref": "http://169.254.169.254/latest"},
    "a file": {"$ref": "file:///etc/passwd"},
    "a pattern that backtracks": {"type": "string", "pattern": "^(a+)+$" * 50},
    "a billion characters": {"type": "string", "minLength": 10**9},
    "a billion items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "1,000 required keys": {
        "type": "object",
        "properties": {f"k{n}": {"type": "string"} for n in range(1000)},
        "required": [f"k{n}" for n in range(1000)],
    },
    "2^20 ways": {"allOf": [{"anyOf": [{"type": "string"}, {"type": "integer"}]}] * 20},
}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {  # name: (route, fields beside a sound body); an error, or an answer
    "100,000 stop strings": (COMPLETIONS, {"stop": ["a"] * 100_000}),
    "100,000 biases": (COMPLETIONS, {"logit_bias": {str(n): 1 for n in range(100_000)}}),
    "100,000 choices": (COMPLETIONS, {"guided_choice": [f"choice {n}" for n in range(100_000)]}),
    "a regex of 500 × 500": (COMPLETIONS, {"guided_regex": "(x{0,500}){0,500}"}),
    "a regex of (a|a)*": (COMPLETIONS, {"guided_regex": "(a|a)*" * 500}),
    "the smallest temperature": (COMPLETIONS, {"temperature": TINY}),
    "the smallest top_p": (COMPLETIONS, {"top_p": TINY, "temperature": 1}),
    "the smallest min_p": (COMPLETIONS, {"min_p": TINY, "temperature": 1}),
    "the smallest penalty": (COMPLETIONS, {"repetition_penalty": TINY}),
    "biases of all kinds at once": (
        CHAT,
        {"logit_bias": {"5": -100}, "frequency_penalty": 2, "presence_penalty": -2, "repetition_penalty": 1e-30},
    ),
    "128 choices of unlimited length": (COMPLETIONS, {"n": 128, "max_tokens": 10**9}),
    "a template of its own": (
        CHAT,
        {"chat_template": "{% for i in range(10**9) %}{% for j in range(10**9) %}a{% endfor %}{% endfor %}"},
    ),
    "a template's variables": (CHAT, {"chat_template_kwargs": {"messages": [], "bos_token": "a" * 1_000_000}}),
    "a user of 1 MB": (CHAT, {"user": "a" * 1_000_000}),
    "metadata of 1 MB": (RESPONSES, {"metadata": {"a" * 500_000: "b" * 500_000}}),
    "100,000 parts": (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 100_000}]}),
    "arguments that are no JSON": (
        CHAT,
        {
            "messages": [
                *SAID,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "a", "arguments": "{]"}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": "b"},
            ]
        },
    ),
    "a tool whose schema is itself": (
        CHAT,
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"$ref": "#"}}}], "tool_choice": "required"},
    ),
    "an answer to no call": (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "1", "output": "a"}]}),
    "an image that is a file": (
        RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
    ),
    "100,000 items": (RESPONSES, {"input": [{"role": "user", "content": "a"}] * 100_000}),
    "a background": (RESPONSES, {"background": True, "store": "yes"}),
    "2,000 texts": (EMBEDDINGS, {"input": ["a b c"] * 2000}),
    "lists in lists in lists": (EMBEDDINGS, {"input": [[[1]]]}),
    "1 MB of spaces": (TOKENIZE, {"prompt": " " * 1_000_000}),
    "1 MB of one letter": (TOKENIZE, {"prompt": "a" * 1_000_000}),
    "1 MB of accents": (TOKENIZE, {"prompt": "\u0301" * 500_000}),
    "1 MB of digits": (TOKENIZE, {"prompt": "1" * 1_000_000}),
    "a million ids": (DETOKENIZE, {"tokens": [5] * 1_000_000}),
    "an adapter in /etc": ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/etc"}),
    "an adapter above": ("/v1/load_lora_adapter", {"lora_name": "../a", "lora_path": "../../../etc/passwd"}),
    "an adapter that is absent": ("/v1/unload_lora_adapter", {"lora_name": "a" * 100_000}),
    "a rating of 1 MB": ("/v1/feedback", {"id": "cmpl-1", "rating": "up", "comment": "a" * 1_000_000}),
    "a rating of nothing": ("/v1/feedback", {"id": {"$gt": ""}, "rating": "' OR 1=1 --"}),
    "a checkpoint above": ("/v1/monitor/accept", {"checkpoint": "../../etc", "adapter": "\u0000"}),
}
PATHS = (  # each is 404 or 405, or the page of a route that is meant
    "/v1//completions",
    "/v1/completions;a=b",
    "/%76%31/completions",
    "/%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd",
    "/..%5c..%5cetc%5cpasswd",
    "/v1/models/" + "a" * 5000,
    "/v1/batches",
    "/v1/files/..%2f..%2fetc%2fpasswd/content",
    "/v1/responses/resp_1",
    "/health?" + "&".join(f"a{n}=b" for n in range(3000)),
    "/metrics?name[]=%00",
    "/?%s%n{{7*7}}",
    "/docs",
    "/openapi.json",
)


def attacks() -> Iterator[Case]:
    """Yield these requests."""
    for (name, schema), route in ((item, route) for item in SCHEMAS.items() for route in (COMPLETIONS, CHAT)):
        form = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
        fields = {"guided_json": schema} if route == COMPLETIONS else form
        yield Case(f"{route} schema: {name}", post(route, json.dumps(SOUND[route] | fields).encode()), sound=True)
    for name, (route, fields) in BODIES.items():
        yield Case(f"{route} {name}", post(route, json.dumps(SOUND.get(route, {}) | fields).encode()), sound=True)
    yield Case("a key twice", post(COMPLETIONS, b'{"prompt": "a", "prompt": 5, "max_tokens": 1}'))
    yield Case("a surrogate as a key", post(COMPLETIONS, b'{"prompt": "a", "\\ud800": 1, "max_tokens": 1}'), sound=True)
    yield Case("a byte order mark", post(COMPLETIONS, b'\xef\xbb\xbf{"prompt": "a", "max_tokens": 1}'), sound=True)
    for path in PATHS:
        yield Case(f"GET {path[:60]}", head("GET", path), sound=True)
    yield from smuggled()


def smuggled() -> Iterator[Case]:
    """Yield requests whose end two programs may see in different places, and heads that cost memory."""
    sound = json.dumps(SOUND[COMPLETIONS]).encode()
    start = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n".encode()
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    for name, data in {
        "a length that overflows": start + b"Content-Length: 99999999999999999999999\r\n\r\n" + sound,
        "a length with a sign": start + f"Content-Length: +{len(sound)}\r\n\r\n".encode() + sound,
        "a length in hexadecimal": start + f"Content-Length: {len(sound):#x}\r\n\r\n".encode() + sound,
        "a list of lengths": start + f"Content-Length: {len(sound)}, 0\r\n\r\n".encode() + sound,
        "an encoding before a space": start + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "an encoding after a tab": start + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        "two encodings": start + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "a chunk that overflows": chunked + b"FFFFFFFFFFFFFFFFFF\r\n" + sound,
        "a negative chunk": chunked + b"-1\r\n" + sound,
        "a chunk with 1 MB of extensions": chunked + b"1;a=" + b"b" * (1 << 20) + b"\r\n{\r\n0\r\n\r\n",
        "1 MB of trailers": chunked + b"2\r\n{}\r\n0\r\n" + b"X-A: a\r\n" * (1 << 17) + b"\r\n",
        "36 MB in chunks of one byte": chunked + b"1\r\na\r\n" * 6_000_000 + b"0\r\n\r\n",
        "lines that end in LF": b"GET /no HTTP/1.1\nHost: a\n\n",
        "a CR alone": b"GET /no HTTP/1.1\rHost: a\r\n\r\n",
        "a space in a header's name": b"GET /no HTTP/1.1\r\nHost: a\r\nX A: a\r\n\r\n",
        "two hosts": b"GET /no HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "a host of 8,000 characters": b"GET /no HTTP/1.1\r\nHost: " + b"a" * 8000 + b"\r\n\r\n",
        "an unknown expectation": start + b"Expect: nonsense\r\nContent-Length: 2\r\n\r\n[]",
        "a key that is no text": b"GET /no HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
        "5,000 ranges": b"GET /no HTTP/1.1\r\nHost: a\r\nRange: bytes=" + b"0-," * 5000 + b"\r\n\r\n",
        "another method": b"GET /no HTTP/1.1\r\nHost: a\r\nX-HTTP-Method-Override: DELETE\r\n\r\n",
        "a method of 10,000 letters": b"A" * 10_000 + b" /no HTTP/1.1\r\nHost: a\r\n\r\n",
        "500 requests at once": b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n" * 500,
        "a request in a body": start + b"Content-Length: 0\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n",
        "a WebSocket with a body": b"GET /v1/completions HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: a\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/2 without TLS": b"GET /no HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
    }.items():
        yield Case(name, data, hangs_up=True)
