"""Estimate the time of a compiled step from its schedule.

Compute: the cycles that the compiler estimates, over the chip's clock. Kernels of attention and of products by expert: their
FLOPs at KERNEL_SHARE of the peak, since the compiler estimates nothing for them; or the time to read their pages, if that is
longer. Collectives and transfers to the host: lm/train/plan/network.py. One that runs in the background costs what the work
between its start and its end does not hide; each link does one at a time.
This is no measurement. The compiler knows neither contention nor stalls, and its cycles are those of its own cost model.
"""

import dataclasses
import re
from collections import defaultdict
from typing import NamedTuple

from lm.kernels.tpu.attention import kernel_flops
from lm.kernels.tpu.pages import kernel_cost
from lm.train.chips import Chip
from lm.train.plan.network import Network, of_program, transfer
from lm.train.plan.program import Instruction, Program

KERNEL_SHARE = 0.4  # of the peak; what flash attention reaches on these chips by public reports, as a round number


@dataclasses.dataclass
class Sent:
    """Collectives or transfers of one kind in a step, on one device. exposed: seconds that nothing hides."""

    count: int = 0
    bytes: int = 0
    seconds: float = 0.0
    exposed: float = 0.0
    largest: int = 0
    in_background: int = 0


class Estimate(NamedTuple):
    """Seconds of a step on one device, and what they consist of."""

    compute: float
    kernels: float
    exposed: float
    sent: dict[str, Sent]
    cycles: int
    kernel_flops: int

    @property
    def seconds(self) -> float:
        return self.compute + self.kernels + self.exposed


def estimate(program: Program, network: Network, chip: Chip) -> Estimate:
    """Return the estimate for a program on a chip."""
    sent = defaultdict[str, Sent](Sent)
    cycles, flops_of_kernels, kernels, exposed = 0, 0, 0.0, 0.0
    for times, _, instructions in program.schedule():
        shapes = {one.name: one.shape for one in instructions}
        clock = 0.0  # since the begin of the computation
        free: dict[str, float] = {}  # when links have time again
        running: dict[str, tuple[float, str]] = {}
        for one in instructions:
            clock += one.cycles / chip.hertz
            cycles += times * one.cycles
            if one.kind == "custom-call":
                flops, read = kernel_cost(one.name, one.text)
                flops = flops or kernel_flops(one.name, one.text) or grouped_flops(one, shapes)
                seconds = max(flops / (KERNEL_SHARE * chip.flops), read / chip.hbm)
                clock, kernels, flops_of_kernels = clock + seconds, kernels + times * seconds, flops_of_kernels + times * flops
            if one.kind == "while":  # its body is counted on its own; nothing runs in the background across it
                clock, running = max([clock, *(end for end, _ in running.values())]), {}
            found = of_program(program.computations, one)
            if collective := network.collective(*found) if found else transfer(one, chip):
                end = max([clock, *(free.get(link, 0.0) for link in collective.links)]) + collective.seconds
                row = sent[collective.kind]
                row.count += times
                row.bytes += times * collective.bytes
                row.seconds += times * collective.seconds
                row.largest = max(row.largest, collective.bytes)
                free |= dict.fromkeys(collective.links, end)
                if one.kind.endswith("-start") or "collective-start" in one.name:
                    row.in_background += times
                    running[_pair(one.name)] = (end, collective.kind)
                else:
                    row.exposed += times * (end - clock)
                    exposed += times * (end - clock)
                    clock = end
            elif (one.kind.endswith("-done") or "collective-done" in one.name) and _pair(one.name) in running:
                end, kind = running.pop(_pair(one.name))
                if end > clock:
                    sent[kind].exposed += times * (end - clock)
                    exposed += times * (end - clock)
                    clock = end
    return Estimate(cycles / chip.hertz, kernels, exposed, dict(sorted(sent.items())), cycles, flops_of_kernels)


def grouped_flops(one: Instruction, shapes: dict[str, str]) -> int:
    """Return the FLOPs of XLA's kernel for a product by group, those of all rows, filled or not. 0 for any other kernel.

    shapes: of the instructions around it. Its last two operands are rows [R, K], and weights [G, K, N] or other rows [R, N].
    """
    if not re.match(r"%ragged-dot(?!-metadata)", one.name):
        return 0
    rows, other = ([int(n) for n in re.findall(r"\[([\d,]*)\]", shapes[name])[0].split(",")] for name in one.operands[-2:])
    return 2 * rows[0] * rows[1] * other[-1]


def _pair(name: str) -> str:
    """Return what the names of a start and its end have in common."""
    return name.replace("-start", "").replace("-done", "")
