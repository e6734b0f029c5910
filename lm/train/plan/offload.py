"""Transfers of a TPU program between a chip's memory and its host's (model.offload, optimizer.offload)."""

import re

from lm.train.plan.chips import Chip
from lm.train.plan.network import Collective
from lm.train.plan.program import Instruction, bytes_of

WAYS = ("to host", "from host")
_ARRAY = re.compile(r"([a-z]+\d*\[[\d,]+\])(\{[^}]*\})?")
_HOST = "S(5)"  # how layouts name the host's memory


def transfer(one: Instruction, chip: Chip) -> Collective | None:
    """Return what an instruction begins to send between a chip and its host, or None. Both ways work at the same time."""
    if one.kind not in ("copy-start", "dynamic-update-slice-start", "dynamic-slice-start") or _HOST not in one.shape:
        return None
    arrays = [(bytes_of(shape), _HOST in layout) for shape, layout in _ARRAY.findall(one.shape)]
    sent = max((size for size, on_host in arrays if not on_host), default=0)  # an update or a slice of what is on the host
    if not sent:
        return None
    out = one.kind == "dynamic-update-slice-start" or (one.kind == "copy-start" and arrays[0][1])  # (result, operand, …)
    return Collective(WAYS[not out], sent, 1, sent / chip.pcie, frozenset({WAYS[not out]}))
