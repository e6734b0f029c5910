"""Vector code that LLVM's optimiser does not find in plain loops, written as LLVM's own operations for numba to inline.

All functions take addresses and steps in bytes as int64. LLVM lowers its vector types for every processor: a vector of 16
floats is one register with AVX-512, two with AVX2 and four with NEON.
"""

import functools
from typing import NamedTuple

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # floats in a vector
SIZE = {"float32": 4, "bfloat16": 2, "int8": 1}  # bytes
BLOCK = 64  # outputs of a tile: four vectors
CASES = (4, 3, 2, 1)  # rows of a tile: with four vectors each, four take 16 of the 32 registers of AVX-512
i8, i16, i32, i64, f32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, WORDS, PAIRS = ir.VectorType(f32, LANES), ir.VectorType(i32, LANES), ir.VectorType(i16, 2 * LANES)


def has(feature: str) -> bool:
    """Return whether the processor that numba compiles for has a feature, in LLVM's words."""
    return f"+{feature}" in (config.CPU_FEATURES or get_host_cpu_features().flatten()).split(",")


VECTORS = 4 if has("avx512f") else 1  # of a tile of several rows that are summed at once


def _pointer(kind, llvm_kind):
    @intrinsic
    def cast(typingctx, address):
        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], llvm_kind.as_pointer())

        return types.CPointer(kind)(types.int64), codegen

    return cast


int8s, int16s, int32s = _pointer(types.int8, i8), _pointer(types.int16, i16), _pointer(types.int32, i32)
uint16s, int64s, float32s = _pointer(types.uint16, i16), _pointer(types.int64, i64), _pointer(types.float32, f32)


def _bits(to, llvm_to, of):
    @intrinsic
    def cast(typingctx, x):
        return to(of), lambda context, builder, signature, args: builder.bitcast(args[0], llvm_to)

    return cast


float_of_bits, bits_of_float = _bits(types.float32, f32, types.int32), _bits(types.int32, i32, types.float32)


def at(builder, address, offset, kind):
    """Return the pointer to `kind` at a byte offset."""
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def load(builder, address, offset, kind, align=4):
    return builder.load(at(builder, address, offset, kind), align=align)


def splat(builder, x, kind):
    """Return a vector that holds x in every lane."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), x, i32(0))
    return builder.shuffle_vector(
        one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(i32, kind.count), [0] * kind.count)
    )


def multiply_add(builder, a, b, c):
    """Return a·b + c, rounded once where the processor can."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32"), [a, b, c])


def transpose_words(builder, a):
    """Transpose 16 vectors of 16 words in place."""
    distance = LANES // 2
    while distance:  # exchange the off-diagonal quarters of every square of 2 × 2 blocks
        for r in range(LANES):
            if r & distance == 0:
                upper = [c if c & distance == 0 else LANES + c - distance for c in range(LANES)]
                lower = [c + distance if c & distance == 0 else LANES + c for c in range(LANES)]
                pair = a[r], a[r + distance]
                a[r] = builder.shuffle_vector(*pair, ir.Constant(WORDS, upper))
                a[r + distance] = builder.shuffle_vector(*pair, ir.Constant(WORDS, lower))
        distance //= 2


def load_floats(builder, address, offset, stored):
    """Load 16 values of `stored`, "float32", "bfloat16" or "int8", as floats."""
    if stored == "float32":
        return load(builder, address, offset, FLOATS)
    if stored == "int8":
        return builder.sitofp(load(builder, address, offset, ir.VectorType(i8, LANES), align=1), FLOATS)
    bits = builder.zext(load(builder, address, offset, ir.VectorType(i16, LANES), align=2), WORDS)
    return builder.bitcast(builder.shl(bits, splat(builder, i32(16), WORDS)), FLOATS)


@functools.cache
def tile(stored: str, adds: bool):
    """Return the compiled product of a tile, y[rows, 64] = x[rows, K] · w[K, 64], or with `adds` y += x · w.

    Every output is a sum over k in ascending order, so its bits do not depend on the rows beside it.
    stored: dtype of w; x and y are float32. rows is one of CASES. The steps are those from one row to the next.
    """

    @intrinsic
    def product(typingctx, rows, x, x_step, w, w_step, K, y, y_step):
        def codegen(context, builder, signature, args):
            for count, vectors, start in cases(builder, args[0]):
                x, x_step, w, w_step, K, y, y_step = args[1:]
                w = builder.add(w, builder.mul(start, i64(SIZE[stored])))
                y = builder.add(y, builder.mul(start, i64(4)))
                _tile(builder, count, vectors, stored, adds, x, x_step, w, w_step, K, y, y_step)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    return product


def cases(builder, rows):
    """Yield (rows, vectors, first output). What the caller writes for a case runs if `rows` is that, for every first output."""
    end = builder.function.append_basic_block("end")
    switch = builder.switch(rows, end)
    for case in CASES:
        block = builder.function.append_basic_block(f"rows{case}")
        switch.add_case(i64(case), block)
        builder.position_at_end(block)
        vectors = BLOCK // LANES if case == 1 else VECTORS
        with cgutils.for_range(builder, i64(BLOCK // LANES // vectors)) as loop:
            yield case, vectors, builder.mul(loop.index, i64(vectors * LANES))
        builder.branch(end)
    builder.position_at_end(end)


def _tile(builder, rows, vectors, stored, adds, x, x_step, w, w_step, K, y, y_step):
    places = [(m, v, builder.add(builder.mul(y_step, i64(m)), i64(4 * LANES * v))) for m in range(rows) for v in range(vectors)]
    sums = {(m, v): cgutils.alloca_once(builder, FLOATS) for m, v, _ in places}
    for m, v, offset in places:
        start = load(builder, y, offset, FLOATS) if adds else ir.Constant(FLOATS, [0.0] * LANES)
        builder.store(start, sums[m, v])
    with cgutils.for_range(builder, K) as loop:
        here = builder.mul(loop.index, w_step)
        ws = [load_floats(builder, w, builder.add(here, i64(SIZE[stored] * LANES * v)), stored) for v in range(vectors)]
        for m in range(rows):
            offset = builder.add(builder.mul(x_step, i64(m)), builder.mul(loop.index, i64(4)))
            x_m = splat(builder, load(builder, x, offset, f32), FLOATS)
            for v in range(vectors):
                builder.store(multiply_add(builder, x_m, ws[v], builder.load(sums[m, v])), sums[m, v])
    for m, v, offset in places:
        builder.store(builder.load(sums[m, v]), at(builder, y, offset, FLOATS), align=4)


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
def integer_tile(kind: str):
    """Return the compiled product of a tile of integer activations and weights, in chunks of the K inputs.

    y[m, n] = Σ over chunks c of x_scale[m, c] · w_scale[c // share, n] · (start[m, c] + Σ over k in c of x[m, k] · w[k, n]).
    The inner sums are exact in int32; the outer ones are in ascending order.
    kind: one of KINDS. x: int16, with "w8a8" int8, [rows, K]; w: a block of packed.py; x_scale: float32 [rows, chunks];
    start: distance in bytes from x_scale to int32 [rows, chunks], only of "w8a8"; w_scale: bfloat16 [groups, 64]. K and chunk
    are multiples of 4.
    """

    @intrinsic
    def product(typingctx, rows, x, x_step, w, K, chunk, x_scale, x_scale_step, start, w_scale, share, y, y_step):
        def codegen(context, builder, signature, args):
            for count, vectors, first in cases(builder, args[0]):
                x, x_step, w, K, chunk, x_scale, x_scale_step, start, w_scale, share, y, y_step = args[1:]
                w = builder.add(w, builder.mul(first, i64(KINDS[kind].stride // BLOCK)))
                w_scale = builder.add(w_scale, builder.mul(first, i64(2)))
                y = builder.add(y, builder.mul(first, i64(4)))
                scales = x_scale, x_scale_step, start, w_scale, share
                _integer_tile(builder, count, vectors, KINDS[kind], x, x_step, w, K, chunk, *scales, y, y_step)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 13), codegen

    return product


def _integer_tile(
    builder, rows, vectors, kind, x, x_step, w, K, chunk, x_scale, x_scale_step, start, w_scale, share, y, y_step
):
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


def _integers(builder, w, offset, kind):
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


def _add_bytes(builder, total, w, x):
    """Return total + the sums of products of four unsigned bytes of w and four signed bytes of x, all as int32."""
    if has("avx512vnni"):
        dot = ir.FunctionType(WORDS, [WORDS] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, dot, "llvm.x86.avx512.vpdpbusd.512"), [total, w, x])
    low, eight = ir.Constant(WORDS, [0x00FF00FF] * LANES), ir.Constant(PAIRS, [8] * 2 * LANES)
    x = builder.bitcast(x, PAIRS)
    total = _add_pairs(builder, total, builder.bitcast(builder.and_(w, low), PAIRS), builder.ashr(builder.shl(x, eight), eight))
    w = builder.and_(builder.lshr(w, ir.Constant(WORDS, [8] * LANES)), low)
    return _add_pairs(builder, total, builder.bitcast(w, PAIRS), builder.ashr(x, eight))


def _add_pairs(builder, total, w, x):
    """Return total + the sums of products of two int16 of w and x, as int32."""
    return builder.add(total, _pairwise(builder, builder.bitcast(x, PAIRS), w))


def _pairwise(builder, a, b):
    """Return the sums of products of neighbours as int32: pmaddwd, in the form that LLVM recognises."""
    doubled = ir.VectorType(i32, 2 * LANES)
    product = builder.mul(builder.sext(a, doubled), builder.sext(b, doubled))
    nothing = ir.Constant(doubled, ir.Undefined)
    even, odd = (
        builder.shuffle_vector(product, nothing, ir.Constant(WORDS, list(range(start, 2 * LANES, 2)))) for start in (0, 1)
    )
    return builder.add(even, odd)


@functools.cache
def converted(stored: str):
    """Return the compiled copy of 16 values of `stored` to floats."""

    @intrinsic
    def convert(typingctx, address, out):
        def codegen(context, builder, signature, args):
            builder.store(load_floats(builder, args[0], i64(0), stored), at(builder, args[1], i64(0), FLOATS), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return convert


@functools.cache
def scalar(stored: str):
    """Return the compiled load of one value of `stored` as a float."""

    @intrinsic
    def one(typingctx, address):
        def codegen(context, builder, signature, args):
            if stored == "float32":
                return load(builder, args[0], i64(0), f32)
            if stored == "int8":
                return builder.sitofp(load(builder, args[0], i64(0), i8, align=1), f32)
            bits = builder.zext(load(builder, args[0], i64(0), i16, align=2), i32)
            return builder.bitcast(builder.shl(bits, i32(16)), f32)

        return types.float32(types.int64), codegen

    return one


@intrinsic
def largest(typingctx, address, count):
    """Return the maximum of `count` floats, a multiple of 32. NaN is ignored."""

    def codegen(context, builder, signature, args):
        tops = [cgutils.alloca_once(builder, FLOATS) for _ in range(2)]
        for top in tops:
            builder.store(ir.Constant(FLOATS, [float("-inf")] * LANES), top)
        with cgutils.for_range(builder, builder.sdiv(args[1], i64(2 * LANES))) as loop:
            for n, top in enumerate(tops):
                offset = builder.add(builder.mul(loop.index, i64(8 * LANES)), i64(4 * LANES * n))
                builder.store(_greater(builder, load(builder, args[0], offset, FLOATS), builder.load(top)), top)
        return _top(builder, _greater(builder, *map(builder.load, tops)))

    return types.float32(types.int64, types.int64), codegen


def _greater(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _top(builder, x):
    """Return the largest number of a vector."""
    distance = LANES // 2
    while distance:
        turned = ir.Constant(WORDS, [(lane + distance) % LANES for lane in range(LANES)])
        x = _greater(builder, builder.shuffle_vector(x, x, turned), x)
        distance //= 2
    return builder.extract_element(x, i32(0))


@njit(error_model="numpy")
def rows_of(left):
    """Return the rows of the next tile when so many are left, at least 1."""
    return min(left, 4)


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], i8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, i32(0), i32(2), i32(1)])  # to read, into the second cache, data
        return context.get_dummy_value()

    return types.void(types.int64), codegen
