"""Products of two pairs of groups (packing.py) in vector registers: bfloat16 with AVX-512 BF16, float32 with AVX-512 or AVX2.

Sums of a few rows × columns stay in registers along all inputs. Every sum adds its inputs in ascending order, in bfloat16 in
pairs, so its bits do not depend on the rows and columns beside it.
"""

import functools
from collections.abc import Callable, Sequence

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils

from lm.kernels.dense.packing import SIDE, TILE
from lm.kernels.native.vectors import (
    FLOATS,
    LANES,
    WORDS,
    at,
    has,
    i32,
    i64,
    load,
    multiply_add,
    outlined,
    prefetch_line,
    splat,
    written,
)

llvm.initialize_native_asmparser()

WIDE = has("avx512f")
ROWS, VECTORS = (8, 2) if WIDE else (6, 1)  # of sums: 16 of the 32 registers of AVX-512, 12 of the 16 of AVX2
UNROLLED = 4  # words of a row of a tile
LINE = 64  # bytes of the cache's


def block(stored: str, adds: bool) -> Callable[..., None]:
    """Return the compiled product of two groups of A and of B, c[32, 32] = a · b, or with `adds` c += a · b.

    Its arguments are a, b, steps (tiles of a group, at least 1), c, c_step (bytes from a row of c to the next), c_half (16 of
    them), a_half and b_half (bytes from a group to the next).
    """

    @written(8)
    def write(builder: ir.IRBuilder, *args: ir.Value) -> None:
        outlined(builder, f"block.{stored}.{adds}", args, functools.partial(_block, stored, adds))

    return write


def _block(
    stored: str,
    adds: bool,
    builder: ir.IRBuilder,
    a: ir.Value,
    b: ir.Value,
    steps: ir.Value,
    c: ir.Value,
    c_step: ir.Value,
    c_half: ir.Value,
    a_half: ir.Value,
    b_half: ir.Value,
) -> None:
    parts = [(first, vector) for first in range(0, SIDE, ROWS) for vector in range(0, 2, VECTORS)]
    with cgutils.for_range(builder, i64(2)) as half:
        a_here = builder.add(a, builder.mul(a_half, half.index))
        c_here = builder.add(c, builder.mul(c_half, half.index))
        next_b = builder.add(b, builder.add(builder.mul(b_half, i64(2)), builder.mul(half.index, i64(2 * LINE))))
        soon = [builder.add(next_b, x) for x in (i64(0), i64(LINE), b_half, builder.add(b_half, i64(LINE)))]
        for n, (first, vector) in enumerate(parts):
            b_here = [builder.add(b, builder.mul(b_half, i64(v))) for v in range(vector, vector + VECTORS)]
            places = {
                (m, v): at(builder, c_here, builder.add(builder.mul(c_step, i64(m)), i64(4 * LANES * (vector + v))), FLOATS)
                for m in range(first, min(first + ROWS, SIDE))
                for v in range(VECTORS)
            }
            _sums(builder, stored, adds, a_here, b_here, steps, places, soon[n :: len(parts)])


def _sums(
    builder: ir.IRBuilder,
    stored: str,
    adds: bool,
    a: ir.Value,
    b: Sequence[ir.Value],
    steps: ir.Value,
    places: dict[tuple[int, int], ir.Value],
    soon: Sequence[ir.Value],
) -> None:
    """Write the sums of some rows of A and vectors of columns of B.

    places: where each belongs, by row and vector. soon: addresses of lines to prefetch, one in four of each tile after them.
    """
    sums = {key: cgutils.alloca_once(builder, FLOATS) for key in places}
    for key, place in places.items():
        builder.store(ir.Constant(FLOATS, [0.0] * LANES), sums[key])
        prefetch_line(builder, builder.ptrtoint(place, i64), writes=True)  # it arrives while the products are computed
    with cgutils.for_range(builder, steps) as step, cgutils.for_range(builder, i64(LANES // UNROLLED)) as part:
        start = builder.mul(step.index, i64(TILE))
        a_word = builder.add(a, builder.add(start, builder.mul(part.index, i64(4 * UNROLLED))))
        b_word = builder.add(start, builder.mul(part.index, i64(4 * LANES * UNROLLED)))
        for line in soon:
            prefetch_line(builder, builder.add(line, builder.add(start, builder.mul(part.index, i64(LINE * UNROLLED)))))
        for word in range(UNROLLED):
            columns = [load(builder, builder.add(vector, b_word), i64(4 * LANES * word), WORDS) for vector in b]
            for m in sorted({m for m, _ in places}):
                row = splat(builder, load(builder, a_word, i64(4 * (LANES * m + word)), i32), WORDS)
                for v, column in enumerate(columns):
                    builder.store(_added(builder, stored, builder.load(sums[m, v]), row, column), sums[m, v])
    for key, place in places.items():
        total = builder.load(sums[key])
        builder.store(builder.fadd(builder.load(place, align=4), total) if adds else total, place, align=4)


def _added(builder: ir.IRBuilder, stored: str, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """Return total + a · b by word: of floats, or of pairs of bfloat16."""
    if stored == "float32":
        return multiply_add(builder, builder.bitcast(a, FLOATS), builder.bitcast(b, FLOATS), total)
    kind = ir.FunctionType(FLOATS, [FLOATS, WORDS, WORDS])
    return builder.call(ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v"), [total, a, b])
