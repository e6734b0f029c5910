"""Data sheets of TPU chips.

Peaks, links and PCIe: "How to Scale Your Model" (Austin et al. 2025, Google DeepMind, "How to Think About TPUs"), partly after
Google Cloud's pages. PCIe: about 1.5e10 bytes/s a chip, each way, and 32 GB/s for v6e.
Memory: what the compiler gives a program. Clock: the peak over the FLOPs per cycle of the matrix units.
"""

from typing import NamedTuple

import jax

from lm.errors import UserError


class Chip(NamedTuple):
    """name: of topologies, such as v5e. flops: dense bfloat16 FLOP/s. hertz: of the compiler's cycles. memory: bytes that a
    program may use. link: bytes/s of one link, one way. wraps: an axis of the torus is closed to a ring if its length is a
    multiple of this. network: bytes/s of a chip to other slices: its host's 200 Gbit/s, shared evenly. pcie: bytes/s between
    a chip's memory and its host's, each way.
    """

    name: str
    flops: float
    hertz: float
    memory: int
    link: float
    wraps: int
    network: float
    pcie: float


GIB = 2**30
CHIPS = {
    "TPU v5 lite": Chip("v5e", 197e12, 1.5e9, int(15.75 * GIB), 45e9, 16, 25e9 / 8, 15e9),
    "TPU v5": Chip("v5p", 459e12, 1.75e9, int(95.73 * GIB), 90e9, 4, 25e9 / 4, 15e9),
    "TPU v6 lite": Chip("v6e", 918e12, 1.75e9, int(31.24 * GIB), 90e9, 16, 25e9 / 4, 32e9),
}


def chip_of(device: jax.Device) -> Chip:
    """Return the data sheet of a device, real or of a topology. Raises UserError for a kind without one."""
    kind = device.device_kind
    if kind not in CHIPS:
        known = ", ".join(chip.name for chip in CHIPS.values())
        raise UserError(f"--plan knows no data sheet of {kind!r}; it knows {known}")
    return CHIPS[kind]
