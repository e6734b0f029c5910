"""The memory of an engine: how many pages fit into it, and what it does not need."""

import contextlib
import ctypes

import jax
import psutil

from lm.model.pages import page_bytes

SHARE = 0.25  # on a CPU, of the free memory; the machine is not the engine's alone
ACCELERATOR = 0.9
LEAST = 64


def affordable(config, page: int, dtype: str, rows: int) -> int:
    """Return a number of pages for a share of the free memory, at most those that `rows` sequences of full length need."""
    share, free = SHARE, psutil.virtual_memory().available
    if jax.default_backend() != "cpu":
        stats = jax.local_devices()[0].memory_stats() or {}
        share, free = ACCELERATOR, max(0, stats.get("bytes_limit", free) - stats.get("bytes_in_use", 0))
    most = rows * -(-config.max_positions // page)
    return int(max(LEAST, min(most, share * free // page_bytes(config, page, dtype))))


def give_back() -> None:
    """Return freed memory to the system. glibc would keep what compiling needed."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
