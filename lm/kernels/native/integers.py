"""The product of a tile of integer activations and weights, in LLVM's operations (vectors.py), exact in int32."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils

from lm.kernels.native.vectors import (
    BLOCK,
    FLOATS,
    LANES,
    PAIRS,
    WORDS,
    at,
    cases,
    f32,
    has,
    i8,
    i32,
    i64,
    load,
    load_floats,
    multiply_add,
    splat,
    written,
)


class Integers(NamedTuple):
    """How activations are multiplied with integer weights.

    activation: bytes of one. per: inputs in one step. stride: bytes of their weights for 64 outputs. total: whether sums start
    at a number that is given with the scales, instead of 0.
    """

    activation: int
    per: int
    stride: int
    total: bool


KINDS = {"int8": Integers(2, 2, 128, False), "int4": Integers(2, 4, 128, False), "w8a8": Integers(1, 4, 256, True)}


@functools.cache
def integer_tile(kind: str) -> Callable[..., None]:
    """Return the compiled product of a tile of integer activations and weights, in chunks of the K inputs.

    y[m, n] = Σ over chunks c of x_scale[m, c] · w_scale[c // share, n] · (start[m, c] + Σ over k in c of x[m, k] · w[k, n]).
    The inner sums are exact in int32; the outer ones are in ascending order.
    kind: one of KINDS. x: int16, with "w8a8" int8, [rows, K]; w: a block of packed.py; x_scale: float32 [rows, chunks];
    start: distance in bytes from x_scale to int32 [rows, chunks], only of "w8a8"; w_scale: bfloat16 [groups, 64]. K and chunk
    are multiples of 4.
    """

    @written(13)
    def product(builder: ir.IRBuilder, rows: ir.Value, *args: ir.Value) -> None:
        x, x_step, w, K, chunk, x_scale, x_scale_step, start, w_scale, share, y, y_step = args
        for count, vectors, first in cases(builder, rows):
            sizes = ((w, KINDS[kind].stride // BLOCK), (w_scale, 2), (y, 4))
            w_here, scale_here, y_here = (builder.add(a, builder.mul(first, i64(size))) for a, size in sizes)
            scales = x_scale, x_scale_step, start, scale_here, share
            _integer_tile(builder, count, vectors, KINDS[kind], x, x_step, w_here, K, chunk, *scales, y_here, y_step)

    return product


def _integer_tile(
    builder: ir.IRBuilder,
    rows: int,
    vectors: int,
    kind: Integers,
    x: ir.Value,
    x_step: ir.Value,
    w: ir.Value,
    K: ir.Value,
    chunk: ir.Value,
    x_scale: ir.Value,
    x_scale_step: ir.Value,
    start: ir.Value,
    w_scale: ir.Value,
    share: ir.Value,
    y: ir.Value,
    y_step: ir.Value,
) -> None:
    per = kind.per
    cells = [(m, v) for m in range(rows) for v in range(vectors)]
    totals, sums = ({cell: cgutils.alloca_once(builder, kind) for cell in cells} for kind in (FLOATS, WORDS))
    for cell in cells:
        builder.store(ir.Constant(FLOATS, [0.0] * LANES), totals[cell])
    chunks = builder.sdiv(builder.add(K, builder.sub(chunk, i64(1))), chunk)
    with cgutils.for_range(builder, chunks) as outer:
        first = builder.mul(outer.index, chunk)
        left = builder.sub(K, first)
        size = builder.select(builder.icmp_signed("<", left, chunk), left, chunk)
        for m in range(rows):
            begin = ir.Constant(WORDS, [0] * LANES)
            if kind.total:
                offset = builder.add(start, builder.add(builder.mul(x_scale_step, i64(m)), builder.mul(outer.index, i64(4))))
                begin = splat(builder, load(builder, x_scale, offset, i32), WORDS)
            for v in range(vectors):
                builder.store(begin, sums[m, v])
        with cgutils.for_range(builder, builder.sdiv(size, i64(per))) as loop:
            k = builder.add(first, builder.mul(loop.index, i64(per)))
            here = builder.mul(builder.sdiv(k, i64(per)), i64(kind.stride))
            ws = [_integers(builder, w, builder.add(here, i64(kind.stride // 4 * v)), kind) for v in range(vectors)]
            for word in range(len(ws[0])):
                for m in range(rows):
                    offset = builder.mul(builder.add(k, i64(word * per // len(ws[0]))), i64(kind.activation))
                    offset = builder.add(builder.mul(x_step, i64(m)), offset)
                    x_m = splat(builder, load(builder, x, offset, i32), WORDS)
                    for v in range(vectors):
                        add = _add_bytes if kind.activation == 1 else _add_pairs
                        builder.store(add(builder, builder.load(sums[m, v]), ws[v][word], x_m), sums[m, v])
        scales = builder.mul(builder.sdiv(outer.index, share), i64(128))
        ws = [load_floats(builder, w_scale, builder.add(scales, i64(2 * LANES * v)), "bfloat16") for v in range(vectors)]
        for m in range(rows):
            offset = builder.add(builder.mul(x_scale_step, i64(m)), builder.mul(outer.index, i64(4)))
            x_m = splat(builder, load(builder, x_scale, offset, f32), FLOATS)
            for v in range(vectors):
                exact = builder.sitofp(builder.load(sums[m, v]), FLOATS)
                total = multiply_add(builder, exact, builder.fmul(x_m, ws[v]), builder.load(totals[m, v]))
                builder.store(total, totals[m, v])
    for m, v in cells:
        offset = builder.add(builder.mul(y_step, i64(m)), i64(4 * LANES * v))
        builder.store(builder.load(totals[m, v]), at(builder, y, offset, FLOATS), align=4)


def _integers(builder: ir.IRBuilder, w: ir.Value, offset: ir.Value, kind: Integers) -> list[ir.Value]:
    """Load weights of 16 outputs.

    For "w8a8" as they are; else as int16 pairs, one vector for int8, two for int4 (the low halves of bytes, then the high).
    """
    if kind.activation == 1:
        return [load(builder, w, offset, WORDS, align=1)]
    wide = builder.sext(load(builder, w, offset, ir.VectorType(i8, 2 * LANES), align=1), PAIRS)
    if kind.per == 2:
        return [wide]
    low = builder.ashr(builder.shl(wide, ir.Constant(PAIRS, [12] * 2 * LANES)), ir.Constant(PAIRS, [12] * 2 * LANES))
    return [low, builder.ashr(wide, ir.Constant(PAIRS, [4] * 2 * LANES))]


def _add_bytes(builder: ir.IRBuilder, total: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """Return total + the sums of products of four unsigned bytes of w and four signed bytes of x, all as int32."""
    if has("avx512vnni"):
        dot = ir.FunctionType(WORDS, [WORDS] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, dot, "llvm.x86.avx512.vpdpbusd.512"), [total, w, x])
    low, eight = ir.Constant(WORDS, [0x00FF00FF] * LANES), ir.Constant(PAIRS, [8] * 2 * LANES)
    x = builder.bitcast(x, PAIRS)
    total = _add_pairs(builder, total, builder.bitcast(builder.and_(w, low), PAIRS), builder.ashr(builder.shl(x, eight), eight))
    w = builder.and_(builder.lshr(w, ir.Constant(WORDS, [8] * LANES)), low)
    return _add_pairs(builder, total, builder.bitcast(w, PAIRS), builder.ashr(x, eight))


def _add_pairs(builder: ir.IRBuilder, total: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """Return total + the sums of products of two int16 of w and x, as int32."""
    return builder.add(total, _pairwise(builder, builder.bitcast(x, PAIRS), w))


def _pairwise(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """Return the sums of products of neighbours as int32: pmaddwd, in the form that LLVM recognises."""
    doubled = ir.VectorType(i32, 2 * LANES)
    product = builder.mul(builder.sext(a, doubled), builder.sext(b, doubled))
    nothing = ir.Constant(doubled, ir.Undefined)
    even, odd = (
        builder.shuffle_vector(product, nothing, ir.Constant(WORDS, list(range(start, 2 * LANES, 2)))) for start in (0, 1)
    )
    return builder.add(even, odd)
