"""Where a mesh lies on the torus of a TPU slice.

An axis of a mesh may wind through several rings of the torus: 16 × 16 chips in one axis of 256 are 16 rings of 16, row by row.
A TPU's compiler scatters a sum over one ring, but for such an axis it would compute the whole sum on every device. So sums are
scattered ring by ring (lm/kernels/matmul.py). Results do not depend on the rings.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

_RINGS: dict[tuple[tuple[str, int], ...], dict[str, tuple[int, ...]]] = {}  # of the newest mesh of each shape


def lay_out(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Return the devices of one slice as an array of these sizes, neighbours on the torus along each axis.

    Raises: AssertionError, NotImplementedError or ValueError if the torus does not allow the sizes.
    """
    if devices[0].platform == "tpu" and max(sizes) == len(devices):  # all in one axis: row by row, and no winding line
        return np.array(sorted(devices, key=lambda device: tuple(device.coords)), object).reshape(sizes)
    # Where no group of whole axes of the torus has a size, an axis of it is split.
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def remember(mesh: Mesh) -> None:
    """Keep the rings of each axis of a mesh for `rings`."""
    _RINGS[mesh.abstract_mesh.shape_tuple] = {axis: rings_along(_line(mesh, axis)) for axis in mesh.axis_names}


def rings(axis: str | tuple[str, ...]) -> tuple[int, ...]:
    """Return the sizes of the rings that an axis of the current mesh winds through, outermost first; one ring if unknown.

    Several axes count as one ring.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not isinstance(axis, str):
        return (math.prod(mesh.shape[one] for one in axis),)
    return _RINGS.get(mesh.shape_tuple, {}).get(axis, (mesh.shape[axis],))


def groups_along(sizes: tuple[int, ...], n: int) -> list[list[int]]:
    """Return the positions along an axis of rings `sizes` that share all coordinates but the n-th."""
    places = np.moveaxis(np.arange(math.prod(sizes)).reshape(sizes), n, -1)
    return places.reshape(-1, sizes[n]).tolist()


def _line(mesh: Mesh, axis: str) -> list[tuple[int, ...]]:
    """Return the coordinates of the first devices of a mesh along an axis; other devices than TPUs have none."""
    along = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0).reshape(mesh.shape[axis], -1)[:, 0]
    return [tuple(getattr(device, "coords", (0,))) for device in along]


def rings_along(coordinates: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the sizes of the rings that a line of devices winds through, outermost first.

    It is one ring unless the line runs row by row through a block of the torus, whatever the order of its dimensions.
    """
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in np.array(coordinates).T], axis=1)
    sizes = ranks.max(axis=0) + 1
    for order in itertools.permutations(range(len(sizes))):
        ordered = tuple(int(sizes[i]) for i in order)
        rows = np.stack(np.unravel_index(np.arange(math.prod(ordered)), ordered), axis=1)
        if len(rows) == len(coordinates) and (ranks[:, order] == rows).all():
            return tuple(size for size in ordered if size > 1) or (1,)
    return (len(coordinates),)
