"""The memory of an engine: how many pages it gets, what fits, and what it does not need."""

import contextlib
import ctypes

import jax
import psutil

from lm.config import ModelConfig
from lm.model.pages import page_bytes

SHARE = 0.25  # on a CPU, of the free memory; the machine is not the engine's alone
ACCELERATOR = 0.9
MIN = 64
CACHE = 1 << 30  # bytes of pages on a CPU, unless requests need more:
TYPICAL = 512  # tokens of a request, prompt and answer


def default_pages(config: ModelConfig, page: int, dtype: str, rows: int) -> int:
    """Return the number of pages of an engine for which none is named.

    On a CPU they have CACHE bytes. They have more if `rows` requests of TYPICAL tokens, or one of full length, need more. On
    every device they have at most what is `affordable`: requests that find no page then wait.
    """
    most = affordable(config, page, dtype, rows)
    if jax.default_backend() != "cpu":  # nothing else wants an accelerator's memory
        return most
    return min(
        most, max(CACHE // page_bytes(config, page, dtype), rows * -(-TYPICAL // page), -(-config.max_positions // page))
    )


def affordable(config: ModelConfig, page: int, dtype: str, rows: int) -> int:
    """Return a number of pages for a share of the free memory, at most those that `rows` sequences of full length need."""
    share, free = SHARE, psutil.virtual_memory().available
    if jax.default_backend() != "cpu":
        stats = jax.local_devices()[0].memory_stats() or {}
        share, free = ACCELERATOR, max(0, stats.get("bytes_limit", free) - stats.get("bytes_in_use", 0))
    most = rows * -(-config.max_positions // page)
    return int(max(MIN, min(most, share * free // page_bytes(config, page, dtype))))


def give_back() -> None:
    """Return freed memory to the system. glibc would keep what compiling needed."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
