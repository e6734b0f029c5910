"""Compiled products of large matrices; lm/kernels/dense/large.py says which, and has the plain twin.

The shorter of the two, A or B, is shared: first all threads bring a panel of it into tiles (packing.py), rounding floats on the
way, and it stays in the third cache. Then a unit of work is a block of the product. Its thread packs its own part of the other
one, CHUNK tiles of inputs at a time, into its second cache: tiles that another core wrote are slow to get. So the longer one is
packed where it is multiplied, as by Goto and van de Geijn (2008).
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
OWN, SHARED = 128, 1024  # rows and columns of a block, or columns and rows; fewer where there would be too few blocks
LEAST, MOST = 4, 16  # groups that are packed as one unit of work
# Words of a job. Sizes are those of a panel; A, B and C say where it begins.
M, N, K, STEPS, A, B, C, TILES, A_STEP, B_STEP, C_STEP, A_WIDTH, B_WIDTH, C_WIDTH = (GIVEN + i for i in range(14))
A_ADJACENT, B_ADJACENT, BLOCK_M, BLOCK_N, SYMMETRIC, PACKED, ADDS, OWN_B, UNIT, END = (GIVEN + 14 + i for i in range(10))


@njit(error_model="numpy")
def offset(outer: int, inner: int, adjacent: bool, step: int, width: int) -> int:
    """Return where input `inner` of a row or column is, in bytes."""
    return outer * step + inner * width if adjacent else inner * step + outer * width


@njit(error_model="numpy")
def pack(words: Pointer, b: bool, first: int, groups: int, k: int, steps: int, tiles: int, group: int, spare: int) -> None:
    """Pack some groups of A, or of B, from row or column `first` on: `steps` tiles of inputs, from tile k on.

    group: bytes from the tiles of a group to those of the next.
    """
    source, outer, step = (words[B], words[N], words[B_STEP]) if b else (words[A], words[M], words[A_STEP])
    width, adjacent = (words[B_WIDTH], words[B_ADJACENT]) if b else (words[A_WIDTH], words[A_ADJACENT])
    packed, some = words[PACKED], steps if adjacent else 1  # tiles of a group, so that memory is read in long runs
    for done in range(0, steps, some):
        inner = (k + done) * ROW // packed
        for g in range(groups):
            here, left = source + offset(first + g * SIDE, inner, adjacent, step, width), outer - first - g * SIDE
            there = tiles + g * group + done * TILE
            pack_group(here, left, words[K] - inner, some, adjacent == 1, step, width, packed, b, there, spare)


@njit(error_model="numpy")
def pack_task(job: int) -> None:
    """Pack the panel that is shared."""
    words = int64s(job)
    spare = calls.malloc(2048)
    groups, group = padded(words[M] if words[OWN_B] else words[N]) // SIDE, words[STEPS] * TILE
    unit = next_unit(job)
    while unit >= 0:
        first = unit * words[UNIT]
        some, tiles = min(words[UNIT], groups - first), words[TILES] + first * group
        pack(words, words[OWN_B] == 0, first * SIDE, some, 0, words[STEPS], tiles, group, spare)
        calls.finished(job)
        unit = next_unit(job)
    calls.free(spare)
    calls.leave(job)


@njit(error_model="numpy")
def block(words: Pointer, m: int, n: int, own: int, scratch: int) -> None:
    """Compute a block of the panel's result from row m and column n on, or add to it.

    own: address of room for CHUNK tiles of each group of its rows, or columns. scratch: of room for sums that C cannot hold.
    """
    rows, columns = min(words[BLOCK_M], words[M] - m), min(words[BLOCK_N], words[N] - n)
    steps, width, packed, symmetric, own_b = words[STEPS], words[C_WIDTH], words[PACKED], words[SYMMETRIC], words[OWN_B] == 1
    c_step, block_n, group, own_group = words[C_STEP], words[BLOCK_N], steps * TILE, CHUNK * TILE
    c, shared = words[C] + m * c_step + n * width, words[TILES] + (m if own_b else n) // SIDE * group
    inner, outer = (columns, rows) if own_b else (rows, columns)
    spare = scratch + words[BLOCK_M] * block_n * 4
    for k in range(0, steps, CHUNK):
        some, adds = min(CHUNK, steps - k), k > 0 or words[ADDS] == 1
        pack(words, own_b, n if own_b else m, padded(inner) // SIDE, k, some, own, own_group, spare)
        for o in range(0, outer, PAIR):
            theirs = shared + o // SIDE * group + k * TILE
            for p in range(0, inner, PAIR):
                i, j = (o, p) if own_b else (p, o)
                if symmetric and m + i > n + j:
                    continue
                mine, there = own + p // SIDE * own_group, c + i * c_step + j * width
                a, b = (theirs, mine) if own_b else (mine, theirs)
                a_group, b_group = (group, own_group) if own_b else (own_group, group)
                if width == 4 and not symmetric and i + PAIR <= rows and j + PAIR <= columns:
                    multiply(packed, adds, a, b, some, there, c_step, a_group, b_group)
                    continue
                part = scratch + (i // PAIR * block_n // PAIR + j // PAIR) * 4 * TILE * (steps > CHUNK)
                some_rows, some_columns = min(PAIR, rows - i), min(PAIR, columns - j)
                if adds and k == 0:
                    store(there, c_step, some_rows, some_columns, part, 4 * PAIR, 4)
                multiply(packed, adds, a, b, some, part, 4 * PAIR, a_group, b_group)
                if k + some == steps:
                    if symmetric and m + i < n + j:
                        mirrored = words[C] + (n + j) * c_step + (m + i) * width
                        transpose(part, 4 * PAIR, spare)
                        store(spare, 4 * PAIR, some_columns, some_rows, mirrored, c_step, width)
                    store(part, 4 * PAIR, some_rows, some_columns, there, c_step, width)


@njit(error_model="numpy")
def block_task(job: int) -> None:
    words = int64s(job)
    block_m, block_n, own_b = words[BLOCK_M], words[BLOCK_N], words[OWN_B] == 1
    tiles = padded(block_n if own_b else block_m) // SIDE * CHUNK * TILE
    scratch = calls.malloc(tiles + block_m * block_n * 4 + 5 * TILE)
    configure(words[PACKED], scratch)
    down, across = (words[M] + block_m - 1) // block_m, (words[N] + block_n - 1) // block_n
    unit = next_unit(job)
    while unit >= 0:
        m, n = (unit // across, unit % across) if own_b else (unit % down, unit // down)
        if not words[SYMMETRIC] or m * block_m < (n + 1) * block_n:
            block(words, m * block_m, n * block_n, scratch, scratch + tiles)
        calls.finished(job)
        unit = next_unit(job)
    release(words[PACKED])
    calls.free(scratch)
    calls.leave(job)


@njit(error_model="numpy")
def multiply_panels(frame: Pointer, panel: Pointer) -> None:
    """Pack the panel that is shared, and multiply the other one with it. panel: words of a job."""
    blocks = new_job(0)
    threads = threads_for(frame, blocks)
    own, shared = (panel[N], panel[M]) if panel[OWN_B] else (panel[M], panel[N])
    groups = padded(shared) // SIDE
    panel[UNIT] = max(LEAST, min(MOST, groups // (4 * threads)))
    job = new_job(-(-groups // panel[UNIT]))
    mine, theirs, wanted = OWN, SHARED, (8 if panel[SYMMETRIC] else 4) * threads
    while theirs // 2 >= padded(shared):
        theirs //= 2
    while mine * theirs > 64 * 64 and -(-own // mine) * -(-shared // theirs) < wanted:
        if theirs >= mine:
            theirs //= 2
        else:
            mine //= 2
    panel[BLOCK_M], panel[BLOCK_N] = (theirs, mine) if panel[OWN_B] else (mine, theirs)
    packing, multiplying = int64s(job), int64s(blocks)
    multiplying[UNITS] = -(-own // mine) * -(-shared // theirs)
    for word in range(GIVEN, END):
        packing[word] = multiplying[word] = panel[word]
    run(frame, job, address_of(pack_task))
    run(frame, blocks, address_of(block_task))


@njit(error_model="numpy")
def multiply_matrices(frame: Pointer) -> None:
    """Arguments: A [M, K] or [K, M], B [N, K] or [K, N]. Attributes: form, inputs, panel. Inputs of a panel, and its rows or
    columns; as form 1 if the inputs of A lie side by side, plus 2 if those of B, plus 4 if the result is symmetric, plus 8 if
    C holds floats that the product is added to.

    Results: C [M, N], and memory for the tiles of a panel in their dtype: its rows or columns rounded up to 32, inputs to
    whole tiles.
    """
    form, inputs, side = [int32s(attribute(frame, i))[0] for i in range(3)]
    a_adjacent, b_adjacent = form & 1, form >> 1 & 1
    m, k = size(frame, ARGUMENTS, 0, 1 - a_adjacent), size(frame, ARGUMENTS, 0, a_adjacent)
    n = size(frame, ARGUMENTS, 1, 1 - b_adjacent)
    own = new_job(0)
    words = int64s(own)
    words[A_WIDTH], words[B_WIDTH] = width_of(frame, ARGUMENTS, 0), width_of(frame, ARGUMENTS, 1)
    words[C_WIDTH], words[PACKED] = width_of(frame, RESULTS, 0), width_of(frame, RESULTS, 1)
    words[A_ADJACENT], words[B_ADJACENT], words[SYMMETRIC], words[OWN_B] = a_adjacent, b_adjacent, form & 4, n > m
    words[A_STEP], words[B_STEP] = words[A_WIDTH] * (k if a_adjacent else m), words[B_WIDTH] * (k if b_adjacent else n)
    words[C_STEP], words[TILES] = words[C_WIDTH] * n, data(frame, RESULTS, 1)
    for k_here in range(0, k, inputs):
        words[K], words[ADDS] = min(inputs, k - k_here), k_here > 0 or form & 8 > 0
        words[STEPS] = (words[K] * words[PACKED] + ROW - 1) // ROW
        for here in range(0, min(m, n), side):
            m_here, n_here = (here, 0) if n > m else (0, here)
            words[M], words[N] = (min(side, m - here), n) if n > m else (m, min(side, n - here))
            words[A] = data(frame, ARGUMENTS, 0) + offset(m_here, k_here, a_adjacent, words[A_STEP], words[A_WIDTH])
            words[B] = data(frame, ARGUMENTS, 1) + offset(n_here, k_here, b_adjacent, words[B_STEP], words[B_WIDTH])
            words[C] = data(frame, RESULTS, 0) + m_here * words[C_STEP] + n_here * words[C_WIDTH]
            multiply_panels(frame, words)
    calls.leave(own)


def register() -> None:
    digest = calls.sources()

    def lm_gemm(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            multiply_matrices(frame)
        return 0

    calls.handler(lm_gemm)
