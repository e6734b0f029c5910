"""Which rings of a torus a line of devices winds through."""

from itertools import product

import pytest

from lm.parallel.torus import rings_along

ROWS = list(product(range(4), range(4), [0]))  # as TPUs number a slice of 4 × 4 chips
SNAKE = [(x, y if x % 2 == 0 else 3 - y, 0) for x, y, _ in ROWS]


@pytest.mark.parametrize(
    ("line", "rings"),
    [
        (ROWS, (4, 4)),
        ([(y, x, z) for x, y, z in ROWS], (4, 4)),  # column by column
        (list(product(range(16), range(8), [3])), (16, 8)),
        (list(product(range(4), range(2), range(8))), (4, 2, 8)),
        ([(x, 5, 7) for x in range(8)], (8,)),
        ([(2 * x, 0, 0) for x in range(4)], (4,)),  # another axis of the mesh has the chips between
        (SNAKE, (16,)),
        ([(0,)] * 8, (8,)),  # devices without coordinates
        ([(1, 1, 1)], (1,)),
    ],
)
def test_rings_along_a_line(line, rings):
    assert rings_along(line) == rings
