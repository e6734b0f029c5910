"""Data sheets of chips: the peak FLOP/s, the denominator of MFU, and for TPUs what a plan needs.

Peaks, links, PCIe and the bandwidth of memory: "How to Scale Your Model" (Austin et al. 2025, Google DeepMind, "How to Think
About TPUs"), partly after Google Cloud's pages. PCIe: about 1.5e10 bytes/s a chip, each way, and 32 GB/s for v6e.
Memory: what the compiler gives a program. Clock: the peak over the FLOPs per cycle of the matrix units.
"""

import os
import re
from typing import NamedTuple

import jax

from lm.errors import UserError
from lm.runs.provenance import machine


class Chip(NamedTuple):
    """name: of topologies, such as v5e. flops: dense bfloat16 FLOP/s. hertz: of the compiler's cycles. memory: bytes that a
    program may use. link: bytes/s of one link, one way. wraps: an axis of the torus is closed to a ring if its length is a
    multiple of this. network: bytes/s of a chip to other slices: its host's 200 Gbit/s, shared evenly. pcie: bytes/s between
    a chip's memory and its host's, each way. hbm: bytes/s of a chip's memory.
    """

    name: str
    flops: float
    hertz: float
    memory: int
    link: float
    wraps: int
    network: float
    pcie: float
    hbm: float


GIB = 2**30
CHIPS = {
    "TPU v5 lite": Chip("v5e", 197e12, 1.5e9, int(15.75 * GIB), 45e9, 16, 25e9 / 8, 15e9, 8.1e11),
    "TPU v5": Chip("v5p", 459e12, 1.75e9, int(95.73 * GIB), 90e9, 4, 25e9 / 4, 15e9, 2.8e12),
    "TPU v6 lite": Chip("v6e", 918e12, 1.75e9, int(31.24 * GIB), 90e9, 16, 25e9 / 4, 32e9, 1.6e12),
}


# Dense bfloat16 peak, FLOP/s per chip, from the vendors' data sheets.
PEAK = {kind: chip.flops for kind, chip in CHIPS.items()} | {
    "TPU v4": 275e12,
    "TPU v5p": 459e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
# CPUs that multiply bfloat16, in the words of Linux, of XLA_FLAGS=--xla_cpu_max_isa=… and of NUMBA_CPU_NAME.
BFLOAT16 = {"avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}
ISAS = "", "AVX512_BF16", "AMX", "AMX_FP16"
NAMES = "", "cooperlake", "sapphirerapids", "emeraldrapids", "graniterapids", "znver4", "znver5"
FORMULA = "MFU = tokens/s × (6·N + 6·L·T·H·K) / peak; N active without the input embedding, attention counted causally"


def chip_of(device: jax.Device) -> Chip:
    """Return the data sheet of a device, real or of a topology. Raises UserError for a kind without one."""
    kind = device.device_kind
    if kind not in CHIPS:
        known = ", ".join(chip.name for chip in CHIPS.values())
        raise UserError(f"--plan knows no data sheet of {kind!r}; it knows {known}")
    return CHIPS[kind]


def peak_flops() -> tuple[float, str] | None:
    """Return (bfloat16 FLOP/s of all devices of this job, source of the number); None for devices that are not in PEAK.

    A measured peak is no substitute: on a CPU it changes by a factor of two with what else runs.
    """
    device, count = jax.devices()[0], jax.device_count()
    for kind, peak in sorted(PEAK.items(), key=lambda item: -len(item[0])):
        if device.device_kind.startswith(kind):
            return peak * count, f"{kind} data sheet × {count}"
    return None


def dtype_here() -> tuple[str, str]:
    """Return (the dtype of matrix products that dtype=auto stands for on these devices, why). No clock decides it.

    Processors without products of bfloat16 convert it first: with AVX2 alone XLA makes 123 GFLOP/s in float32, 89 in bfloat16.
    """
    if jax.default_backend() != "cpu":
        return "bfloat16", f"a {jax.default_backend().upper()}"
    isa = re.findall(r"--xla_cpu_max_isa=(\w*)", os.environ.get("XLA_FLAGS", ""))[-1:] or [""]
    limited = isa[0].upper() not in ISAS or os.environ.get("NUMBA_CPU_NAME", "") not in NAMES
    has = [] if limited else [name for flag, name in BFLOAT16.items() if flag in machine(devices=False)["flags"]]
    return ("bfloat16", f"a processor with {has[-1]}") if has else ("float32", "a processor without AMX and AVX-512 BF16")


def mfu_formula() -> str | None:
    """Return how MFU is computed on these devices, in words; None if it is not."""
    return f"{FORMULA} = {known[0] / 1e12:.3g} TFLOP/s ({known[1]})" if (known := peak_flops()) else None
