"""Compiled functions of rows, one pass over memory each: silu(gate)·up, RMSNorm, and their gradients (fused.py).

A unit of work is some rows. A row is computed in float32, in memory that stays in the nearest cache.
"""

import math

import numpy as np
from numba import njit

from lm.kernels.dense.tiling import store
from lm.kernels.native import calls
from lm.kernels.native.scores import exp
from lm.kernels.native.vectors import Pointer, float32s, float_of_bits, int32s, int64s, uint16s

MOST = np.float32(88.0)  # of what `exp` takes
ROWS, WIDTH, COUNT, EPS, KIND, SCALE, A, B, C, OUT, OUT2 = (calls.GIVEN + i for i in range(11))
FEW = 2**15  # numbers; less is not shared among threads
GATED, GATED_GRADIENTS, NORM, NORM_GRADIENTS = range(4)


@njit(error_model="numpy")
def floats(width: int, source: int, count: int, scratch: int) -> int:
    """Return the address of some numbers as floats: where they are, or in `scratch`."""
    if width == 4:
        return source
    x, out = uint16s(source), float32s(scratch)
    for n in range(count):
        out[n] = float_of_bits(np.int32(x[n]) << 16)
    return scratch


@njit(error_model="numpy", fastmath={"contract"})
def gated(gate: Pointer, up: Pointer, out: Pointer, count: int) -> None:
    for n in range(count):
        out[n] = up[n] * (gate[n] / (np.float32(1.0) + exp(min(-gate[n], MOST))))


@njit(error_model="numpy", fastmath={"contract"})
def gated_gradients(gate: Pointer, up: Pointer, d: Pointer, d_gate: Pointer, d_up: Pointer, count: int) -> None:
    """With s = 1 / (1 + e^−gate): d_up = d·gate·s, d_gate = d·up·s·(1 + gate·(1 − s))."""
    for n in range(count):
        s = np.float32(1.0) / (np.float32(1.0) + exp(min(-gate[n], MOST)))
        d_up[n] = d[n] * (gate[n] * s)
        d_gate[n] = d[n] * up[n] * (s * (np.float32(1.0) + gate[n] * (np.float32(1.0) - s)))


@njit(error_model="numpy", fastmath={"contract", "reassoc"})
def dot(a: Pointer, b: Pointer, count: int) -> np.float32:
    total = np.float32(0.0)
    for n in range(count):
        total += a[n] * b[n]
    return total


@njit(error_model="numpy", fastmath={"contract"})
def normed(x: Pointer, scale: Pointer, inverse: np.float32, out: Pointer, count: int) -> None:
    for n in range(count):
        out[n] = x[n] * inverse * scale[n]


@njit(error_model="numpy", fastmath={"contract"})
def norm_gradients(
    x: Pointer, d: Pointer, scale: Pointer, inverse: np.float32, scaled: Pointer, d_scale: Pointer, out: Pointer, count: int
) -> None:
    """With x̂ = x·inverse and e = d·scale: d_scale += d·x̂ and dx = inverse·(e − x̂·mean(e·x̂)). scaled: scratch for e."""
    for n in range(count):
        scaled[n] = d[n] * scale[n]
        d_scale[n] += d[n] * (x[n] * inverse)
    mean = dot(scaled, x, count) * inverse / np.float32(count)
    for n in range(count):
        out[n] = inverse * (scaled[n] - x[n] * inverse * mean)


@njit(error_model="numpy")
def do_row(words: Pointer, row: int, unit: int, scratch: int) -> None:
    width, count, kind = words[WIDTH], words[COUNT], words[KIND]
    step, part = width * count, 4 * (count + 32)
    a = floats(width, words[A] + row * step, count, scratch)
    # A row of floats is written where it belongs. One of bfloat16 is rounded first.
    out = words[OUT] + row * step if width == 4 else scratch + 3 * part
    out2 = words[OUT2] + row * step if width == 4 else scratch + 4 * part
    x, scale = float32s(a), float32s(words[SCALE])
    inverse = np.float32(0.0)
    if kind >= NORM:
        eps = float_of_bits(np.int32(words[EPS]))
        inverse = np.float32(1.0) / np.float32(math.sqrt(dot(x, x, count) / np.float32(count) + eps))
    if kind == NORM:
        normed(x, scale, inverse, float32s(out), count)
    else:
        b = float32s(floats(width, words[B] + row * step, count, scratch + part))
        if kind == NORM_GRADIENTS:
            d_scale = float32s(words[OUT2] + unit * count * 4)
            norm_gradients(x, b, scale, inverse, float32s(scratch + 2 * part), d_scale, float32s(out), count)
        elif kind == GATED:
            gated(x, b, float32s(out), count)
        else:
            c = float32s(floats(width, words[C] + row * step, count, scratch + 2 * part))
            gated_gradients(x, b, c, float32s(out), float32s(out2), count)
            if width == 2:
                store(out2, 0, 1, count, words[OUT2] + row * step, 0, 2)
    if width == 2:
        store(out, 0, 1, count, words[OUT] + row * step, 0, 2)


@njit(error_model="numpy")
def task(job: int) -> None:
    words = int64s(job)
    rows, parts = words[ROWS], words[calls.UNITS]
    scratch = calls.malloc(5 * 4 * (words[COUNT] + 32))
    unit = calls.next_unit(job)
    while unit >= 0:
        if words[KIND] == NORM_GRADIENTS:
            d_scale = float32s(words[OUT2] + unit * words[COUNT] * 4)
            for n in range(words[COUNT]):
                d_scale[n] = np.float32(0.0)
        for row in range(unit * rows // parts, (unit + 1) * rows // parts):
            do_row(words, row, unit, scratch)
        calls.finished(job)
        unit = calls.next_unit(job)
    calls.free(scratch)
    calls.leave(job)


@njit(error_model="numpy")
def start(frame: Pointer, kind: int) -> None:
    """Arguments: gate, up and their result's gradient; or x, its result's gradient and the scale. All but the scale [R, N].

    Results: those, or the gradients. The scale's gradient has a row for each unit of work. Attributes: ε and the kind.
    """
    rows = calls.size(frame, calls.ARGUMENTS, 0, 0)
    few = rows * calls.size(frame, calls.ARGUMENTS, 0, 1) < FEW
    units = calls.size(frame, calls.RESULTS, 1, 0) if kind == NORM_GRADIENTS else 1 if few else min(rows, 64)
    job = calls.new_job(units)
    words = int64s(job)
    words[ROWS], words[COUNT] = rows, calls.size(frame, calls.ARGUMENTS, 0, 1)
    words[WIDTH] = calls.width_of(frame, calls.ARGUMENTS, 0)
    words[KIND], words[A], words[B] = kind, calls.data(frame, calls.ARGUMENTS, 0), calls.data(frame, calls.ARGUMENTS, 1)
    words[OUT], words[OUT2], words[C], words[SCALE] = calls.data(frame, calls.RESULTS, 0), 0, 0, words[B]
    if kind == GATED_GRADIENTS or kind == NORM_GRADIENTS:
        words[OUT2], words[C] = calls.data(frame, calls.RESULTS, 1), calls.data(frame, calls.ARGUMENTS, 2)
        words[SCALE] = words[C]
    words[EPS] = int32s(calls.attribute(frame, 0))[0]
    calls.run(frame, job, calls.address_of(task))


def register() -> None:
    digest = calls.sources()

    def lm_rows(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            start(frame, int32s(calls.attribute(frame, 1))[0])
        return 0

    calls.handler(lm_rows)
