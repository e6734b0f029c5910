"""Requests that no well-meaning client sends, to a server of our own, beside honest clients and connections that never ask.

python -m benchmarks.serving.hostile --checkpoint=DIR [--half_open=1100] [--flags=--config.quantize=8]

Each hostile request must get one answer in JSON within SECONDS: {"error": {"message", …}} with a status from 400 to 499 or
501, or 200 where a value is odd but sound. What is no HTTP may also be hung up on. Afterwards the server is healthy, its log
has no traceback, and it holds no more memory than GROWN. Eight honest clients are timed alone, then while half-open connections
and endless headers are held against the server. The last line is one JSON object.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks.serving.hostile_attacks import attacks
from benchmarks.serving.hostile_cases import COMPLETIONS, Case, cases, head
from benchmarks.serving.server import started

SECONDS, GROWN = 10.0, 300e6  # of an answer; bytes that the server may hold more afterwards
HONEST, ASKED = 8, 4  # clients, and requests of each
BEGUN = (  # what half-open connections send before they fall silent
    b"",
    b"GET /health HTTP/1.1\r\nX-A: ",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of the model that is served")
    parser.add_argument("--half_open", type=int, default=1100, help="connections that never send a whole request")
    parser.add_argument("--flags", nargs="*", default=[], help="more flags of serve.py")
    options = parser.parse_args()
    flags = [f"--config.checkpoint={options.checkpoint.absolute()}", *options.flags]
    with started(flags) as (url, pid):
        address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        honest(address)  # the first answers compile
        alone = honest(address)
        before = psutil.Process(pid).memory_info().rss
        all_cases = [*cases(), *attacks()]
        failed = [f"{case.name}: {wrong}" for case in all_cases if (wrong := fault(address, case))]
        grown = psutil.Process(pid).memory_info().rss - before
        with besieged(address, options.half_open):
            beside = honest(address)
        healthy = fault(address, Case("health", head("GET", "/health"), sound=True))
    for line in failed:
        print(line)
    print(f"{len(all_cases) - len(failed)} of {len(all_cases)} hostile requests hold; {grown / 1e6:+.0f} MB")
    print(f"seconds of an honest answer, median and slowest: {alone} alone, {beside} beside {options.half_open} connections")
    report = {
        "cases": len(all_cases),
        "failed": failed,
        "grown": grown,
        "alone": alone,
        "beside": beside,
        "healthy": not healthy,
    }
    print(json.dumps(report))
    sys.exit(1 if failed or healthy or grown > GROWN else 0)


def fault(address: tuple[str, int], case: Case) -> str | None:
    """Return what is wrong with the answer to a request; None: nothing."""
    begin = time.monotonic()
    try:
        with socket.create_connection(address, timeout=3 * SECONDS) as sock:
            with contextlib.suppress(ConnectionError):  # an answer may come before all is sent
                sock.sendall(case.data)
            response = http.client.HTTPResponse(sock, method=case.data.split(b" ", 1)[0].decode("latin-1"))
            response.begin()
            body = response.read()
    except (http.client.HTTPException, ConnectionError) as error:
        return None if case.hangs_up else f"hung up: {error!r}"
    except TimeoutError:
        return "no answer"
    seconds = time.monotonic() - begin
    if seconds > SECONDS:
        return f"{seconds:.1f} s"
    if response.status == 200 and case.sound:
        return None
    if not 400 <= response.status < 500 and response.status != 501:  # 501: an unknown encoding (RFC 9112, 6.1)
        return f"status {response.status}: {body[:200]!r}"
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"no error in JSON: {body[:200]!r}"
    return None if isinstance(message, str) and 0 < len(message) < 500 and "\n" not in message else f"message: {message!r}"


def honest(address: tuple[str, int]) -> tuple[float, float]:
    """Return the median and the longest seconds of the answers to honest clients."""

    def ask(client: int) -> list[float]:
        times = []
        for n in range(ASKED):
            begin = time.monotonic()
            connection = http.client.HTTPConnection(*address, timeout=120)
            body = {"prompt": f"Hello {client} {n}", "max_tokens": 16, "ignore_eos": True}
            connection.request("POST", COMPLETIONS, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
            times.append(time.monotonic() - begin)
        return times

    with concurrent.futures.ThreadPoolExecutor(HONEST) as clients:
        seconds = [x for times in clients.map(ask, range(HONEST)) for x in times]
    return round(statistics.median(seconds), 3), round(max(seconds), 3)


@contextlib.contextmanager
def besieged(address: tuple[str, int], count: int) -> Iterator[None]:
    """Hold half-open connections, and send headers without an end, until the block ends. What is hung up on comes again."""
    over, holds = threading.Event(), threading.Event()

    def endless() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=5) as sock:
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
                while not over.wait(0.01):
                    sock.sendall(b"X-A: a\r\n")

    def silent(sockets: list[socket.socket | None]) -> None:
        while not over.wait(0.2):
            for n, sock in enumerate(sockets):
                with contextlib.suppress(OSError):
                    if sock is None or is_closed(sock):
                        sockets[n] = new = socket.create_connection(address, timeout=2)
                        new.sendall(BEGUN[n % len(BEGUN)])
            holds.set()
        for sock in filter(None, sockets):
            sock.close()

    held: list[socket.socket | None] = [None] * count
    threads = [threading.Thread(target=endless, daemon=True) for _ in range(4)]
    threads.append(threading.Thread(target=silent, args=(held,), daemon=True))
    for thread in threads:
        thread.start()
    holds.wait()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


def is_closed(sock: socket.socket) -> bool:
    """Return whether the other side has hung up."""
    try:
        sock.setblocking(False)
        return sock.recv(1000) == b""
    except BlockingIOError:
        return False


if __name__ == "__main__":
    main()
