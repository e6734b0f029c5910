"""Compiled passes of the short convolution; lm/kernels/dense/convolution.py says which.

A unit of work is a row of the batch and some of its channels. W rows of inputs, and of their gradients, are kept as floats:
that of token t is row t mod W.
"""

import numpy as np
from numba import njit

from lm.kernels.dense.tiling import clear, padded
from lm.kernels.native import calls
from lm.kernels.native.calls import (
    ARGUMENTS,
    GIVEN,
    RESULTS,
    address_of,
    attribute,
    data,
    new_job,
    next_unit,
    run,
    size,
    width_of,
)
from lm.kernels.native.numbers import floats, rounded
from lm.kernels.native.scores import exp
from lm.kernels.native.vectors import Pointer, float32s, int32s, int64s

CHANNELS, ROWS = 256, 3  # of a unit, and of its scratch memory beyond those of W rows
MOST = np.float32(80.0)  # e to more would not be a float
T, C, W, X, TAPS, BIAS, FRESH, SILU, WIDTH, Y, DY, DX, DTAPS, DBIAS = (GIVEN + i for i in range(14))


@njit(error_model="numpy", fastmath={"contract"})
def add_product(y: Pointer, a: Pointer, b: Pointer, count: int) -> None:
    for n in range(count):
        y[n] += a[n] * b[n]


@njit(error_model="numpy")
def silu(a: Pointer, count: int) -> None:
    for n in range(count):
        a[n] /= np.float32(1.0) + exp(min(-a[n], MOST))


@njit(error_model="numpy")
def gradient_of_silu(a: Pointer, dy: Pointer, count: int) -> None:
    """Replace a by dy·s·(1 + a·(1 − s)) with s = 1 / (1 + e^−a)."""
    for n in range(count):
        s = np.float32(1.0) / (np.float32(1.0) + exp(min(-a[n], MOST)))
        a[n] = dy[n] * s * (np.float32(1.0) + a[n] * (np.float32(1.0) - s))


@njit(error_model="numpy")
def convolve(words: Pointer, b: int, first: int, memory: int) -> None:
    """Go through the tokens of a row, forward, or with DY for the gradients too. first: the first channel."""
    c, w, width, backward = words[C], words[W], words[WIDTH], words[DY] != 0
    count, line = min(CHANNELS, c - first), CHANNELS * 4
    inputs, changes, dtaps, rest = [memory + n * w * line for n in range(4)]
    sums, dbias, dy = float32s(rest), float32s(rest + line), float32s(rest + 2 * line)
    clear(memory, (3 * w + ROWS) * CHANNELS)
    seen = 0  # tokens of this sequence before this one, at most W − 1
    for t in range(words[T] + (w - 1 if backward else 0)):
        at, mine = (b * words[T] + t) * c + first, t % w
        if t < words[T]:
            seen = 0 if int32s(words[FRESH])[b * words[T] + t] else min(seen + 1, w - 1) if t else 0
            floats(width, words[X] + at * width, float32s(inputs + mine * line), count)
            clear(rest, CHANNELS)
            if words[BIAS]:
                floats(4, words[BIAS] + first * 4, sums, count)
            for j in range(seen + 1):
                taps = float32s(words[TAPS] + ((w - 1 - j) * c + first) * 4)
                add_product(sums, taps, float32s(inputs + (t - j) % w * line), count)
            if not backward:
                if words[SILU]:
                    silu(sums, count)
                rounded(width, sums, words[Y] + at * width, count)
                continue
            floats(width, words[DY] + at * width, dy, count)
            if words[SILU]:
                gradient_of_silu(sums, dy, count)
            else:
                floats(4, rest + 2 * line, sums, count)
            for n in range(count):
                dbias[n] += sums[n]
            for j in range(seen + 1):
                there, taps = (t - j) % w * line, float32s(words[TAPS] + ((w - 1 - j) * c + first) * 4)
                add_product(float32s(dtaps + (w - 1 - j) * line), sums, float32s(inputs + there), count)
                add_product(float32s(changes + there), sums, taps, count)
        done = t - w + 1  # the token whose gradient is complete
        if done >= 0:
            change = changes + done % w * line
            rounded(width, float32s(change), words[DX] + ((b * words[T] + done) * c + first) * width, count)
            clear(change, CHANNELS)
    if backward:
        for j in range(w):
            floats(4, dtaps + j * line, float32s(words[DTAPS] + ((b * w + j) * c + first) * 4), count)
        floats(4, rest + line, float32s(words[DBIAS] + (b * c + first) * 4), count)


@njit(error_model="numpy")
def task(job: int) -> None:
    words = int64s(job)
    memory, blocks = calls.malloc((3 * words[W] + ROWS) * CHANNELS * 4 + 64), (words[C] + CHANNELS - 1) // CHANNELS
    unit = next_unit(job)
    while unit >= 0:
        convolve(words, unit // blocks, unit % blocks * CHANNELS, padded(memory, 64))
        calls.finished(job)
        unit = next_unit(job)
    calls.free(memory)
    calls.leave(job)


@njit(error_model="numpy")
def job_of(frame: Pointer) -> int:
    """Return a job with what both passes need. Arguments: x, taps, bias, which may be empty, fresh; attribute: silu."""
    b, t, c = size(frame, ARGUMENTS, 0, 0), size(frame, ARGUMENTS, 0, 1), size(frame, ARGUMENTS, 0, 2)
    job = new_job(b * ((c + CHANNELS - 1) // CHANNELS))
    words = int64s(job)
    words[T], words[C], words[W], words[SILU] = t, c, size(frame, ARGUMENTS, 1, 0), int32s(attribute(frame, 0))[0]
    words[X], words[TAPS], words[FRESH] = data(frame, ARGUMENTS, 0), data(frame, ARGUMENTS, 1), data(frame, ARGUMENTS, 3)
    words[BIAS] = data(frame, ARGUMENTS, 2) if size(frame, ARGUMENTS, 2, 0) else 0
    words[WIDTH] = width_of(frame, ARGUMENTS, 0)
    return job


def register() -> None:
    digest = calls.sources()

    def lm_taps(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            job = job_of(frame)
            words = int64s(job)
            words[Y], words[DY] = data(frame, RESULTS, 0), 0
            run(frame, job, address_of(task))
        return 0

    def lm_taps_gradients(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            job = job_of(frame)
            words = int64s(job)
            words[DY], words[DX] = data(frame, ARGUMENTS, 4), data(frame, RESULTS, 0)
            words[DTAPS], words[DBIAS] = data(frame, RESULTS, 1), data(frame, RESULTS, 2)
            run(frame, job, address_of(task))
        return 0

    calls.handler(lm_taps)
    calls.handler(lm_taps_gradients)
