"""Values that process 0 of a job sends to all others through JAX's coordination service, in order."""

import contextlib
import pickle
import zlib
from collections import deque
from typing import Any

import jax
from jax._src import distributed  # the coordination service's client has no public name
from jax._src.lib import _jax

POLL = 5  # seconds of one call to the service; between two calls Python handles signals


class Channel:
    """One thread of process 0 sends, and one of every other process receives. name: of its keys in the service."""

    def __init__(self, name: str):
        self._name, self._count = name, 0
        self._unread = deque[str]()  # on process 0: keys of values that some process may not have read yet

    def send(self, value: Any) -> None:
        """Send a value to all others, pickled. Does not wait for them."""
        self.send_bytes(zlib.compress(pickle.dumps(value), 1))  # most numbers of large ones are equal

    def receive(self) -> Any:
        """Wait for the next value, for as long as it takes."""
        return pickle.loads(zlib.decompress(self.receive_bytes()))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes that are a value already."""
        service, state = _service(), distributed.global_state
        key = self._next()
        service.key_value_set_bytes(key, data)
        # Delete from the service the values that all processes have read.
        self._unread.append(key)
        others = str(state.num_processes - 1)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody has read it
            while self._unread and service.key_value_try_get(f"{self._unread[0]}/read") == others:
                service.key_value_delete(self._unread.popleft())

    def receive_bytes(self) -> bytes:
        """Wait for the next value of `send_bytes`."""
        service, key = _service(), self._next()
        while (data := get(service, key, POLL, bytes_=True)) is None:
            pass
        service.key_value_increment(f"{key}/read", 1)
        return data

    def _next(self) -> str:
        self._count += 1
        return f"{self._name}/{self._count}"


def get(service: _jax.DistributedRuntimeClient, key: str, seconds: float, bytes_: bool = False) -> Any:
    """Return the value of a key of the service, text or bytes, or None if it is not set within `seconds`."""
    read = service.blocking_key_value_get_bytes if bytes_ else service.blocking_key_value_get
    try:
        return read(key, max(1, int(seconds * 1000)))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return None


def _service() -> _jax.DistributedRuntimeClient:
    service = distributed.global_state.client
    assert service is not None, "a channel is for a job of several processes"
    return service
