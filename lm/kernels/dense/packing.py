"""Groups of tiles, the layout in which the kernels of this folder multiply matrices.

A tile has 16 rows of 16 words of four bytes: a word is a float, or a pair of bfloat16. A tile of A has 16 of its rows, with the
inputs of a row side by side. A tile of B has 16 words of inputs, each with one word for each of 16 columns. A group of 16 rows
of A, or columns of B, is one tile after the other along the inputs.
"""

import functools
from collections.abc import Callable

import llvmlite.binding as llvm
from llvmlite import ir

from lm.kernels.native.vectors import FLOATS, LANES, PAIRS, WORDS, at, i16, i32, i64, load, outlined, transpose_words, written

llvm.initialize_native_asmparser()

SIDE = 16  # rows of a tile
TILE = 1024  # bytes of one


@functools.cache
def packer(stored: str, packed: str, inputs_adjacent: bool, b: bool) -> Callable[[int, int, int], None]:
    """Return the compiled copy of 16 rows or columns into a tile, with 16 inputs of float32, or 32 of bfloat16.

    stored, packed: "float32" or "bfloat16", of the source and of the tile; floats are rounded. inputs_adjacent: whether the
    inputs of a row lie side by side, and rows a step apart; else the other way around. b: whether it is a tile of B.
    """

    @written(3)
    def pack(builder: ir.IRBuilder, *args: ir.Value) -> None:
        name = f"pack.{stored}.{packed}.{'adjacent' if inputs_adjacent else 'apart'}.{'b' if b else 'a'}"
        outlined(builder, name, args, functools.partial(_pack, stored, packed, inputs_adjacent, b))

    return pack


def _pack(
    stored: str,
    packed: str,
    inputs_adjacent: bool,
    b: bool,
    builder: ir.IRBuilder,
    source: ir.Value,
    step: ir.Value,
    tile: ir.Value,
) -> None:
    if packed == "float32":
        vectors = [load(builder, source, builder.mul(step, i64(n)), WORDS) for n in range(SIDE)]
    elif inputs_adjacent:
        vectors = [_row(builder, source, builder.mul(step, i64(n)), stored) for n in range(SIDE)]
    else:
        vectors = [_pairs(builder, source, builder.mul(step, i64(2 * n)), step, stored) for n in range(SIDE)]
    if inputs_adjacent == b:
        transpose_words(builder, vectors)
    for n, vector in enumerate(vectors):
        builder.store(vector, at(builder, tile, i64(64 * n), WORDS), align=4)


def _row(builder: ir.IRBuilder, source: ir.Value, offset: ir.Value, stored: str) -> ir.Value:
    """Return 32 adjacent values as bfloat16 in a vector of words."""
    if stored == "bfloat16":
        return load(builder, source, offset, WORDS, align=2)
    return _rounded(builder, *(load(builder, source, builder.add(offset, i64(n)), FLOATS) for n in (0, 64)))


def _pairs(builder: ir.IRBuilder, source: ir.Value, offset: ir.Value, step: ir.Value, stored: str) -> ir.Value:
    """Return 16 pairs as bfloat16 in a vector of words: one of a row, one of the next."""
    next_ = builder.add(offset, step)
    order = [n // 2 + LANES * (n % 2) for n in range(2 * LANES)]
    interleave = ir.Constant(ir.VectorType(i32, 2 * LANES), order)
    if stored == "bfloat16":
        half = ir.VectorType(i16, LANES)
        rows = load(builder, source, offset, half, align=2), load(builder, source, next_, half, align=2)
        return builder.bitcast(builder.shuffle_vector(*rows, interleave), WORDS)
    rows = builder.bitcast(_rounded(builder, *(load(builder, source, place, FLOATS) for place in (offset, next_))), PAIRS)
    return builder.bitcast(builder.shuffle_vector(rows, rows, interleave), WORDS)


def _rounded(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    """Return two vectors of floats as bfloat16 in one vector of words; halves are rounded to even."""
    kind = ir.FunctionType(WORDS, [FLOATS, FLOATS])
    return builder.call(ir.InlineAsm(kind, "vcvtne2ps2bf16 $1, $2, $0", "=v,v,v"), [low, high])


@written(2)
def round_row(builder: ir.IRBuilder, floats: ir.Value, out: ir.Value) -> None:
    """Write 32 floats as bfloat16."""
    both = (load(builder, floats, i64(n), FLOATS) for n in (0, 64))
    builder.store(_rounded(builder, *both), at(builder, out, i64(0), WORDS), align=2)


@written(2)
def copy_row(builder: ir.IRBuilder, floats: ir.Value, out: ir.Value) -> None:
    """Write 32 floats."""
    for n in (0, 64):
        builder.store(load(builder, floats, i64(n), FLOATS), at(builder, out, i64(n), FLOATS), align=4)
