"""FLOPs of the compiled functions, which a traced program shows as calls without products."""

import math
from collections.abc import Sequence


def flops(target: str, shapes: Sequence[tuple[int, ...]], results: Sequence[tuple[int, ...]], window: int = 0) -> int:
    """Return 2·M·N·K of all matrix products of a call; 0 if it is none of this folder's. Masked parts of a block count.

    target: the name with which XLA calls it. shapes, results: of its arguments and results. window: of attention.
    """
    if target == "lm_gemm":
        (M, N), K = results[0], math.prod(shapes[0]) // results[0][0]
        return 2 * M * N * K
    if not target.startswith("lm_flash"):
        return 0
    (B, T, H, K), V = shapes[0], shapes[2][3]
    if target == "lm_flash":
        return 2 * B * H * _forward(T, window) * (K + V)  # scores, result
    return 2 * B * H * _backward(T, window) * (3 * K + 2 * V)  # scores, dq, dk; dP, dv


def _forward(T: int, window: int) -> int:
    """Return how many pairs of a query and a key a head's forward pass multiplies: 32 queries with the keys up to the last."""
    firsts = (max(t - window + 1, 0) // 32 * 32 if window else 0 for t in range(0, T, 32))
    return sum(32 * (t + 32 - first) for t, first in zip(range(0, T, 32), firsts))


def _backward(T: int, window: int) -> int:
    """Return the same of the backward pass: 64 keys with 128 queries at a time."""
    ends = (min(T, k + 63 + window) if window else T for k in range(0, T, 64))
    return sum(64 * 128 * len(range(k // 128 * 128, end, 128)) for k, end in zip(range(0, T, 64), ends))
