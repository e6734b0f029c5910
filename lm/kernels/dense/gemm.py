"""Compiled products of large matrices; lm/kernels/dense/large.py says which, and has the plain twin.

First all threads bring A and B into tiles (packing.py), rounding floats on the way. Then a unit of work is a block of the
result. Of long sums it takes CHUNK tiles at a time: then its part of A stays in the second cache, two groups of B in the first.
"""

from numba import njit

from lm.kernels.dense.packing import SIDE, TILE
from lm.kernels.dense.tiling import PAIR, ROW, TILES, configure, multiply, pack_group, release, store, transpose
from lm.kernels.native import calls
from lm.kernels.native.calls import (
    ARGUMENTS,
    GIVEN,
    RESULTS,
    UNITS,
    address_of,
    attribute,
    data,
    new_job,
    next_unit,
    run,
    size,
    threads_for,
    width_of,
)
from lm.kernels.native.vectors import Pointer, int32s, int64s

CHUNK = 32 if TILES else 16  # tiles of inputs
ROWS, COLUMNS = 256, 512  # of a block; fewer where there would be too few blocks to share
UNIT = 4  # groups that are packed as one unit of work
M, N, K, STEPS, A, B, C, A_TILES, B_TILES, A_BITS, B_BITS, C_WIDTH, BLOCK_M, BLOCK_N = (GIVEN + i for i in range(14))
A_UNITS, SYMMETRIC, PACKED = GIVEN + 14, GIVEN + 15, GIVEN + 16


@njit(error_model="numpy")
def pack_task(job: int) -> None:
    words = int64s(job)
    spare = calls.malloc(2048)
    unit = next_unit(job)
    while unit >= 0:
        b = unit >= words[A_UNITS]
        first = (unit - (words[A_UNITS] if b else 0)) * UNIT * SIDE
        outer = words[N] if b else words[M]
        source, tiles, bits = (words[B], words[B_TILES], words[B_BITS]) if b else (words[A], words[A_TILES], words[A_BITS])
        width, adjacent = bits & 7, bits & 8 == 8
        step = width * (words[K] if adjacent else outer)
        padded = (outer + PAIR - 1) // PAIR * PAIR
        for o in range(first, min(first + UNIT * SIDE, padded), SIDE):
            here = source + o * (step if adjacent else width)
            there = tiles + o // SIDE * words[STEPS] * TILE
            pack_group(here, outer - o, words[K], words[STEPS], adjacent, step, width, words[PACKED], b, there, spare)
        calls.finished(job)
        unit = next_unit(job)
    calls.free(spare)
    calls.leave(job)


@njit(error_model="numpy")
def block(words: Pointer, m: int, n: int, scratch: int) -> None:
    """Compute a block of the result from row m and column n on."""
    rows, columns = min(words[BLOCK_M], words[M] - m), min(words[BLOCK_N], words[N] - n)
    group, steps, width = words[STEPS] * TILE, words[STEPS], words[C_WIDTH]
    c, c_step = words[C] + (m * words[N] + n) * width, words[N] * width
    a, b = words[A_TILES] + m // SIDE * group, words[B_TILES] + n // SIDE * group
    part_step = words[BLOCK_N] * 4
    packed, last, symmetric = words[PACKED], steps <= CHUNK, words[SYMMETRIC]
    direct = last and width == 4 and not symmetric
    for k in range(0, steps, CHUNK):
        some = min(CHUNK, steps - k)
        for j in range(0, columns, PAIR):
            b_here = b + j // SIDE * group + k * TILE
            for i in range(0, rows, PAIR):
                if symmetric and m + i > n + j:
                    continue
                a_here = a + i // SIDE * group + k * TILE
                if direct and i + PAIR <= rows and j + PAIR <= columns:
                    multiply(packed, False, a_here, b_here, some, c + i * c_step + j * 4, c_step, group, group)
                else:
                    part = scratch + i * part_step + j * 4
                    multiply(packed, k > 0, a_here, b_here, some, part, part_step, group, group)
                    if k + some == steps:
                        some_rows, some_columns = min(PAIR, rows - i), min(PAIR, columns - j)
                        if symmetric and m + i < n + j:
                            mirrored = words[C] + ((n + j) * words[N] + m + i) * width
                            transpose(part, part_step, scratch + ROWS * COLUMNS * 4)
                            store(scratch + ROWS * COLUMNS * 4, 4 * PAIR, some_columns, some_rows, mirrored, c_step, width)
                        store(part, part_step, some_rows, some_columns, c + i * c_step + j * width, c_step, width)


@njit(error_model="numpy")
def block_task(job: int) -> None:
    words = int64s(job)
    scratch = calls.malloc(ROWS * COLUMNS * 4 + 5 * TILE)
    configure(words[PACKED], scratch)
    across = (words[N] + words[BLOCK_N] - 1) // words[BLOCK_N]
    unit = next_unit(job)
    while unit >= 0:
        block(words, unit // across * words[BLOCK_M], unit % across * words[BLOCK_N], scratch)
        calls.finished(job)
        unit = next_unit(job)
    release(words[PACKED])
    calls.free(scratch)
    calls.leave(job)


@njit(error_model="numpy")
def multiply_matrices(frame: Pointer) -> None:
    """Arguments: A [M, K] or [K, M], B [N, K] or [K, N]; attribute: 1 if the inputs of A lie side by side, plus 2
    if those of B, plus 4 if the result is symmetric.

    Results: C [M, N], and memory for the tiles of A and B in their dtype: M and N rounded up to 32, K to whole tiles.
    """
    form = int32s(attribute(frame, 0))[0]
    a_adjacent, b_adjacent = form & 1, form >> 1 & 1
    m, k = size(frame, ARGUMENTS, 0, 1 - a_adjacent), size(frame, ARGUMENTS, 0, a_adjacent)
    n = size(frame, ARGUMENTS, 1, 1 - b_adjacent)
    packed = width_of(frame, RESULTS, 1)
    steps = (k * packed + ROW - 1) // ROW
    a_groups, b_groups = (m + PAIR - 1) // PAIR * 2, (n + PAIR - 1) // PAIR * 2
    a_units, b_units = (a_groups + UNIT - 1) // UNIT, (b_groups + UNIT - 1) // UNIT
    tiles = data(frame, RESULTS, 1)
    job = new_job(a_units + b_units)
    words = int64s(job)
    words[M], words[N], words[K], words[STEPS] = m, n, k, steps
    words[A], words[B], words[C] = data(frame, ARGUMENTS, 0), data(frame, ARGUMENTS, 1), data(frame, RESULTS, 0)
    words[A_TILES], words[B_TILES] = tiles, tiles + a_groups * steps * TILE
    words[A_BITS] = width_of(frame, ARGUMENTS, 0) + 8 * a_adjacent
    words[B_BITS] = width_of(frame, ARGUMENTS, 1) + 8 * b_adjacent
    words[C_WIDTH], words[A_UNITS], words[PACKED] = width_of(frame, RESULTS, 0), a_units, packed
    words[SYMMETRIC] = form & 4
    blocks, wanted = new_job(0), (8 if form & 4 else 4) * threads_for(frame, job)
    rows, columns = ROWS, COLUMNS
    while rows * columns > 64 * 64 and ((m + rows - 1) // rows) * ((n + columns - 1) // columns) < wanted:
        if columns >= rows:
            columns //= 2
        else:
            rows //= 2
    words[BLOCK_M], words[BLOCK_N] = rows, columns
    for word in range(GIVEN, PACKED + 1):
        int64s(blocks)[word] = words[word]
    int64s(blocks)[UNITS] = ((m + rows - 1) // rows) * ((n + columns - 1) // columns)
    run(frame, job, address_of(pack_task))
    run(frame, blocks, address_of(block_task))


def register() -> None:
    digest = calls.sources()

    def lm_gemm(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            multiply_matrices(frame)
        return 0

    calls.handler(lm_gemm)
