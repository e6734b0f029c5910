"""How much an engine has room for: sequences, tokens and pages; how many pages fit, and memory that it does not need."""

import contextlib
import ctypes
from typing import NamedTuple

import jax
import psutil

from lm.config import ModelConfig
from lm.model.pages import empty_layers, page_bytes
from lm.model.states import state_bytes
from lm.parallel.mesh import platform, row_ways, ways

SHARE = 0.25  # on a CPU, of the free memory; the machine is not the engine's alone
ACCELERATOR = 0.9
MIN = 64
CACHE = 1 << 30  # bytes of pages on a CPU, unless requests need more:
TYPICAL = 512  # tokens of a request, prompt and answer
SNAPSHOTS = 2  # for each row: one of its prompt or of what it shares, and one of its answer
PAGES, BUDGETS = {"tpu": 128}, {"cpu": 64}  # by platform; a TPU copies each page on its own. Elsewhere:
PAGE, BUDGET = 16, 2048


class Capacity(NamedTuple):
    """rows: most sequences that run at a time. budget: most tokens of a step. pages: of the cache; 0: `default_pages`.

    page: tokens of a page. budget, page: 0: as `here` says. cache_dtype: of keys and values, "int8", "bfloat16", "float32"; "":
    as the engine computes. drafts: most tokens that are guessed ahead for a sequence, which changes no result. queue: most
    waiting requests. context: tokens for which each row has pages on a CPU, if `pages` is 0; 0: TYPICAL, and all pages CACHE
    bytes if that is more.
    positions: most tokens of a sequence; 0: the model's. A model with learned positions has no more than its own.
    snapshots: of states at the ends of prefixes (lm/infer/engine/snapshots.py); 0: SNAPSHOTS for each row.
    """

    rows: int = 32
    budget: int = 0
    pages: int = 0
    page: int = 0
    cache_dtype: str = ""
    drafts: int = 0
    queue: int = 1024
    context: int = 0
    positions: int = 0
    snapshots: int = 0

    def here(self) -> "Capacity":
        """Return the capacity with the budget and the page of the current mesh's devices where it has none."""
        where = platform()
        return self._replace(budget=self.budget or BUDGETS.get(where, BUDGET), page=self.page or PAGES.get(where, PAGE))

    def states(self, ways: int) -> tuple[int, int]:
        """Return how many states of sequences and of snapshots each of `ways` shards has."""
        return -(-self.rows // ways), -(-(self.snapshots or SNAPSHOTS * self.rows) // ways)


def positions_of(config: ModelConfig, capacity: Capacity) -> int:
    """Return the most tokens of a sequence."""
    most = capacity.positions or config.max_positions
    return min(most, config.max_positions) if config.positions == "learned" else most


def default_pages(config: ModelConfig, capacity: Capacity) -> int:
    """Return the number of pages of an engine for which none is named.

    On a CPU they hold `rows` requests of `context` tokens, or one of full length if that is more. On every device they have at
    most what is `affordable`: requests that find no page then wait.
    """
    most, page = affordable(config, capacity), capacity.here().page
    if jax.default_backend() != "cpu":  # nothing else wants an accelerator's memory
        return most
    usual = 0 if capacity.context else CACHE // max(1, page_bytes(config, page, capacity.cache_dtype))
    longest = -(-positions_of(config, capacity) // page)
    return min(most, max(usual, capacity.rows * -(-(capacity.context or TYPICAL) // page), longest))


def affordable(config: ModelConfig, capacity: Capacity) -> int:
    """Return a number of pages for a share of the free memory, at most those that `rows` sequences of full length need.

    On the current mesh each accelerator holds the pages of its shard, and of its heads.
    """
    share, free = SHARE, psutil.virtual_memory().available
    if jax.default_backend() != "cpu":
        stats = jax.local_devices()[0].memory_stats() or {}
        of_each = max(0, stats.get("bytes_limit", free) - stats.get("bytes_in_use", 0))
        share, free = ACCELERATOR, of_each * row_ways() * (1 if config.mla.kv_rank else ways("kv_heads"))
    return fitting_pages(config, capacity, share * free)


def fitting_pages(config: ModelConfig, capacity: Capacity, room: float) -> int:
    """Return the number of pages for `room` bytes of all shards, at most those that `rows` sequences of full length need."""
    page = capacity.here().page
    most = capacity.rows * -(-positions_of(config, capacity) // page)
    room -= sum(capacity.states(1)) * state_bytes(config)
    return int(max(MIN, min(most, room // max(1, page_bytes(config, page, capacity.cache_dtype)))))


def empty_pages(config: ModelConfig, capacity: Capacity, count: int) -> tuple[jax.Array, ...]:
    """Return the arrays of `count` pages on the current mesh, and of the states of all rows and snapshots."""
    states, make = row_ways() * sum(capacity.states(row_ways())), jax.jit(empty_layers, static_argnums=(0, 1, 2, 3, 4))
    pages = make(config, count, capacity.page, capacity.cache_dtype, states)
    # Bound to their devices, as a step returns them: otherwise the step of the first call is compiled once more.
    return tuple(jax.device_put(x, x.sharding) for x in jax.tree.leaves(pages))


def give_back() -> None:
    """Return freed memory to the system. glibc would keep what compiling needed."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
