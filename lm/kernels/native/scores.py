"""What compiled attention does with the scores of a query and a block of keys."""

import numpy as np
from numba import njit

from lm.kernels.native.vectors import BLOCK, Pointer, bits_of_float, float_of_bits

KEYS = BLOCK  # positions of a block
LOW = np.float32(-1e30)  # below any score


@njit(error_model="numpy", fastmath={"contract"})
def exp(x: np.float32) -> np.float32:
    """Return eˣ of a float32 x ≤ 88 to about 2 ulp; e⁰ is exactly 1. eˣ = 2ⁿ·eʳ with |r| ≤ ln 2 / 2 (Cephes, expf.c)."""
    x = max(x, np.float32(-87.0))
    magic = np.float32(12582912.0)  # 1.5·2²³: adding it rounds to an integer, which then stands in the low bits
    shifted = x * np.float32(1.44269504) + magic
    n = shifted - magic
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * (r * r) + r + np.float32(1.0)
    return p * float_of_bits(np.int32((bits_of_float(shifted) << 23) + 0x3F800000))


@njit(error_model="numpy", fastmath={"contract"})
def softcapped(s: np.float32, cap: np.float32) -> np.float32:
    e = exp(np.float32(-2.0) * abs(s) / cap)
    capped = cap * (np.float32(1.0) - e) / (np.float32(1.0) + e)
    return capped if s >= 0 else -capped


@njit(error_model="numpy")
def mask(s: Pointer, visible_from: int, visible_to: int) -> None:
    """Set the scores outside the visible positions of the block to LOW."""
    for j in range(min(visible_from, KEYS)):
        s[j] = LOW
    for j in range(max(visible_to + 1, 0), KEYS):
        s[j] = LOW


@njit(error_model="numpy")
def multiply_scores(s: Pointer, factors: Pointer) -> None:
    for j in range(KEYS):
        s[j] *= factors[j]


# Without "contract": fused, scale·s − top would not be 0 for the largest score, but as large as the rounding error of `top`.
@njit(error_model="numpy", fastmath={"reassoc"})
def exponentials(s: Pointer, count: int, scale: np.float32, top: np.float32) -> np.float32:
    """Replace scores by exp(scale·s − top), masked ones by 0. Return their sum."""
    total = np.float32(0.0)
    for j in range(count):
        p = exp(s[j] * scale - top)
        p = p if s[j] > LOW else np.float32(0.0) * s[j]
        s[j] = p
        total += p
    return total


@njit(error_model="numpy")
def scale_by(x: Pointer, count: int, factor: np.float32) -> None:
    for j in range(count):
        x[j] *= factor
