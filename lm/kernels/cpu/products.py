"""Compiled products of activations with packed weights; lm/kernels/cpu/packed.py defines the layout and has the plain twin."""

from numba import njit

from lm.kernels.cpu import calls
from lm.kernels.cpu.calls import ARGUMENTS, GIVEN, RESULTS, address_of, data, int64s, new_job, next_unit, run, size, width_of
from lm.kernels.cpu.vectors import LANES, ROWS, SIZE, VECTORS, tile

BLOCK = 64  # outputs of a block
SOME = 96  # rows of x in a unit of work: enough to use a block while it is in the nearest cache
PART = VECTORS * LANES
X, W, Y, M, K, N, WIDTH = (GIVEN + i for i in range(7))


def _floats(stored):
    one, several, width = tile(1, BLOCK // LANES, stored, False), tile(ROWS, VECTORS, stored, False), SIZE[stored]

    @njit(error_model="numpy")
    def unit(words, m, end, block):
        x_step, w_step, y_step = words[K] * 4, BLOCK * width, words[N] * 4
        x, w, y = words[X] + m * x_step, words[W] + block * words[K] * w_step, words[Y] + m * y_step + block * BLOCK * 4
        if m + 1 == end:
            one(1, x, x_step, w, w_step, words[K], y, y_step)
            return
        while m < end:
            rows = min(ROWS, end - m)
            for part in range(0, BLOCK, PART):
                several(rows, x, x_step, w + part * width, w_step, words[K], y + part * 4, y_step)
            m, x, y = m + rows, x + rows * x_step, y + rows * y_step

    return unit


float32_unit, bfloat16_unit = _floats("float32"), _floats("bfloat16")


@njit(error_model="numpy")
def task(job):
    words = int64s(job)
    unit, blocks = next_unit(job), words[N] // BLOCK
    while unit >= 0:
        m, block = unit // blocks * SOME, unit % blocks
        end = min(m + SOME, words[M])
        if words[WIDTH] == 4:
            float32_unit(words, m, end, block)
        else:
            bfloat16_unit(words, m, end, block)
        calls.finished(job)
        unit = next_unit(job)
    calls.leave(job)


@njit(error_model="numpy")
def multiply(frame):
    """Start a job. Arguments: x [M, K] and w [N / 64, K, 64]; result: y [M, N]."""
    rows, blocks = size(frame, ARGUMENTS, 0, 0), size(frame, ARGUMENTS, 1, 0)
    job = new_job(blocks * ((rows + SOME - 1) // SOME))
    words = int64s(job)
    words[X], words[W], words[Y] = data(frame, ARGUMENTS, 0), data(frame, ARGUMENTS, 1), data(frame, RESULTS, 0)
    words[M], words[K], words[N] = rows, size(frame, ARGUMENTS, 0, 1), blocks * BLOCK
    words[WIDTH] = width_of(frame, ARGUMENTS, 1)
    run(frame, job, address_of(task))


def register() -> None:
    digest = calls.sources()

    def lm_matmul(frame):
        digest  # noqa: B018
        if calls.is_call(frame):
            multiply(frame)
        return 0

    calls.handler(lm_matmul)
