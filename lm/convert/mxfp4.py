"""MXFP4 weights (OCP Microscaling Formats 1.0, 2023), as gpt-oss is published: they are read as bfloat16, exactly.

NAME_blocks is uint8 [E, R, G, 16]: G blocks of 32 numbers of 4 bits, two a byte, the lower half first. NAME_scales is uint8
[E, R, G]: the exponent of two of each block, plus 127. NAME is their product, [E, 32·G, R].
"""

import functools
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from lm.convert.files import Tensor
from lm.convert.gguf.tensors import Part
from lm.errors import UserError

BLOCKS, SCALES = "_blocks", "_scales"
POSITIVE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)  # of E2M1: a sign, two bits of exponent, one of mantissa
NUMBERS = np.concatenate([POSITIVE, -POSITIVE])
PAIRS = np.stack([np.tile(NUMBERS, 16), np.repeat(NUMBERS, 16)], axis=1)  # by byte
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def dequantized(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the numbers of blocks [E, R, G, 16] and scales [E, R, G], bfloat16 [E, 32·G, R]."""
    E, R, G = scales.shape
    found = np.empty((E, 32 * G, R), BFLOAT16)
    for e in range(E):  # in float32 one expert at a time
        with np.errstate(over="ignore"):  # 255 stands for no number, and no published model has it
            numbers = np.ldexp(PAIRS[blocks[e]], scales[e].astype(np.int32)[..., None, None] - 127)
        found[e] = numbers.reshape(R, 32 * G).T
    return found


def read_as_bfloat16(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | Part]:
    """Return the tensors of a checkpoint, with one in place of each pair of blocks and scales. Raises UserError."""
    found: dict[str, Tensor | Part] = {}
    for name, tensor in tensors.items():
        whole = name.removesuffix(BLOCKS)
        if whole == name:
            if not (name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in tensors):
                found[name] = tensor
            continue
        scales = tensors.get(whole + SCALES)
        fits = scales is not None and tensor.shape == (*scales.shape, 16) and len(scales.shape) == 3
        if not fits or {tensor.dtype, scales.dtype} != {np.dtype(np.uint8)}:
            raise UserError(f"{name} is no MXFP4 weight: {whole}{SCALES} must hold a byte for each 16 of its bytes")
        E, R, G = scales.shape
        found[whole] = Part(BFLOAT16, (E, 32 * G, R), functools.partial(_read, tensor, scales))
    return found


def _read(blocks: Tensor, scales: Tensor) -> np.ndarray:
    return dequantized(blocks.read(), scales.read())
