"""The tile registers of AMX (Intel Architecture Instruction Set Extensions, ch. 3): products of bfloat16 that add in float32.

A tile register holds 16 rows of 64 bytes. One instruction multiplies a tile of A, 16 rows of 32 inputs, and a tile of B, 16
pairs of inputs of 16 columns, and adds the result to a tile of C, 16 × 16 floats. packing.py brings matrices into such tiles.

llvmlite has no type for tiles, so this is assembly. Nothing else uses the registers between `configure` and `release`.
"""

import ctypes
import functools
import sys
from collections.abc import Sequence

import numpy as np
from llvmlite import ir

from lm.kernels.dense.packing import SIDE
from lm.kernels.native.vectors import at, has, i64, written

PERMISSION = 158, 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), asm/prctl.h


@functools.cache
def usable() -> bool:
    """Return whether this process may use the tiles. It asks Linux for them, since they make what a thread saves larger."""
    if not (sys.platform == "linux" and has("amx-bf16") and has("avx512bf16")):
        return False
    return ctypes.CDLL(None).syscall(*map(ctypes.c_long, PERMISSION)) == 0


def _palette() -> tuple[int, ...]:
    """Return the configuration of eight tiles of 16 rows of 64 bytes, in words of eight bytes."""
    data = np.zeros(64, np.uint8)
    data[0] = 1
    data[16:32].view(np.uint16)[:] = 64
    data[48:56] = SIDE
    return tuple(data.view(np.int64).tolist())


def _assembly(builder: ir.IRBuilder, text: str, args: Sequence[ir.Value], constraints: Sequence[str]) -> None:
    kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    parts = [*constraints, "~{memory}", "~{dirflag}", "~{fpsr}", "~{flags}"]
    builder.call(ir.InlineAsm(kind, text, ",".join(parts), side_effect=True), args)


@written(1)
def configure(builder: ir.IRBuilder, scratch: ir.Value) -> None:
    """Let this thread use tiles. scratch: address of 64 bytes."""
    for n, word in enumerate(_palette()):
        builder.store(i64(word), at(builder, scratch, i64(8 * n), i64))
    _assembly(builder, "ldtilecfg ($0)", [scratch], ["r"])


@written(0)
def release(builder: ir.IRBuilder) -> None:
    _assembly(builder, "tilerelease", [], [])


ZERO = tuple(f"tilezero %tmm{n}" for n in range(4))
LOAD = (
    "tileloadd ($3,$4,1), %tmm0",
    "tileloadd 64($3,$4,1), %tmm1",
    "lea ($3,$5,1), %r11",
    "tileloadd (%r11,$4,1), %tmm2",
    "tileloadd 64(%r11,$4,1), %tmm3",
)
# Four tiles of sums, so that every tile of A and of B is used twice.
MULTIPLY = (
    "mov $0, %r8",
    "mov $1, %r9",
    "mov $2, %r10",
    "mov $$64, %rax",
    "1:",
    "tileloadd (%r8,%rax,1), %tmm4",
    "tileloadd (%r9,%rax,1), %tmm6",
    "tdpbf16ps %tmm6, %tmm4, %tmm0",
    "lea (%r9,$7,1), %r11",
    "tileloadd (%r11,%rax,1), %tmm7",
    "tdpbf16ps %tmm7, %tmm4, %tmm1",
    "lea (%r8,$6,1), %r11",
    "tileloadd (%r11,%rax,1), %tmm5",
    "tdpbf16ps %tmm6, %tmm5, %tmm2",
    "tdpbf16ps %tmm7, %tmm5, %tmm3",
    "add $$1024, %r8",
    "add $$1024, %r9",
    "dec %r10",
    "jnz 1b",
    "tilestored %tmm0, ($3,$4,1)",
    "tilestored %tmm1, 64($3,$4,1)",
    "lea ($3,$5,1), %r11",
    "tilestored %tmm2, (%r11,$4,1)",
    "tilestored %tmm3, 64(%r11,$4,1)",
)


def _product(start: tuple[str, ...], builder: ir.IRBuilder, *args: ir.Value) -> None:
    clobbered = [f"~{{{name}}}" for name in ("rax", "r8", "r9", "r10", "r11")]
    _assembly(builder, "\n".join(start + MULTIPLY), args, ["r"] * 8 + clobbered)


# c = a · b, or c += a · b, with the arguments of registers.block.
multiply, multiply_add = (written(8)(functools.partial(_product, start)) for start in (ZERO, LOAD))
