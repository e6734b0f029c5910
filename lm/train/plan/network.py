"""A model of the time of collectives on the torus of a TPU slice.

After "How to Scale Your Model" (Austin et al. 2025, "Sharded matrices"): a gather of n bytes over a ring passes (k−1)/k of them
through the two links of the ring's axis; axes work at the same time; an axis that is no closed ring has half the bandwidth.
Latency is left out: it is small for the sizes that training sends. Transfers between a chip's memory and its host's
(model.offload, optimizer.offload) take their bytes over the bandwidth of PCIe.
"""

import re
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from lm.train.chips import Chip
from lm.train.plan.program import COLLECTIVES, Instruction, bytes_of

WAYS = ("to host", "from host")  # kinds of transfers
_ARRAY = re.compile(r"([a-z]+\d*\[[\d,]+\])(\{[^}]*\})?")
_HOST = "S(5)"  # how layouts name the host's memory


class Collective(NamedTuple):
    """One collective or transfer of a program. bytes: of the whole array for gathers and scatters, else of one device. seconds:
    on an idle network. links: those that it uses: axes of the torus, with a direction for permutes, or a way to the host."""

    kind: str
    bytes: int
    seconds: float
    links: frozenset[str] = frozenset()


class Network:
    """The network between the devices of a mesh. Device i of a program is the i-th of the mesh."""

    def __init__(self, mesh: Mesh, chip: Chip):
        self._chip = chip
        devices = list(mesh.devices.flat)
        self._coords = np.array([tuple(device.coords) for device in devices])
        self._slices = np.array([getattr(device, "slice_index", 0) for device in devices])
        self._sizes = self._coords.max(axis=0) - self._coords.min(axis=0) + 1

    def collective(self, one: Instruction, kind: str) -> Collective:
        """Return what an instruction of this kind sends (see `of_program`)."""
        group = _group(one.text, len(self._coords))
        size = bytes_of(one.shape)
        if one.kind.endswith("-start"):  # (operands, results, …)
            size = max(bytes_of(part) for part in re.findall(r"[a-z]+\d*\[[\d,]*\]", one.shape))
        if kind == "reduce-scatter" and one.kind != "all-reduce":  # its shape is that of the result
            size *= len(group)
        return Collective(kind, size, self._seconds(kind, size, group), self._links(kind, group))

    def _seconds(self, kind: str, size: int, group: list[int]) -> float:
        n = len(group)
        if n == 1:
            return 0.0
        if len(set(self._slices[group])) > 1:
            return size / n * (2 if kind == "all-reduce" else 1) / self._chip.network
        coords = self._coords[group]
        lengths = {axis: len(set(coords[:, axis])) for axis in range(coords.shape[1])}
        axes = {axis: length for axis, length in lengths.items() if length > 1} or {0: n}
        links = {axis: 2 if self._closed(axis, length) else 1 for axis, length in axes.items()}
        if kind == "collective-permute":
            return size / self._chip.link
        if kind in ("all-to-all", "ragged-all-to-all"):  # each row travels a quarter of a ring on average
            return max(size * length / (4 * links[axis] * self._chip.link) for axis, length in axes.items())
        passes = 2 if kind == "all-reduce" else 1
        return passes * size * (n - 1) / n / (sum(links.values()) * self._chip.link)

    def _links(self, kind: str, group: list[int]) -> frozenset[str]:
        coords = self._coords[group]
        axes = [axis for axis in range(coords.shape[1]) if len(set(coords[:, axis])) > 1]
        if kind == "collective-permute" and len(group) == 2:
            steps = coords[1] - coords[0]
            return frozenset(f"{axis}{'+' if steps[axis] > 0 else '-'}" for axis in axes)
        return frozenset(f"{axis}{way}" for axis in axes for way in "+-")

    def _closed(self, axis: int, length: int) -> bool:
        return length == self._sizes[axis] and length % self._chip.wraps == 0


def of_program(computations: dict[str, list[Instruction]], one: Instruction) -> tuple[Instruction, str] | None:
    """Return the collective that an instruction starts or does, and its kind; None if there is none."""
    if one.kind.endswith("-done") or "collective-done" in one.name:  # it ends what another has started
        return None
    plain = one.kind.removesuffix("-start")
    if plain in COLLECTIVES:
        return one, plain
    called = one.called("calls") if one.kind == "fusion" and "kind=kCustom" in one.text else ""
    inner = next((x for x in computations.get(called, ()) if x.kind in COLLECTIVES), None)
    if inner is None:
        return None
    return inner, "reduce-scatter" if called.startswith("%all-reduce-scatter") else inner.kind


def transfer(one: Instruction, chip: Chip) -> Collective | None:
    """Return what an instruction begins to send between a chip and its host, or None. Both ways work at the same time."""
    if one.kind not in ("copy-start", "dynamic-update-slice-start", "dynamic-slice-start") or _HOST not in one.shape:
        return None
    arrays = [(bytes_of(shape), _HOST in layout) for shape, layout in _ARRAY.findall(one.shape)]
    sent = max((size for size, on_host in arrays if not on_host), default=0)  # an update or a slice of what is on the host
    if not sent:
        return None
    out = one.kind == "dynamic-update-slice-start" or (one.kind == "copy-start" and arrays[0][1])  # (result, operand, …)
    return Collective(WAYS[not out], sent, sent / chip.pcie, frozenset({WAYS[not out]}))


def _group(text: str, devices: int) -> list[int]:
    """Return the first group of devices that a collective's text names; all devices without one."""
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", text):
        return [int(n) for n in found.group(1).split(",")]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, turned = ([int(n) for n in part.split(",")] if part else [] for part in found.groups())
        places = np.arange(int(np.prod(dims))).reshape(dims)
        return (places.transpose(turned) if turned else places).reshape(shape)[0].tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        names, sizes = zip(*((name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", found.group(1))))
        used = re.findall(r"'([^']+)'", found.group(2))
        places = np.arange(int(np.prod(sizes))).reshape(sizes)
        return places[tuple(slice(None) if name in used else 0 for name in names)].reshape(-1).tolist()
    return list(range(devices))
