"""Rows that lie apart in memory, turned into vectors over the rows: compiled functions for keys in pages.

A vector holds one value of each of 16 rows. A step reads as many values of a row as fill a register: 16, of bfloat16 32.
"""

import functools
from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils

from lm.kernels.native.vectors import (
    FLOATS,
    LANES,
    SIZE,
    WORDS,
    at,
    f32,
    i32,
    i64,
    load,
    load_floats,
    multiply_add,
    splat,
    transpose_words,
    written,
)

MAX = 4  # vectors that are multiplied at once
STEP = {"float32": LANES, "bfloat16": 2 * LANES, "int8": LANES}  # values of a row


@functools.cache
def transposed(stored: str) -> Callable[[int, int, int, int], None]:
    """Return the compiled transpose of a step of 16 rows: out[c, r] = row r [c], as floats.

    rows: address of the rows' addresses. offset: bytes to the first value in each. stored: their dtype.
    """

    @written(4)
    def transpose(builder: ir.IRBuilder, rows: ir.Value, offset: ir.Value, out: ir.Value, out_step: ir.Value) -> None:
        for c, column in enumerate(_columns(builder, rows, offset, stored)):
            builder.store(column, at(builder, out, builder.mul(out_step, i64(c)), FLOATS), align=4)

    return transpose


@functools.cache
def products(stored: str) -> Callable[..., None]:
    """Return the compiled products of a few vectors and 16 rows: y[m, r] = Σ over k of x[m, k] · row r [k], in ascending order.

    count: vectors, 1 to MAX. x, y: float32, with steps in bytes. K: a multiple of STEP[stored].
    """

    return written(8)(functools.partial(_products, stored))


def _products(
    stored: str,
    builder: ir.IRBuilder,
    count: ir.Value,
    rows: ir.Value,
    offset: ir.Value,
    K: ir.Value,
    x: ir.Value,
    x_step: ir.Value,
    y: ir.Value,
    y_step: ir.Value,
) -> None:
    """Multiply MAX vectors: if there are fewer, the last one several times, so that there is one case to compile."""
    sums = [cgutils.alloca_once(builder, FLOATS) for _ in range(MAX)]
    last = builder.sub(count, i64(1))
    vectors = [builder.select(builder.icmp_signed("<", i64(m), last), i64(m), last) for m in range(MAX)]
    for total in sums:
        builder.store(ir.Constant(FLOATS, [0.0] * LANES), total)
    with cgutils.for_range(builder, builder.sdiv(K, i64(STEP[stored]))) as loop:
        first = builder.mul(loop.index, i64(STEP[stored]))
        here = builder.add(offset, builder.mul(first, i64(SIZE[stored])))
        for c, column in enumerate(_columns(builder, rows, here, stored)):
            for m, total in enumerate(sums):
                place = builder.add(builder.mul(x_step, vectors[m]), builder.mul(builder.add(first, i64(c)), i64(4)))
                x_m = splat(builder, load(builder, x, place, f32), FLOATS)
                builder.store(multiply_add(builder, x_m, column, builder.load(total)), total)
    for m, total in enumerate(sums):
        builder.store(builder.load(total), at(builder, y, builder.mul(y_step, vectors[m]), FLOATS), align=4)


def _columns(builder: ir.IRBuilder, rows: ir.Value, offset: ir.Value, stored: str) -> list[ir.Value]:
    """Return the vectors over 16 rows of a step's values, as floats."""
    halves = stored == "bfloat16"
    a = []
    for r in range(LANES):
        row = load(builder, rows, i64(8 * r), i64, align=8)
        a.append(load(builder, row, offset, WORDS, align=2) if halves else load_floats(builder, row, offset, stored))
    transpose_words(builder, a)
    if not halves:
        return a
    # A word holds two neighbours: the first in its low half.
    sixteen, high = splat(builder, i32(16), WORDS), ir.Constant(WORDS, [0xFFFF0000 - (1 << 32)] * LANES)
    pairs = ((builder.shl(words, sixteen), builder.and_(words, high)) for words in a)
    return [builder.bitcast(column, FLOATS) for pair in pairs for column in pair]
