"""Compiled products of activations with packed weights; lm/kernels/cpu/packed.py defines the layout and has the plain twin."""

from collections.abc import Callable

import numpy as np
from numba import njit

from lm.kernels.cpu.packed import W8A8
from lm.kernels.native import calls
from lm.kernels.native.calls import ARGUMENTS, GIVEN, RESULTS, address_of, attribute, data, new_job, next_unit, run, size
from lm.kernels.native.integers import KINDS, integer_tile
from lm.kernels.native.vectors import (
    BLOCK,
    SIZE,
    Pointer,
    bits_of_float,
    float32s,
    float_of_bits,
    int8s,
    int16s,
    int32s,
    int64s,
    rows_of,
    tile,
)

SOME = 96  # rows of x in a unit of work: enough to use a block while it is in the nearest cache
X, W, Y, M, K, N, KIND, CHUNK, X_SCALE, W_SCALE, GROUPS, START = (GIVEN + i for i in range(12))


def _floats(stored: str) -> Callable[[Pointer, int, int, int], None]:
    product, width = tile(stored, False), SIZE[stored]

    @njit(error_model="numpy")
    def unit(words: Pointer, m: int, end: int, block: int) -> None:
        x_step, w_step, y_step = words[K] * 4, BLOCK * width, words[N] * 4
        x, w, y = words[X] + m * x_step, words[W] + block * words[K] * w_step, words[Y] + m * y_step + block * BLOCK * 4
        while m < end:
            rows = rows_of(end - m)
            product(rows, x, x_step, w, w_step, words[K], y, y_step)
            m, x, y = m + rows, x + rows * x_step, y + rows * y_step

    return unit


def _integers(name: str) -> Callable[[Pointer, int, int, int], None]:
    product, kind = integer_tile(name), KINDS[name]
    width, block_bytes, per = kind.activation, kind.stride, kind.per

    @njit(error_model="numpy")
    def unit(words: Pointer, m: int, end: int, block: int) -> None:
        inputs, chunk, groups = words[K], words[CHUNK], words[GROUPS]
        chunks = (inputs + chunk - 1) // chunk
        share, x_step, s_step, y_step = chunks // groups, inputs * width, chunks * 4, words[N] * 4
        x, s, y = words[X] + m * x_step, words[X_SCALE] + m * s_step, words[Y] + m * y_step + block * BLOCK * 4
        w, w_scale = words[W] + block * inputs // per * block_bytes, words[W_SCALE] + block * groups * BLOCK * 2
        while m < end:
            rows = rows_of(end - m)
            product(rows, x, x_step, w, inputs, chunk, s, s_step, words[START], w_scale, share, y, y_step)
            m, x, s, y = m + rows, x + rows * x_step, s + rows * s_step, y + rows * y_step

    return unit


float32_unit, bfloat16_unit = _floats("float32"), _floats("bfloat16")
int8_unit, int4_unit, w8a8_unit = _integers("int8"), _integers("int4"), _integers("w8a8")


@njit(error_model="numpy")
def task(job: int) -> None:
    words = int64s(job)
    unit, blocks = next_unit(job), words[N] // BLOCK
    while unit >= 0:
        m, block = unit // blocks * SOME, unit % blocks
        end = min(m + SOME, words[M])
        if words[KIND] == 32:
            float32_unit(words, m, end, block)
        elif words[KIND] == 16:
            bfloat16_unit(words, m, end, block)
        elif words[KIND] == 8:
            int8_unit(words, m, end, block)
        elif words[KIND] == W8A8:
            w8a8_unit(words, m, end, block)
        else:
            int4_unit(words, m, end, block)
        calls.finished(job)
        unit = next_unit(job)
    calls.leave(job)


def _rounding(most: float, integers: Callable[[int], Pointer], integer: type[np.signedinteger]) -> Callable[..., None]:
    """Return the compiled rounding of activations to integers of at most ±`most`, which `integers` writes."""
    width, top_integer = np.dtype(integer).itemsize, np.float32(most)

    @njit(error_model="numpy")
    def quantized(x: int, rows: int, inputs: int, padded: int, chunk: int, out: int, scales: int, starts: int) -> None:
        """Write x [rows, inputs] as integers [rows, padded] and a float32 scale for each chunk of a row: x ≈ scale · integer.

        The largest number of a chunk becomes ±`most`. A chunk with one that is not finite has the scale NaN. For bytes also
        where its sums start: weights are stored as w + 128 (packed.py), so at −128 · Σ x.
        """
        step = (padded + chunk - 1) // chunk
        magic = np.float32(12582912.0)  # 1.5·2²³: adding it rounds to an integer, which then stands in the low bits
        for m in range(rows):
            for c in range(step):
                first = c * chunk
                end = min(first + chunk, inputs)
                source, to = float32s(x + m * inputs * 4), integers(out + m * padded * width)
                top, total = np.int32(0), np.int32(0)  # bits of positive floats are ordered like these, and NaN is the largest
                for k in range(first, end):
                    top = max(top, np.int32(bits_of_float(source[k]) & 0x7FFFFFFF))
                largest = float_of_bits(top)
                factor = top_integer / largest if largest > np.float32(1e-30) else np.float32(0.0)
                for k in range(first, end):
                    n = integer(bits_of_float(source[k] * factor + magic))
                    to[k] = n
                    total += np.int32(n)
                for k in range(max(first, end), min(first + chunk, padded)):
                    to[k] = 0
                float32s(scales)[m * step + c] = largest / top_integer if top < 0x7F800000 else np.float32(np.nan)
                if width == 1:
                    int32s(starts)[m * step + c] = -128 * total

    return quantized


quantized, quantized_bytes = _rounding(32767.0, int16s, np.int16), _rounding(127.0, int8s, np.int8)


@njit(error_model="numpy")
def multiply(frame: Pointer) -> None:
    """Do a product. Arguments: x [M, K], blocks and scales of w; result: y [M, N]."""
    rows, inputs, blocks = size(frame, ARGUMENTS, 0, 0), size(frame, ARGUMENTS, 0, 1), size(frame, ARGUMENTS, 1, 0)
    kind = int(int32s(attribute(frame, 1))[0])
    job = new_job(blocks * ((rows + SOME - 1) // SOME))
    words = int64s(job)
    words[X], words[W], words[Y] = data(frame, ARGUMENTS, 0), data(frame, ARGUMENTS, 1), data(frame, RESULTS, 0)
    words[M], words[K], words[N], words[KIND] = rows, inputs, blocks * BLOCK, kind
    if kind == 32 or kind == 16:
        run(frame, job, address_of(task))
        return
    padded = size(frame, ARGUMENTS, 1, 1) * (2 if kind == 8 else 4)
    chunk = int(int32s(attribute(frame, 0))[0])
    chunks = (padded + chunk - 1) // chunk
    memory = calls.malloc(rows * (padded * 2 + chunks * 8) + 64)
    words[X], words[X_SCALE], words[START] = memory + rows * chunks * 8, memory, rows * chunks * 4
    words[K], words[CHUNK], words[GROUPS] = padded, chunk, size(frame, ARGUMENTS, 2, 1)
    words[W_SCALE] = data(frame, ARGUMENTS, 2)
    x, starts = data(frame, ARGUMENTS, 0), words[X_SCALE] + words[START]
    if kind == W8A8:
        quantized_bytes(x, rows, inputs, padded, chunk, words[X], words[X_SCALE], starts)
    else:
        quantized(x, rows, inputs, padded, chunk, words[X], words[X_SCALE], starts)
    run(frame, job, address_of(task))
    calls.free(memory)


def register() -> None:
    digest = calls.sources()

    def lm_matmul(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            multiply(frame)
        return 0

    calls.handler(lm_matmul)
