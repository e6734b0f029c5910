"""Rows of float32 or bfloat16 numbers as floats, and back. width: bytes of a number."""

import numpy as np
from numba import njit

from lm.kernels.native.vectors import Pointer, bits_of_float, float32s, float_of_bits, uint16s


@njit(error_model="numpy")
def floats(width: int, source: int, there: Pointer, count: int) -> None:
    """Write numbers of some bytes as floats."""
    if width == 4:
        x = float32s(source)
        for n in range(count):
            there[n] = x[n]
    else:
        half = uint16s(source)
        for n in range(count):
            there[n] = float_of_bits(np.int32(half[n]) << 16)


@njit(error_model="numpy")
def rounded(width: int, x: Pointer, to: int, count: int) -> None:
    """Write floats as numbers of some bytes; halves are rounded to even."""
    if width == 4:
        there = float32s(to)
        for n in range(count):
            there[n] = x[n]
    else:
        half = uint16s(to)
        for n in range(count):
            bits = bits_of_float(x[n])
            half[n] = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
