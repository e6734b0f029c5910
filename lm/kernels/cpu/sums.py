"""Compiled sums of rows, and log-probabilities; lm/kernels/cpu/row_sums.py calls them."""

import math

import numpy as np
from numba import njit

from lm.kernels.native import calls
from lm.kernels.native.calls import ARGUMENTS, RESULTS, data, size
from lm.kernels.native.scores import exp
from lm.kernels.native.vectors import Pointer, float32s, int32s, largest


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


@njit(error_model="numpy", fastmath={"contract", "reassoc"})
def total_of_exponentials(x: Pointer, count: int, divisor: np.float32, top: np.float32) -> np.float32:
    found = np.float32(0.0)
    for i in range(count):
        found += exp(x[i] / divisor - top)
    return found


@njit(error_model="numpy")
def logprobs(frame: Pointer) -> None:
    """Arguments: logits [S, V], tokens [S], divisors [S]; results: log p(token) of logits / divisor, and log Z, both [S]."""
    rows, count = size(frame, ARGUMENTS, 0, 0), size(frame, ARGUMENTS, 0, 1)
    x, tokens, divisors = data(frame, ARGUMENTS, 0), int32s(data(frame, ARGUMENTS, 1)), float32s(data(frame, ARGUMENTS, 2))
    logp, logz = float32s(data(frame, RESULTS, 0)), float32s(data(frame, RESULTS, 1))
    for s in range(rows):
        row, whole = float32s(x + s * count * 4), count // 32 * 32
        top = largest(x + s * count * 4, whole)
        for i in range(whole, count):
            top = max(top, row[i])
        top /= divisors[s]
        logz[s] = top + np.float32(math.log(total_of_exponentials(row, count, divisors[s], top)))
        logp[s] = row[tokens[s]] / divisors[s] - logz[s]


def register() -> None:
    digest = calls.sources()

    def lm_row_sums(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            add_up(frame)
        return 0

    def lm_row_logprobs(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            logprobs(frame)
        return 0

    calls.handler(lm_row_sums)
    calls.handler(lm_row_logprobs)
