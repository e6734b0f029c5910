"""Buckets of this machine: servers that speak the protocols of S3 (moto) and of Google Cloud Storage."""

import contextlib
import logging
import os
import selectors
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import fsspec
import pytest


class Bucket(NamedTuple):
    """url: of an empty bucket. variables: with which a process finds its server. system: fsspec's, in this process."""

    url: str
    variables: dict[str, str]
    system: fsspec.AbstractFileSystem

    def names(self, folder: str = "") -> set[str]:
        """Names of the objects below a folder of the bucket, relative to it."""
        root = "/".join(filter(None, (self.url.partition("://")[2], folder)))
        return {path.removeprefix(f"{root}/") for path in self.system.find(root)}

    def put(self, name: str, content: bytes) -> None:
        self.system.pipe_file(f"{self.url}/{name}", content)

    def read(self, name: str) -> bytes:
        return self.system.cat_file(f"{self.url}/{name}")


@contextlib.contextmanager
def s3() -> Iterator[Bucket]:
    pytest.importorskip("s3fs")
    ThreadedMotoServer = pytest.importorskip("moto.server").ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    # All servers of a process hold the same buckets.
    urllib.request.urlopen(urllib.request.Request(f"{variables['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST"))
    how = {"endpoint_url": variables["AWS_ENDPOINT_URL"], "key": "test", "secret": "test", "use_listings_cache": False}
    system = fsspec.filesystem("s3", **how)
    system.mkdir("bucket")
    try:
        yield Bucket("s3://bucket", variables, system)
    finally:
        server.stop()


@contextlib.contextmanager
def gs() -> Iterator[Bucket]:
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read when gcsfs is imported: the emulator has no gRPC
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([*command, "--no-store-on-disk", "--default-bucket=bucket"], **quiet)
    while server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
    variables = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    system = fsspec.filesystem("gs", endpoint_url=variables["STORAGE_EMULATOR_HOST"], token="anon", use_listings_cache=False)
    try:
        yield Bucket("gs://bucket", variables, system)
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def mute_at_first(url: str) -> Iterator[str]:
    """The URL of a server that never answers its first connection, and passes all others on to the server at `url`."""
    host, port = url.removeprefix("http://").split(":")
    muted = []

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener is closed at the end
            muted.append(listener.accept()[0])
            while True:
                threading.Thread(target=_join, args=(listener.accept()[0], (host, int(port))), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert muted


def _join(one: socket.socket, address: tuple[str, int]) -> None:
    """Pass on what each of two connections says to the other, until one of them ends."""
    with one, socket.create_connection(address) as other, selectors.DefaultSelector() as ready:
        ready.register(one, selectors.EVENT_READ, other)
        ready.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in ready.select():
                if not (said := key.fileobj.recv(1 << 16)):
                    return
                key.data.sendall(said)
