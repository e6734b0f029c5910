"""Start an MCP server and pass its lines on, except that a longer one than MAX becomes a short answer which says so.

    python -I -S lm/agent/relay.py COMMAND ARGUMENTS…

A client would collect such a line in its memory, in a time that grows with the square of its length. The server has this
process's standard input and error stream; this process ends with the server's exit status. It imports nothing of lm.
"""

import json
import re
import subprocess
import sys
from typing import BinaryIO

MAX = 4 << 20  # bytes of a line
BEGINNING = 1500  # bytes of a longer one that are shown
ID = rb'"id"\s*:\s*(\d+|"[^"\\]*")'
VERSION = rb'"jsonrpc"\s*:\s*"2\.0"'
FIRST = re.compile(rb"\s*\{\s*(?:" + VERSION + rb"\s*,\s*)?" + ID)  # the id of an answer stands in front, or at the end
LAST = re.compile(rb",\s*" + ID + rb"(?:\s*,\s*" + VERSION + rb")?\s*\}\s*\Z")


def main() -> int:
    with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            while line := server.stdout.readline(MAX):
                sys.stdout.buffer.write(line if line.endswith(b"\n") else shortened(line, server.stdout))
                sys.stdout.buffer.flush()
        except BrokenPipeError:
            server.kill()
    return server.returncode


def shortened(begun: bytes, rest: BinaryIO) -> bytes:
    """Read a line to its end and return an answer in its place; nothing if it is no answer, since nobody waits for it."""
    size, end = len(begun), begun[-BEGINNING:]
    while not end.endswith(b"\n") and (more := rest.readline(MAX)):
        size, end = size + len(more), (end + more)[-BEGINNING:]
    if size <= MAX:  # the last line of a server that has ended
        return begun
    found = FIRST.match(begun) or LAST.search(end)
    if found is None:
        return b""
    text = f"(the answer has {size} bytes, of which only the beginning is here)\n{begun[:BEGINNING].decode('utf-8', 'replace')}"
    result = {"content": [{"type": "text", "text": text}]}
    return json.dumps({"jsonrpc": "2.0", "id": json.loads(found[1]), "result": result}).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main())
