"""Compiled sums and norms of rows; lm/kernels/cpu/row_sums.py has the plain twin."""

import numpy as np
from numba import njit

from lm.kernels.native import calls
from lm.kernels.native.calls import ARGUMENTS, RESULTS, attribute, data, size
from lm.kernels.native.vectors import Pointer, float32s


@njit(error_model="numpy", fastmath={"reassoc"})
def total(x: Pointer, count: int) -> np.float32:
    found = np.float32(0.0)
    for i in range(count):
        found += x[i]
    return found


@njit(error_model="numpy")
def add_up(frame: Pointer) -> None:
    """Argument: x [M, N]; result: y [M]."""
    rows, count = size(frame, ARGUMENTS, 0, 0), size(frame, ARGUMENTS, 0, 1)
    x, y = data(frame, ARGUMENTS, 0), float32s(data(frame, RESULTS, 0))
    for m in range(rows):
        y[m] = total(float32s(x + m * count * 4), count)


@njit(error_model="numpy", fastmath={"reassoc"})
def normalize(frame: Pointer) -> None:
    """Arguments: x [M, N], scale [N]; result: y [M, N]."""
    rows, count = size(frame, ARGUMENTS, 0, 0), size(frame, ARGUMENTS, 0, 1)
    scale, epsilon = float32s(data(frame, ARGUMENTS, 1)), float32s(attribute(frame, 0))[0]
    for m in range(rows):
        x, y = float32s(data(frame, ARGUMENTS, 0) + m * count * 4), float32s(data(frame, RESULTS, 0) + m * count * 4)
        squares = np.float32(0.0)
        for i in range(count):
            squares += x[i] * x[i]
        inverse = np.float32(1.0) / np.sqrt(squares / np.float32(count) + epsilon)
        for i in range(count):
            y[i] = x[i] * inverse * scale[i]


def register() -> None:
    digest = calls.sources()

    def lm_rms_norm(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            normalize(frame)
        return 0

    def lm_row_sums(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            add_up(frame)
        return 0

    calls.handler(lm_row_sums)
    calls.handler(lm_rms_norm)
