"""Read blocks of tokens from pages: where they are, and their keys and values as floats."""

from collections.abc import Callable

from numba import njit

from lm.kernels.cpu.transposes import STEP, products, transposed
from lm.kernels.native.scores import KEYS
from lm.kernels.native.vectors import LANES, SIZE, converted, float32s, int32s, int64s, prefetch, scalar

LINE = 64  # bytes that are fetched together


@njit(error_model="numpy")
def slots_into(out: int, table: int, page: int, base: int, earliest: int, last: int) -> None:
    """Write the slots of a block's positions. Those outside earliest … last may have no page: they get a neighbour's."""
    slots, pages = int64s(out), int32s(table)
    first, end = max(base, earliest), min(base + KEYS, last + 1)
    entry, token = first // page, first % page
    for j in range(first - base, end - base):
        slots[j] = pages[entry] * page + token
        token += 1
        if token == page:
            entry, token = entry + 1, 0
    for j in range(first - base):
        slots[j] = slots[first - base]
    for j in range(end - base, KEYS):
        slots[j] = slots[end - 1 - base]


@njit(error_model="numpy")
def fetch(rows: int, first: int, end: int, offset: int, size: int) -> None:
    """Ask for the lines of some tokens' keys or values: `size` bytes at an offset in their rows."""
    for j in range(first, end):
        for line in range(0, size, LINE):
            prefetch(int64s(rows)[j] + offset + line)


@njit(error_model="numpy")
def rows_into(out: int, pages: int, slots: int, step: int) -> None:
    """Write the addresses of a block's tokens. step: bytes of one."""
    for j in range(KEYS):
        int64s(out)[j] = pages + int64s(slots)[j] * step


def _layout(stored: str) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    width, some, flip, multiply = SIZE[stored], STEP[stored], transposed(stored), products(stored)
    convert, one = converted(stored), scalar(stored)

    @njit(error_model="numpy")
    def keys(rows: int, offset: int, K: int, out: int, later: int) -> None:
        """Write the transposed keys of a block, float32 [K, KEYS]. later: rows to fetch, or 0."""
        whole = K // some * some
        for first in range(0, KEYS, LANES):
            for k in range(0, whole, some):
                if later and k * width % LINE == 0:
                    for j in range(first, first + LANES):
                        prefetch(int64s(later)[j] + offset + k * width)
                flip(rows + 8 * first, offset + k * width, out + (k * KEYS + first) * 4, KEYS * 4)
            for k in range(whole, K):
                for j in range(first, first + LANES):
                    float32s(out)[k * KEYS + j] = one(int64s(rows)[j] + offset + k * width)

    @njit(error_model="numpy")
    def few_scores(count: int, rows: int, begin: int, end: int, offset: int, K: int, q: int, out: int, later: int) -> None:
        """Write the scores of a few queries, q [count, K], and the keys of positions begin … end of a block: out [count, KEYS].

        Keys are not stored as floats. count: at most MAX. K: a multiple of 32. later: as in `keys`.
        """
        for first in range(0, KEYS, LANES):
            if later:
                fetch(later, first, first + LANES, offset, K * width)
            if begin < first + LANES and first < end:
                multiply(count, rows + 8 * first, offset, K, q, K * 4, out + first * 4, KEYS * 4)

    @njit(error_model="numpy")
    def values(rows: int, offset: int, V: int, out: int, step: int) -> None:
        """Write the values of a block, float32 [KEYS, step]."""
        whole = V // LANES * LANES
        for j in range(KEYS):
            row, to = int64s(rows)[j] + offset, out + j * step * 4
            for v in range(0, whole, LANES):
                convert(row + v * width, to + v * 4)
            for v in range(whole, V):
                float32s(to)[v] = one(row + v * width)

    return keys, few_scores, values


def by_width(*functions: Callable[..., None]) -> Callable[..., None]:
    """Return the compiled function (width, *arguments) that calls one of three for stored numbers of 4, 2 and 1 bytes."""
    of_floats, of_halves, of_bytes = functions

    @njit(error_model="numpy")
    def call(width, *arguments):  # type: ignore[no-untyped-def]
        if width == 4:
            of_floats(*arguments)
        elif width == 2:
            of_halves(*arguments)
        else:
            of_bytes(*arguments)

    return call


keys_into, few_scores_into, values_into = map(by_width, *map(_layout, ("float32", "bfloat16", "int8")))
