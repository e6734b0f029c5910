"""Bring matrices into tiles (lm/kernels/dense/packing.py), multiply them there, and bring results out, their edges included.

packed: bytes of a number in the tiles, 2 for bfloat16 and 4 for float32. A tile has 64 // packed inputs of a row.
"""

from collections.abc import Callable

from numba import njit

from lm.kernels.dense import amx, registers
from lm.kernels.dense.packing import SIDE, TILE, copy_row, packer, round_row
from lm.kernels.native.vectors import converted, float32s, has, int8s, int64s, uint16s

PAIR = 2 * SIDE  # rows and columns of the smallest product
ROW = 64  # bytes of a row of a tile
BFLOAT16, TILES = has("avx512bf16"), amx.usable()

multiply_floats, multiply_add_floats = registers.block("float32", False), registers.block("float32", True)
copy_floats = converted("float32")


def _packs(stored: str, packed: str) -> Callable[[bool, bool, int, int, int], None]:
    """Return the compiled function that packs 16 rows or columns of a layout, for A or B."""
    rows, rows_b, columns, columns_b = [
        packer(stored, packed, adjacent, b) for adjacent in (True, False) for b in (False, True)
    ]

    @njit(error_model="numpy")
    def pack(adjacent: bool, b: bool, source: int, step: int, tile: int) -> None:
        if adjacent:
            if b:
                rows_b(source, step, tile)
            else:
                rows(source, step, tile)
        elif b:
            columns_b(source, step, tile)
        else:
            columns(source, step, tile)

    return pack


pack_floats = _packs("float32", "float32")
if BFLOAT16:
    multiply_halves, multiply_add_halves = (
        (amx.multiply, amx.multiply_add) if TILES else (registers.block("bfloat16", False), registers.block("bfloat16", True))
    )
    round_floats, pack_halves = _packs("float32", "bfloat16"), _packs("bfloat16", "bfloat16")


@njit(error_model="numpy")
def padded(size: int, multiple: int = PAIR) -> int:
    return (size + multiple - 1) // multiple * multiple


@njit(error_model="numpy")
def clear(address: int, count: int) -> None:
    """Write `count` floats, an even number, of 0."""
    words = int64s(address)
    for n in range(count // 2):
        words[n] = 0


@njit(error_model="numpy")
def configure(packed: int, scratch: int) -> None:
    """Let this thread use the tile registers of AMX, where they multiply. scratch: address of 64 bytes."""
    if TILES:
        if packed == 2:
            amx.configure(scratch)


@njit(error_model="numpy")
def release(packed: int) -> None:
    if TILES:
        if packed == 2:
            amx.release()


@njit(error_model="numpy")
def multiply(packed: int, adds: bool, a: int, b: int, steps: int, c: int, c_step: int, a_group: int, b_group: int) -> None:
    """c[32, 32] = a · b, or with `adds` c += a · b. a_group, b_group: bytes from a group to the next."""
    half = SIDE * c_step
    if BFLOAT16:
        if packed == 2:
            if adds:
                multiply_add_halves(a, b, steps, c, c_step, half, a_group, b_group)
            else:
                multiply_halves(a, b, steps, c, c_step, half, a_group, b_group)
            return
    if adds:
        multiply_add_floats(a, b, steps, c, c_step, half, a_group, b_group)
    else:
        multiply_floats(a, b, steps, c, c_step, half, a_group, b_group)


@njit(error_model="numpy")
def pack_tile(width: int, packed: int, adjacent: bool, b: bool, source: int, step: int, tile: int) -> None:
    """Pack 16 rows or columns. width: bytes of a number of the source."""
    if BFLOAT16:
        if packed == 2:
            if width == 4:
                round_floats(adjacent, b, source, step, tile)
            else:
                pack_halves(adjacent, b, source, step, tile)
            return
    pack_floats(adjacent, b, source, step, tile)


@njit(error_model="numpy")
def pack_edge(
    width: int, packed: int, adjacent: bool, b: bool, source: int, step: int, outer: int, inner: int, tile: int, spare: int
) -> None:
    """Pack a tile of which only `outer` rows or columns and `inner` inputs exist; the rest is 0. spare: address of 2 KiB."""
    deep = ROW // packed
    rows, columns = (outer, inner) if adjacent else (inner, outer)
    full = (deep if adjacent else SIDE) * width
    words = int64s(spare)
    for n in range(SIDE * deep * width // 8):
        words[n] = 0
    for r in range(rows):
        here, there = int8s(source + r * step), int8s(spare + r * full)
        for c in range(columns * width):
            there[c] = here[c]
    pack_tile(width, packed, adjacent, b, spare, full, tile)


@njit(error_model="numpy")
def pack_group(
    source: int,
    outer: int,
    inputs: int,
    steps: int,
    adjacent: bool,
    step: int,
    width: int,
    packed: int,
    b: bool,
    tiles: int,
    spare: int,
) -> None:
    """Pack 16 rows or columns, `steps` tiles of their inputs; what does not exist is 0. outer: rows that are left, or less."""
    deep = ROW // packed
    for k in range(0, steps * deep, deep):
        here = source + (k * width if adjacent else k * step)
        if outer >= SIDE and inputs - k >= deep:
            pack_tile(width, packed, adjacent, b, here, step, tiles)
        else:
            pack_edge(width, packed, adjacent, b, here, step, min(outer, SIDE), min(inputs - k, deep), tiles, spare)
        tiles += TILE


@njit(error_model="numpy")
def pack_matrix(
    source: int,
    outer: int,
    groups: int,
    inputs: int,
    steps: int,
    adjacent: bool,
    step: int,
    packed: int,
    b: bool,
    tiles: int,
    spare: int,
) -> None:
    """Pack a matrix as it is: `groups` times 16 rows or columns, `steps` tiles of inputs each."""
    for g in range(groups):
        here = source + g * SIDE * (step if adjacent else packed)
        pack_group(here, outer - g * SIDE, inputs, steps, adjacent, step, packed, packed, b, tiles + g * steps * TILE, spare)


@njit(error_model="numpy")
def row_into(packed: int, floats: int, count: int, tiles: int) -> None:
    """Write a row of floats, a multiple of 32, into its row of the tiles of A."""
    deep = ROW // packed
    for n in range(0, count, deep):
        if BFLOAT16:
            if packed == 2:
                round_row(floats + n * 4, tiles + n // deep * TILE)
                continue
        copy_floats(floats + n * 4, tiles + n // deep * TILE)


@njit(error_model="numpy")
def block_product(
    packed: int,
    a: int,
    a_group: int,
    b: int,
    b_group: int,
    steps: int,
    rows: int,
    columns: int,
    c: int,
    c_step: int,
    adds: bool,
) -> None:
    """Write a product to c [rows, columns], or with `adds` add it. rows and columns are multiples of 32.

    a_group, b_group: bytes from 16 rows or columns to the next. steps: tiles along the inputs. c_step: bytes of a row of c.
    """
    for i in range(0, rows, PAIR):
        for j in range(0, columns, PAIR):
            a_here, b_here, there = a + i // SIDE * a_group, b + j // SIDE * b_group, c + i * c_step + j * 4
            multiply(packed, adds, a_here, b_here, steps, there, c_step, a_group, b_group)


@njit(error_model="numpy")
def store(part: int, part_step: int, rows: int, columns: int, c: int, c_step: int, width: int) -> None:
    """Write some floats to the result. part: address of `rows` rows of a multiple of 32 floats."""
    for r in range(rows):
        here, there = part + r * part_step, c + r * c_step
        whole = columns // PAIR * PAIR
        for n in range(0, whole, PAIR):
            if BFLOAT16:
                if width == 2:
                    round_row(here + n * 4, there + n * 2)
                    continue
            copy_row(here + n * 4, there + n * 4)
        if whole < columns:
            if BFLOAT16:
                if width == 2:
                    round_row(here + whole * 4, here + whole * 4)
                    for n in range(columns - whole):
                        uint16s(there)[whole + n] = uint16s(here + whole * 4)[n]
                    continue
            for n in range(whole, columns):
                float32s(there)[n] = float32s(here)[n]


@njit(error_model="numpy")
def transpose(part: int, part_step: int, out: int) -> None:
    """Write the transpose of 32 × 32 floats, followed by a tile that is overwritten. part_step: bytes of a row."""
    tile = out + 4 * TILE
    for i in range(0, PAIR, SIDE):
        for j in range(0, PAIR, SIDE):
            pack_floats(True, True, part + i * part_step + j * 4, part_step, tile)
            for r in range(SIDE):
                copy_floats(tile + r * ROW, out + (j + r) * 4 * PAIR + i * 4)
