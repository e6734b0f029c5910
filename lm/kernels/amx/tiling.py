"""Bring matrices into tiles (lm/kernels/amx/tiles.py) and results out of them, their edges included."""

from numba import njit

from lm.kernels.amx.tiles import DEEP, SIDE, TILE, copy_row, multiply, multiply_add, packer, round_row
from lm.kernels.native.vectors import float32s, int8s, int64s, uint16s

PAIR = 2 * SIDE  # rows and columns of the smallest product

pack_rows_float, pack_rows_half = packer("float32", True, False), packer("bfloat16", True, False)
pack_rows_float_b, pack_rows_half_b = packer("float32", True, True), packer("bfloat16", True, True)
pack_columns_float, pack_columns_half = packer("float32", False, False), packer("bfloat16", False, False)
pack_columns_float_b, pack_columns_half_b = packer("float32", False, True), packer("bfloat16", False, True)


@njit(error_model="numpy")
def pack_tile(width: int, adjacent: bool, b: bool, source: int, step: int, tile: int) -> None:
    if adjacent:
        if b:
            if width == 4:
                pack_rows_float_b(source, step, tile)
            else:
                pack_rows_half_b(source, step, tile)
        elif width == 4:
            pack_rows_float(source, step, tile)
        else:
            pack_rows_half(source, step, tile)
    elif b:
        if width == 4:
            pack_columns_float_b(source, step, tile)
        else:
            pack_columns_half_b(source, step, tile)
    elif width == 4:
        pack_columns_float(source, step, tile)
    else:
        pack_columns_half(source, step, tile)


@njit(error_model="numpy")
def pack_edge(
    width: int, adjacent: bool, b: bool, source: int, step: int, outer: int, inner: int, tile: int, spare: int
) -> None:
    """Pack a tile of which only `outer` rows or columns and `inner` inputs exist; the rest is 0. spare: address of 2 KiB."""
    rows, columns = (outer, inner) if adjacent else (inner, outer)
    full = (DEEP if adjacent else SIDE) * width
    words = int64s(spare)
    for n in range(SIDE * DEEP * width // 8):
        words[n] = 0
    for r in range(rows):
        here, there = int8s(source + r * step), int8s(spare + r * full)
        for c in range(columns * width):
            there[c] = here[c]
    pack_tile(width, adjacent, b, spare, full, tile)


@njit(error_model="numpy")
def pack_group(
    source: int, outer: int, inputs: int, steps: int, adjacent: bool, step: int, width: int, b: bool, tiles: int, spare: int
) -> None:
    """Pack 16 rows or columns, `steps` tiles of their inputs; what does not exist is 0. outer: rows that are left, or less."""
    for k in range(0, steps * DEEP, DEEP):
        here = source + (k * width if adjacent else k * step)
        if outer >= SIDE and inputs - k >= DEEP:
            pack_tile(width, adjacent, b, here, step, tiles)
        else:
            pack_edge(width, adjacent, b, here, step, min(outer, SIDE), min(inputs - k, DEEP), tiles, spare)
        tiles += TILE


@njit(error_model="numpy")
def pack_matrix(
    source: int, outer: int, groups: int, inputs: int, steps: int, adjacent: bool, step: int, b: bool, tiles: int, spare: int
) -> None:
    """Pack a bfloat16 matrix: `groups` times 16 rows or columns, `steps` tiles of inputs each."""
    for g in range(groups):
        here = source + g * SIDE * (step if adjacent else 2)
        pack_group(here, outer - g * SIDE, inputs, steps, adjacent, step, 2, b, tiles + g * steps * TILE, spare)


@njit(error_model="numpy")
def block_product(
    a: int, a_group: int, b: int, b_group: int, steps: int, rows: int, columns: int, c: int, c_step: int, adds: bool
) -> None:
    """Write a product to c [rows, columns], or with `adds` add it. rows and columns are multiples of 32.

    a_group, b_group: bytes from 16 rows or columns to the next. steps: tiles along the inputs. c_step: bytes of a row of c.
    """
    for i in range(0, rows, PAIR):
        for j in range(0, columns, PAIR):
            a_here, b_here, there = a + i // SIDE * a_group, b + j // SIDE * b_group, c + i * c_step + j * 4
            if adds:
                multiply_add(a_here, b_here, steps, there, c_step, SIDE * c_step, a_group, b_group)
            else:
                multiply(a_here, b_here, steps, there, c_step, SIDE * c_step, a_group, b_group)


@njit(error_model="numpy")
def store(part: int, part_step: int, rows: int, columns: int, c: int, c_step: int, width: int) -> None:
    """Write some floats to the result. part: address of `rows` rows of a multiple of 32 floats."""
    for r in range(rows):
        here, there = part + r * part_step, c + r * c_step
        whole = columns // PAIR * PAIR
        for n in range(0, whole, PAIR):
            if width == 4:
                copy_row(here + n * 4, there + n * 4)
            else:
                round_row(here + n * 4, there + n * 2)
        if whole < columns:
            if width == 4:
                for n in range(whole, columns):
                    float32s(there)[n] = float32s(here)[n]
            else:
                round_row(here + whole * 4, here + whole * 4)
                for n in range(columns - whole):
                    uint16s(there)[whole + n] = uint16s(here + whole * 4)[n]
