"""The process is cut off from the network: for Python, for native code, and for child processes."""

import sys

import pytest

from tests.lm.personal.stores import child

ATTEMPTS = """
import ctypes, socket, subprocess, sys
from lm.personal import offline
offline.cut_off(keeps_local=True)
libc = ctypes.CDLL(None, use_errno=True)
print("local", libc.socket(socket.AF_UNIX, 1, 0) >= 0, socket.socket(socket.AF_UNIX).close())
offline.cut_off()
for name, attempt in {
    "connect": lambda: socket.create_connection(("127.0.0.1", 9)),
    "datagram": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "look-up": lambda: socket.getaddrinfo("example.org", 80),
}.items():
    try:
        attempt()
        print(name, "worked")
    except PermissionError:
        print(name, "refused")
print("native", [libc.socket(family, 1, 0) for family in (1, 2, 10, 16, 40)], ctypes.get_errno())
print("io_uring", libc.syscall(425, 8, ctypes.create_string_buffer(120)), ctypes.get_errno())
code = "import socket; socket.socket(socket.AF_INET)"
print("child", subprocess.run([sys.executable, "-c", code], capture_output=True).returncode)
a, b = socket.socketpair()
a.send(b"x")
print("pair", b.recv(1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp")
def test_no_way_leads_out():
    done = child(ATTEMPTS)
    assert done.stdout.splitlines() == [
        "local True None",
        "connect refused",
        "datagram refused",
        "look-up refused",
        "native [-1, -1, -1, -1, -1] 1",
        "io_uring -1 1",
        "child 1",
        "pair b'x'",
    ], done.stderr
