"""Requests that no well-meaning client sends, over a plain socket: each gets one answer 4xx, and the log gets no traceback."""

import contextlib
import http.client
import json
import logging
import re
import socket

import httpx
import pytest

from lm.serve import page
from lm.serve.api import limits
from lm.serve.api.app import Settings
from lm.serve.api.limits import HEAD
from tests.lm.serve.conftest import serving

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def url(service):
    with serving(service, routers=[page.router(service)]) as url:
        yield url


@pytest.fixture
def tracebacks():
    """Errors that the server logs with a traceback."""
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record) if record.exc_info else None
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "lm.serve")]
    for logger in loggers:
        logger.addHandler(handler)
    yield found
    for logger in loggers:
        logger.removeHandler(handler)


def get(path: str = "/health", headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


def post(path: str, body: bytes | dict, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers)
    length = [] if headers else [f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, *length, "", ""]).encode() + content


def answer(url: str, data: bytes) -> tuple[int, dict]:
    """Return (status, error) of the answer to these bytes."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60) as sock:
        sock.sendall(data)
        response = http.client.HTTPResponse(sock)
        response.begin()
        return response.status, json.loads(response.read())["error"]


HEADS = {
    "1 MB header": (get(headers=f"X-A: {'a' * (1 << 20)}\r\n"), 431, "headers"),
    "300 headers": (get(headers="".join(f"X-{n}: a\r\n" for n in range(300))), 431, "more than 200 headers"),
    "50,000 headers": (get(headers="".join(f"X-{n}: a\r\n" for n in range(50_000))), 431, "headers"),
    "a head a little too large": (get(headers=f"X-A: {'a' * HEAD}\r\n"), 431, "headers"),
    "1 MB path": (get("/" + "a" * (1 << 20)), 414, "first line"),
    "HTTP/0.9": (b"GET /\r\n", 400, "HTTP/1.1"),
    "HTTP/0.9 and a blank line": (b"GET /\r\n\r\n", 400, "HTTP/1.1"),
    "HTTP/3.0": (b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n", 400, "HTTP/1.1"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", 400, "HTTP/1.1"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
    "a NUL": (b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "HTTP/1.1"),
    "no length": (post(COMPLETIONS, b"a", "Content-Length: a"), 400, "Content-Length"),
    "two lengths": (post(COMPLETIONS, b"a", "Content-Length: 1", "Content-Length: 2"), 400, "Content-Length"),
    "200,000 chunks of a byte": (post(COMPLETIONS, b"1\r\na\r\n" * 200_000, "Transfer-Encoding: chunked"), 400, "20000 chunks"),
    "a chunk that overflows": (post(COMPLETIONS, b"F" * 40 + b"\r\n", "Transfer-Encoding: chunked"), 400, "HTTP/1.1"),
    "a length that overflows": (post(COMPLETIONS, b"a", f"Content-Length: {'9' * 40}"), 400, "Content-Length"),
    "a length with a sign": (post(COMPLETIONS, b"a", "Content-Length: +1"), 400, "Content-Length"),
    "a length in hexadecimal": (post(COMPLETIONS, b"a", "Content-Length: 0x1"), 400, "Content-Length"),
    "an encoding before a space": (post(COMPLETIONS, b"a", "Transfer-Encoding : chunked"), 400, "header"),
    "a space in a header's name": (get(headers="X A: a\r\n"), 400, "header"),
    "two hosts": (get(headers="Host: b\r\n"), 400, "Host"),
    "500 requests at once": (get("/no") * 500, 404, "/no"),
    "no chunk": (post(COMPLETIONS, b"zz\r\n", "Transfer-Encoding: chunked"), 400, "chunk"),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_none(url, tracebacks, name):
    data, status, words = HEADS[name]
    found, error = answer(url, data)
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    assert found == status and words in error["message"] and error["type"] == kind
    assert httpx.get(f"{url}/health").status_code == 200 and not tracebacks


@pytest.mark.parametrize(
    "path",
    ["/chat.css/../../run.py", "/static/../serve.py", "/../serve.py", "/chat.css/..%2f..%2frun.py", "/%2e%2e/etc/passwd",
     "//etc/passwd", "/v1/models/../../run.py"],
)  # fmt: skip
def test_paths_lead_nowhere(url, path):
    status, error = answer(url, get(path))
    assert status == 404 and error["type"] == "not_found_error" and "import" not in str(error)


def test_a_slow_head_ends(service):
    with serving(service, Settings(read_seconds=0.2)) as url:
        assert answer(url, b"GET / HTTP/1.1\r\nHost: a")[0] == 408
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60) as silent:
            assert silent.recv(1) == b""


def test_connections_that_ask_nothing_keep_nobody_out(service, monkeypatch):
    monkeypatch.setattr(limits, "SHARE", 8)
    with serving(service) as url, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        begun = ("", "GET / HTTP/1.1\r\nX-A: ", "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        held = []
        for n in range(24):
            held.append(stack.enter_context(socket.create_connection(address, timeout=60)))
            held[-1].sendall(begun[n % 3].encode())
            assert answered(url) == 200
        for sock in held[:14]:  # all but the last eight, and those whose place the clients of /health took
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        held[-2].sendall(b"a\r\nHost: a\r\n\r\n")
        assert held[-2].recv(12) == b"HTTP/1.1 404"


def answered(url: str) -> int:
    return httpx.get(f"{url}/health").status_code


def test_more_requests_at_once_than_are_answered_get_an_error_in_json(service, monkeypatch):
    monkeypatch.setattr(limits, "REQUESTS", 0)
    with serving(service) as url:
        response = httpx.get(f"{url}/health")
        assert response.status_code == 503 and response.headers["retry-after"]
        assert response.json()["error"]["type"] == "overloaded_error"


EMOJI = "😀" * ((1 << 20) - 100)  # 4 MB
LARGE = {
    "a text": (COMPLETIONS, {"prompt": EMOJI}, "prompt", "4193904 bytes, at least"),
    "a list of texts": (COMPLETIONS, {"prompt": ["a", EMOJI]}, "prompt", "4193904 bytes, at least"),
    "ids": (COMPLETIONS, {"prompt": [5] * 1_300_000}, "prompt", "1300000 tokens"),
    "messages": (CHATS, {"messages": [{"role": "user", "content": EMOJI[:500_000]}] * 2}, "messages", "bytes, at least"),
    "a text to encode": ("/tokenize", {"prompt": EMOJI}, "prompt", "at most 1048576 bytes"),
    "many messages": (CHATS, {"messages": [{"role": "user", "content": "a"}] * 100_000}, "messages", "100000 messages"),
    "many messages to encode": (
        "/tokenize",
        {"messages": [{"role": "user", "content": "a"}] * 100_000},
        "messages",
        "100000 messages",
    ),
    "tools": (
        CHATS,
        {
            "messages": [{"role": "user", "content": "a"}],
            "tools": [{"type": "function", "function": {"name": "a", "description": "a" * (1 << 20)}}],
        },
        "tools",
        "bytes, at least",
    ),
    "messages to encode": (
        "/tokenize",
        {"messages": [{"role": "user", "content": EMOJI}]},
        "messages",
        "at most 1048576 bytes",
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_prompts_of_4_mb_are_refused_before_they_are_encoded(url, name):
    path, fields, param, words = LARGE[name]
    status, error = answer(url, post(path, json.dumps(fields, ensure_ascii=False).encode()))
    assert status == 400 and error["param"] == param and words in error["message"]


FORMS = [
    ("guided_regex", "(", "unclosed group"),
    ("guided_regex", "(?=a)b", "look-ahead .* not supported"),
    ("guided_regex", "(" * 5000 + ")" * 5000, "nest|deep"),
    ("guided_regex", "(.*)*" * 200, "too costly"),
    ("guided_regex", "(a{1000}){1000}", "too costly"),
    ("guided_regex", "x" * 100_000, "longer than 65536"),
    ("guided_regex", r"[^\s\S]", "no text fits"),
    ("guided_regex", "\ud800", "surrogates"),
    ("guided_grammar", "start: (", "Expected token"),
    ("guided_grammar", "start: start", "no text fits"),
    ("guided_grammar", "start: foo", 'unknown name: "foo"'),
    ("guided_grammar", "start: " + '("a"|' * 2000 + '"b"' + ")" * 2000, "too deeply nested"),
    ("guided_grammar", 'start: "a"{1000000}', "too costly"),
    ("guided_grammar", "root ::= root", "no text fits"),
    ("guided_grammar", "\ud800", "GBNF"),
    ("guided_grammar", "the cat", "it is no grammar in Lark or GBNF: Expected ::="),
    ("guided_choice", ["\ud800"], "."),
    ("structured_outputs", {"regex": "("}, "unclosed group"),
]


@pytest.mark.parametrize(("field", "form", "words"), FORMS)
def test_forms_that_are_none_or_cost_too_much(url, tracebacks, field, form, words):
    asks = {COMPLETIONS: {"prompt": "a"}, CHATS: {"messages": [{"role": "user", "content": "a"}]}}
    for path, fields in asks.items():
        status, error = answer(url, post(path, fields | {"max_tokens": 8, field: form}))
        assert status == 400 and error["param"].startswith(field) and error["message"].startswith(field)
        assert "\n" not in error["message"] and len(error["message"]) < 400
        assert re.search(words, error["message"])
    assert not tracebacks
