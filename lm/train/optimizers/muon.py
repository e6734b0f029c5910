"""Muon (Jordan et al. 2024): the momentum of each matrix is replaced by the nearest matrix with equal singular values.

Letters: L stacked matrices, m rows (inputs), n columns (outputs).
"""

import itertools
import math
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from lm.kernels.ops import product
from lm.parallel.mesh import logical_axes, several, spec_of

STEPS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # of Newton–Schulz; they bring singular values near 1 quickly, not exactly
RMS = 0.2  # of a direction, as AdamW's (Liu et al. 2025, §2.2)
EPS = 1e-7  # added to the norm


class MatrixAxes(NamedTuple):
    """A parameter's first `stacked` axes count matrices (layers, experts); `inputs` axes follow; the rest are outputs."""

    stacked: int
    inputs: int


class MuonState(NamedTuple):
    """The state of Muon: the momentum of each matrix."""

    mu: nnx.State  # float32 mean of gradients


def scale_by_muon(momentum: float, dtype: jnp.dtype) -> optax.GradientTransformation:
    """Return the transform from gradients g to 0.2·√max(m, n) · orthogonalised(Nesterov momentum of g).

    M ← β·M + (1−β)·g; the Nesterov momentum is β·M + (1−β)·g. Each layer and each expert has a matrix of its own. dtype: of the
    products. With a mesh, each device orthogonalises its share of the matrices (`shared_out`).
    """

    def init(params: nnx.State) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: nnx.State, state: MuonState, params: nnx.State | None = None) -> tuple[nnx.State, MuonState]:
        mu = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, state.mu, grads)
        ahead = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, mu, grads)

        def direction(variable: nnx.Variable) -> nnx.Variable:
            axes = matrix_axes(variable)

            def one(x: jax.Array) -> jax.Array:
                assert axes is not None  # other parameters have no value here (lm/train/optimizers/chain.py)
                x_mn = as_matrices(x, axes)
                y_mn = RMS * max(x_mn.shape[-2:]) ** 0.5 * orthogonalised(x_mn, dtype).astype(jnp.float32)
                return from_matrices(y_mn, x)

            return jax.tree.map(one, variable)

        return jax.tree.map(direction, ahead, is_leaf=is_variable), MuonState(mu)

    return optax.GradientTransformation(init, update)


def orthogonalised(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return U·Vᵀ, nearly, of each matrix U·S·Vᵀ of x [..., m, n], in `dtype` and with the sharding of x.

    Singular values end between 0.7 and 1.2. Products are in `dtype` and accumulate in float32.
    """
    x = x.astype(dtype)
    spec = spec_of(x)
    if spec is None or all(size == 1 for size in jax.sharding.get_abstract_mesh().shape.values()):
        return newton_schulz(x)
    L = x.shape[0] if x.ndim > 2 else 1
    x_Lmn = x if x.ndim > 2 else x[None]
    spec = spec if x.ndim > 2 else PartitionSpec(None, *spec)
    moves, padded = shared_out(x_Lmn.shape, spec, dict(jax.sharding.get_abstract_mesh().shape))
    if padded != L:
        x_Lmn = jnp.pad(x_Lmn, ((0, padded - L), *[(0, 0)] * (x_Lmn.ndim - 1)))
    for where in moves[1:]:
        x_Lmn = jax.sharding.reshard(x_Lmn, where)
    y_Lmn = newton_schulz(x_Lmn)
    for where in moves[-2::-1]:
        y_Lmn = jax.sharding.reshard(y_Lmn, where)
    return y_Lmn[:L] if x.ndim > 2 else y_Lmn[0]


def newton_schulz(x: jax.Array) -> jax.Array:
    """Return x [..., m, n] after STEPS steps of X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, from X/‖X‖ (Jordan et al. 2024).

    A is made on the shorter side: with m > n, A = Xᵀ·X, and X is multiplied from the left. The longer side may be split over
    devices. Then each computes a share of A, and of A².
    """
    a, b, c = COEFFICIENTS
    wide, dtype, spec = x.shape[-2] <= x.shape[-1], x.dtype, spec_of(x)
    whole = rows = None
    if spec is not None:
        split, size = spec[-1 if wide else -2], min(x.shape[-2:])
        whole = PartitionSpec(*spec[:-2], None, None)
        rows = PartitionSpec(*spec[:-2], split if size % parts_of(split) == 0 else None, None)

    def everywhere(square: jax.Array) -> jax.Array:
        return square if whole is None else jax.sharding.reshard(square, whole)

    norm = jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(-2, -1), keepdims=True))

    def iteration(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        gram = product("...mn,...pn->...mp" if wide else "...mn,...mp->...np", x, x, rows).astype(dtype)
        squared = product("...ij,...jk->...ik", gram, everywhere(gram), rows)
        factor = everywhere((b * gram + c * squared).astype(dtype))
        step = product("...ij,...jn->...in", factor, x, spec) if wide else product("...mi,...ij->...mj", x, factor, spec)
        return (a * x + step).astype(dtype), None

    return lax.scan(iteration, (x / (norm + EPS)).astype(dtype), length=STEPS)[0]


def shared_out(shape: tuple[int, ...], spec: PartitionSpec, mesh: dict[str, int]) -> tuple[list[PartitionSpec], int]:
    """Return partitions of [L, ..., m, n] from `spec` to one where devices share the work, and L with padding.

    From one partition to the next a single mesh axis moves, which is one all-to-all, or a slice if it split nothing before. A
    mesh axis goes to a stacked axis that it divides; else to L, padded, if there are more matrices than devices so far; else to
    the longer side of the matrices (`newton_schulz`); else nowhere, and its devices repeat the work of each other.
    """
    *stacked, m, n = shape
    long = len(shape) - (1 if m <= n else 2)
    parts = [list(several(part)) for part in (*spec, *[None] * (len(shape) - len(spec)))]
    in_matrix = [*parts[-2], *parts[-1]]
    used = set(itertools.chain(*parts))
    free = [axis for axis in (*in_matrix, *(axis for axis in mesh if axis not in used)) if mesh[axis] > 1]
    places, padded = [PartitionSpec(*map(_part, parts))], shape[0]

    def ways_of(i: int) -> int:
        return math.prod(mesh[axis] for axis in parts[i])

    for axis in free:
        fits = [i for i in reversed(range(len(stacked))) if stacked[i] % (ways_of(i) * mesh[axis]) == 0]
        if fits:
            place = fits[0]
        elif ways_of(0) < shape[0]:
            place, padded = 0, -(-shape[0] // (ways_of(0) * mesh[axis])) * ways_of(0) * mesh[axis]
        elif axis in parts[long]:
            continue
        elif shape[long] % (ways_of(long) * mesh[axis]) == 0:
            place = long
        else:
            continue
        for part in parts:
            if axis in part:
                part.remove(axis)
        parts[place].append(axis)
        places.append(PartitionSpec(*map(_part, parts)))
    short = parts[-2 if m <= n else -1]
    if short:  # it fits nowhere: gathered
        short.clear()
        places.append(PartitionSpec(*map(_part, parts)))
    return places, padded


def _part(names: list[str]) -> str | tuple[str, ...] | None:
    return None if not names else names[0] if len(names) == 1 else tuple(names)


def is_variable(leaf: object) -> TypeGuard[nnx.Variable]:
    """Return whether a node of a tree is a parameter, or a moment of one, with its metadata."""
    return isinstance(leaf, nnx.Variable)


def matrix_axes(variable: nnx.Variable) -> MatrixAxes | None:
    """Return the axes of a parameter that was declared as a matrix of layers (lm/model/initializers.py), else None."""
    inputs = variable.get_metadata().get("inputs", ())
    if not inputs:
        return None
    return MatrixAxes(inputs[0] + (logical_axes(variable)[0] == "layers"), len(inputs))


def as_matrices(x: jax.Array, axes: MatrixAxes) -> jax.Array:
    """Return x as [..., inputs, outputs] with its `stacked` axes in front. Only the first of merged axes may be sharded."""
    groups: list[tuple[int, ...]] = [(i,) for i in range(axes.stacked)]
    groups += [tuple(range(axes.stacked, axes.stacked + axes.inputs)), tuple(range(axes.stacked + axes.inputs, x.ndim))]
    shape = tuple(math.prod(x.shape[i] for i in group) for group in groups)
    spec = spec_of(x)
    if spec is None:
        return x.reshape(shape)
    assert all(spec[i] is None for group in groups for i in group[1:])
    return lax.reshape(x, shape, out_sharding=jax.sharding.PartitionSpec(*(spec[group[0]] for group in groups)))


def from_matrices(x: jax.Array, like: jax.Array) -> jax.Array:
    """Return matrices [..., inputs, outputs] in the shape and sharding of `like`; the inverse of `as_matrices`."""
    return lax.reshape(x, like.shape, out_sharding=spec_of(like))


def parts_of(part: str | tuple[str, ...] | None) -> int:
    """Return how many parts an entry of a partition splits an axis into, on the current mesh."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in several(part))
