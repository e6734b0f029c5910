"""Compiled products of large matrices; lm/kernels/dense/large.py says which, and has the plain twin.

First all threads bring a panel of A and one of B into tiles (packing.py), rounding floats on the way. Then a unit of work is a
block of their product. It takes CHUNK tiles of inputs at a time: then its part of A stays in the second cache. Panels are so
small that tiles are still in the third cache when they are multiplied.
"""

from numba import njit

from lm.kernels.dense.packing import SIDE, TILE
from lm.kernels.dense.tiling import PAIR, ROW, configure, multiply, pack_group, padded, release, store, transpose
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

CHUNK = 32  # tiles of inputs
ROWS, COLUMNS = 128, 256  # of a block; fewer where there would be too few blocks to share
LEAST, MOST = 4, 16  # groups that are packed as one unit of work
# Words of a job. Sizes are those of a panel; the words from A on say where it begins.
M, N, K, STEPS, A, B, C, A_TILES, B_TILES, A_STEP, B_STEP, C_STEP, A_WIDTH, B_WIDTH, C_WIDTH = (GIVEN + i for i in range(15))
A_ADJACENT, B_ADJACENT, A_UNITS, BLOCK_M, BLOCK_N, SYMMETRIC, PACKED, ADDS, UNIT, END = (GIVEN + 15 + i for i in range(10))


@njit(error_model="numpy")
def pack_task(job: int) -> None:
    words = int64s(job)
    spare = calls.malloc(2048)
    unit = next_unit(job)
    while unit >= 0:
        b = unit >= words[A_UNITS]
        first = (unit - (words[A_UNITS] if b else 0)) * words[UNIT] * SIDE
        outer = words[N] if b else words[M]
        source, tiles, step = (words[B], words[B_TILES], words[B_STEP]) if b else (words[A], words[A_TILES], words[A_STEP])
        width, adjacent = (words[B_WIDTH], words[B_ADJACENT]) if b else (words[A_WIDTH], words[A_ADJACENT])
        last, steps, packed = min(first + words[UNIT] * SIDE, padded(outer)), words[STEPS], words[PACKED]
        some = steps if adjacent else 1  # tiles of a group, so that memory is read in long runs
        for k in range(0, steps, some):
            begin, left = source + k * ROW // packed * (width if adjacent else step), words[K] - k * ROW // packed
            for o in range(first, last, SIDE):
                here, there = begin + o * (step if adjacent else width), tiles + (o // SIDE * steps + k) * TILE
                pack_group(here, outer - o, left, some, adjacent == 1, step, width, packed, b, there, spare)
        calls.finished(job)
        unit = next_unit(job)
    calls.free(spare)
    calls.leave(job)


@njit(error_model="numpy")
def block(words: Pointer, m: int, n: int, scratch: int) -> None:
    """Compute a block of the panel's result from row m and column n on, or add to it."""
    rows, columns = min(words[BLOCK_M], words[M] - m), min(words[BLOCK_N], words[N] - n)
    group, steps, width = words[STEPS] * TILE, words[STEPS], words[C_WIDTH]
    c_step, part_step = words[C_STEP], words[BLOCK_N] * 4
    c = words[C] + m * c_step + n * width
    a, b = words[A_TILES] + m // SIDE * group, words[B_TILES] + n // SIDE * group
    packed, symmetric = words[PACKED], words[SYMMETRIC]
    for k in range(0, steps, CHUNK):
        some, adds = min(CHUNK, steps - k), k > 0 or words[ADDS] == 1
        for j in range(0, columns, PAIR):
            b_here = b + j // SIDE * group + k * TILE
            for i in range(0, rows, PAIR):
                if symmetric and m + i > n + j:
                    continue
                a_here, there = a + i // SIDE * group + k * TILE, c + i * c_step + j * width
                if width == 4 and not symmetric and i + PAIR <= rows and j + PAIR <= columns:
                    multiply(packed, adds, a_here, b_here, some, there, c_step, group, group)
                    continue
                part, some_rows, some_columns = scratch + i * part_step + j * 4, min(PAIR, rows - i), min(PAIR, columns - j)
                if adds and k == 0:
                    store(there, c_step, some_rows, some_columns, part, part_step, 4)
                multiply(packed, adds, a_here, b_here, some, part, part_step, group, group)
                if k + some == steps:
                    if symmetric and m + i < n + j:
                        mirrored = words[C] + (n + j) * c_step + (m + i) * width
                        transpose(part, part_step, scratch + ROWS * COLUMNS * 4)
                        store(scratch + ROWS * COLUMNS * 4, 4 * PAIR, some_columns, some_rows, mirrored, c_step, width)
                    store(part, part_step, some_rows, some_columns, there, c_step, width)


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
def offset(outer: int, inner: int, adjacent: bool, step: int, width: int) -> int:
    """Return where input `inner` of a row or column is, in bytes."""
    return outer * step + inner * width if adjacent else inner * step + outer * width


@njit(error_model="numpy")
def multiply_panels(frame: Pointer, panel: Pointer, packs_a: bool, packs_b: bool) -> None:
    """Pack a panel of A and one of B, unless they are packed, and multiply them. panel: words of a job."""
    blocks = new_job(0)
    threads = threads_for(frame, blocks)
    a_groups, b_groups = packs_a * padded(panel[M]) // SIDE, packs_b * padded(panel[N]) // SIDE
    panel[UNIT] = max(LEAST, min(MOST, (a_groups + b_groups) // (4 * threads)))
    panel[A_UNITS] = -(-a_groups // panel[UNIT])
    job = new_job(panel[A_UNITS] + -(-b_groups // panel[UNIT]))
    rows, columns, wanted = ROWS, COLUMNS, (8 if panel[SYMMETRIC] else 4) * threads
    while rows * columns > 64 * 64 and -(-panel[M] // rows) * -(-panel[N] // columns) < wanted:
        if columns >= rows:
            columns //= 2
        else:
            rows //= 2
    panel[BLOCK_M], panel[BLOCK_N] = rows, columns
    packing, multiplying = int64s(job), int64s(blocks)
    multiplying[UNITS] = -(-panel[M] // rows) * -(-panel[N] // columns)
    for word in range(GIVEN, END):
        packing[word] = multiplying[word] = panel[word]
    run(frame, job, address_of(pack_task))
    run(frame, blocks, address_of(block_task))


@njit(error_model="numpy")
def multiply_matrices(frame: Pointer) -> None:
    """Arguments: A [M, K] or [K, M], B [N, K] or [K, N]. Attributes: columns, form, inputs, rows; those of a panel, and
    as form 1 if the inputs of A lie side by side, plus 2 if those of B, plus 4 if the result is symmetric, plus 8 if C
    holds floats that the product is added to.

    Results: C [M, N], and memory for the tiles of a panel of A and of B in their dtype: rows and columns rounded up to 32,
    inputs to whole tiles.
    """
    columns, form, inputs, rows = [int32s(attribute(frame, i))[0] for i in range(4)]
    a_adjacent, b_adjacent = form & 1, form >> 1 & 1
    m, k = size(frame, ARGUMENTS, 0, 1 - a_adjacent), size(frame, ARGUMENTS, 0, a_adjacent)
    n = size(frame, ARGUMENTS, 1, 1 - b_adjacent)
    own = new_job(0)
    words = int64s(own)
    words[A_WIDTH], words[B_WIDTH] = width_of(frame, ARGUMENTS, 0), width_of(frame, ARGUMENTS, 1)
    words[C_WIDTH], words[PACKED] = width_of(frame, RESULTS, 0), width_of(frame, RESULTS, 1)
    words[A_ADJACENT], words[B_ADJACENT], words[SYMMETRIC] = a_adjacent, b_adjacent, form & 4
    words[A_STEP], words[B_STEP] = words[A_WIDTH] * (k if a_adjacent else m), words[B_WIDTH] * (k if b_adjacent else n)
    words[C_STEP] = words[C_WIDTH] * n
    a, b, c = data(frame, ARGUMENTS, 0), data(frame, ARGUMENTS, 1), data(frame, RESULTS, 0)
    words[A_TILES] = data(frame, RESULTS, 1)
    words[B_TILES] = words[A_TILES] + padded(rows) * ((inputs * words[PACKED] + ROW - 1) // ROW * ROW)
    for k_here in range(0, k, inputs):
        words[K], words[ADDS] = min(inputs, k - k_here), k_here > 0 or form & 8 > 0
        words[STEPS] = (words[K] * words[PACKED] + ROW - 1) // ROW
        for m_here in range(0, m, rows):
            words[A] = a + offset(m_here, k_here, a_adjacent, words[A_STEP], words[A_WIDTH])
            for n_here in range(0, n, columns):
                words[B] = b + offset(n_here, k_here, b_adjacent, words[B_STEP], words[B_WIDTH])
                words[C] = c + m_here * words[C_STEP] + n_here * words[C_WIDTH]
                words[M], words[N] = min(rows, m - m_here), min(columns, n - n_here)
                multiply_panels(frame, words, n_here == 0, m_here == 0)
    calls.leave(own)


def register() -> None:
    digest = calls.sources()

    def lm_gemm(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            multiply_matrices(frame)
        return 0

    calls.handler(lm_gemm)
