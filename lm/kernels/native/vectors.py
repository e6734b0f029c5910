"""Vector code that LLVM's optimiser does not find in plain loops, written as LLVM's own operations for numba to inline.

All functions take addresses and steps in bytes as int64. LLVM lowers its vector types for every processor: a vector of 16
floats is one register with AVX-512, two with AVX2 and four with NEON.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, extending, njit, types
from numba.core import cgutils
from numba.core.cpu import CPUContext
from numba.core.typing import Context, Signature

LANES = 16  # floats in a vector
SIZE = {"float32": 4, "bfloat16": 2, "int8": 1}  # bytes
BLOCK = 64  # outputs of a tile: four vectors
CASES = (4, 3, 2, 1)  # rows of a tile: with four vectors each, four take 16 of the 32 registers of AVX-512
i8, i16, i32, i64, f32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, WORDS, PAIRS = ir.VectorType(f32, LANES), ir.VectorType(i32, LANES), ir.VectorType(i16, 2 * LANES)

Pointer: TypeAlias = np.ndarray  # the numbers at an address: compiled code indexes them like an array without bounds
Lower: TypeAlias = Callable[[CPUContext, ir.IRBuilder, Signature, Sequence[ir.Value]], ir.Value]
Intrinsic: TypeAlias = tuple[Signature, Lower]  # what numba wants of a function that writes LLVM's operations

# A checker sees such a function as its callers do: they pass numbers, not numba's types of them.
intrinsic: Callable[[Callable[..., Intrinsic]], Callable[..., Any]] = extending.intrinsic


def written(count: int, returns: types.Type = types.void) -> Callable[[Callable[..., ir.Value | None]], Callable[..., Any]]:
    """Return a decorator that makes a compiled function of `count` int64 of a function that writes its LLVM operations.

    That function gets the builder and the arguments, and returns the value of type `returns`, or None for void.
    """

    def declare(write: Callable[..., ir.Value | None]) -> Callable[..., Any]:
        def function(typingctx: Context, *kinds: types.Type) -> Intrinsic:
            def codegen(context: CPUContext, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
                value = write(builder, *args)
                return context.get_dummy_value() if value is None else value

            return returns(*[types.int64] * count), codegen

        names = ["typingctx", *[f"x{n}" for n in range(count)]]  # numba would pass *kinds as one tuple
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return intrinsic(function)

    return declare


def has(feature: str) -> bool:
    """Return whether the processor that numba compiles for has a feature, in LLVM's words."""
    return f"+{feature}" in (vars(config)["CPU_FEATURES"] or get_host_cpu_features().flatten()).split(",")


VECTORS = 4 if has("avx512f") else 1  # of a tile of several rows that are summed at once


def _pointer(kind: types.Type, llvm_kind: ir.Type) -> Callable[[int], Pointer]:
    return written(1, types.CPointer(kind))(lambda builder, address: builder.inttoptr(address, llvm_kind.as_pointer()))


int8s, int16s, int32s = _pointer(types.int8, i8), _pointer(types.int16, i16), _pointer(types.int32, i32)
uint16s, int64s, float32s = _pointer(types.uint16, i16), _pointer(types.int64, i64), _pointer(types.float32, f32)


def _bits(to: types.Type, llvm_to: ir.Type, of: types.Type) -> Callable[[Any], Any]:
    @intrinsic
    def cast(typingctx: Context, x: types.Type) -> Intrinsic:
        return to(of), lambda context, builder, signature, args: builder.bitcast(args[0], llvm_to)

    return cast


float_of_bits, bits_of_float = _bits(types.float32, f32, types.int32), _bits(types.int32, i32, types.float32)


def at(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value, kind: ir.Type) -> ir.Value:
    """Return the pointer to `kind` at a byte offset."""
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def load(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value, kind: ir.Type, align: int = 4) -> ir.Value:
    return builder.load(at(builder, address, offset, kind), align=align)


def splat(builder: ir.IRBuilder, x: ir.Value, kind: ir.VectorType) -> ir.Value:
    """Return a vector that holds x in every lane."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), x, i32(0))
    return builder.shuffle_vector(
        one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(i32, kind.count), [0] * kind.count)
    )


def outlined(builder: ir.IRBuilder, name: str, args: Sequence[ir.Value], write: Callable[..., None]) -> None:
    """Call what write(builder, *args) writes, as a function of its own: LLVM takes long over copies of it in its callers."""
    kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    if function.is_declaration:
        function.linkage = "internal"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block())
        write(inside, *function.args)
        inside.ret_void()
    builder.call(function, args)


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """Return a·b + c, rounded once where the processor can."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32"), [a, b, c])


def transpose_words(builder: ir.IRBuilder, a: list[ir.Value]) -> None:
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


def load_floats(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value, stored: str) -> ir.Value:
    """Load 16 values of `stored`, "float32", "bfloat16" or "int8", as floats."""
    if stored == "float32":
        return load(builder, address, offset, FLOATS)
    if stored == "int8":
        return builder.sitofp(load(builder, address, offset, ir.VectorType(i8, LANES), align=1), FLOATS)
    bits = builder.zext(load(builder, address, offset, ir.VectorType(i16, LANES), align=2), WORDS)
    return builder.bitcast(builder.shl(bits, splat(builder, i32(16), WORDS)), FLOATS)


@functools.cache
def tile(stored: str, adds: bool) -> Callable[..., None]:
    """Return the compiled product of a tile, y[rows, 64] = x[rows, K] · w[K, 64], or with `adds` y += x · w.

    Every output is a sum over k in ascending order, so its bits do not depend on the rows beside it.
    stored: dtype of w; x and y are float32. rows is one of CASES. The steps are those from one row to the next.
    """

    @written(8)
    def product(builder: ir.IRBuilder, rows: ir.Value, *args: ir.Value) -> None:
        x, x_step, w, w_step, K, y, y_step = args
        for count, vectors, start in cases(builder, rows):
            w_here, y_here = (builder.add(a, builder.mul(start, i64(size))) for a, size in ((w, SIZE[stored]), (y, 4)))
            _tile(builder, count, vectors, stored, adds, x, x_step, w_here, w_step, K, y_here, y_step)

    return product


def cases(builder: ir.IRBuilder, rows: ir.Value) -> Iterator[tuple[int, int, ir.Value]]:
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


def _tile(
    builder: ir.IRBuilder,
    rows: int,
    vectors: int,
    stored: str,
    adds: bool,
    x: ir.Value,
    x_step: ir.Value,
    w: ir.Value,
    w_step: ir.Value,
    K: ir.Value,
    y: ir.Value,
    y_step: ir.Value,
) -> None:
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


@functools.cache
def converted(stored: str) -> Callable[[int, int], None]:
    """Return the compiled copy of 16 values of `stored` to floats."""

    @written(2)
    def convert(builder: ir.IRBuilder, address: ir.Value, out: ir.Value) -> None:
        builder.store(load_floats(builder, address, i64(0), stored), at(builder, out, i64(0), FLOATS), align=4)

    return convert


@functools.cache
def scalar(stored: str) -> Callable[[int], np.float32]:
    """Return the compiled load of one value of `stored` as a float."""

    @written(1, types.float32)
    def one(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        if stored == "float32":
            return load(builder, address, i64(0), f32)
        if stored == "int8":
            return builder.sitofp(load(builder, address, i64(0), i8, align=1), f32)
        bits = builder.zext(load(builder, address, i64(0), i16, align=2), i32)
        return builder.bitcast(builder.shl(bits, i32(16)), f32)

    return one


@written(2, types.float32)
def largest(builder: ir.IRBuilder, address: ir.Value, count: ir.Value) -> ir.Value:
    """Return the maximum of `count` floats, a multiple of 32. NaN is ignored."""
    tops = [cgutils.alloca_once(builder, FLOATS) for _ in range(2)]
    for top in tops:
        builder.store(ir.Constant(FLOATS, [float("-inf")] * LANES), top)
    with cgutils.for_range(builder, builder.sdiv(count, i64(2 * LANES))) as loop:
        for n, top in enumerate(tops):
            offset = builder.add(builder.mul(loop.index, i64(8 * LANES)), i64(4 * LANES * n))
            builder.store(_greater(builder, load(builder, address, offset, FLOATS), builder.load(top)), top)
    return _top(builder, _greater(builder, *map(builder.load, tops)))


def _greater(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _top(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return the largest number of a vector."""
    distance = LANES // 2
    while distance:
        turned = ir.Constant(WORDS, [(lane + distance) % LANES for lane in range(LANES)])
        x = _greater(builder, builder.shuffle_vector(x, x, turned), x)
        distance //= 2
    return builder.extract_element(x, i32(0))


@njit(error_model="numpy")
def rows_of(left: int) -> int:
    """Return the rows of the next tile when so many are left, at least 1."""
    return min(left, 4)


def prefetch_line(builder: ir.IRBuilder, address: ir.Value, writes: bool = False) -> None:
    """Ask for the cache line at an address."""
    pointer = builder.inttoptr(address, i8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, i32(int(writes)), i32(2), i32(1)])  # to read, into the second cache, data


prefetch = written(1)(prefetch_line)
