"""Muon (Jordan et al. 2024): the momentum of each matrix is replaced by the nearest matrix with equal singular values.

NorMuon (Li et al. 2025) then divides each output by a moving average of its size, since Muon's are unequal.

Letters: L stacked matrices, m rows (inputs), n columns (outputs).
"""

import functools
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
from lm.parallel.mesh import logical_axes, platform, several, spec_of

Coefficients = tuple[tuple[float, float, float], ...]  # a, b, c of each step of Newton–Schulz
# Jordan et al. 2024: singular values come near 1 quickly, not exactly.
JORDAN: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
# The Polar Express (Amsel et al. 2025, algorithm 1) for four steps: optimal for singular values of at least 0.004 of the norm,
# with 1 % of room after each step for rounding.
POLAR_EXPRESS: Coefficients = (
    (8.3409829568727, -24.59738706535313, 18.22304175088571),
    (3.9449651867512796, -2.8845676534513984, 0.5381636430951914),
    (3.3250213276632516, -2.4504158734967505, 0.49130119552461765),
    (2.3323656807744526, -1.6799106365207235, 0.41117289179876443),
)
SAFETY = 1.01  # by which that norm is overestimated: rounding must not lift a singular value over 1
RMS = 0.2  # of a direction, as AdamW's (Liu et al. 2025, §2.2)
EPS = 1e-7  # of a norm
OUTPUT_MEMORY = 0.9  # NorMuon: decay of the mean of squares of an output's direction


class MatrixAxes(NamedTuple):
    """A parameter's first `stacked` axes count matrices (layers, experts); `inputs` axes follow; the rest are outputs."""

    stacked: int
    inputs: int


class MuonState(NamedTuple):
    """The state of Muon: the momentum of each matrix."""

    mu: nnx.State  # float32 mean of gradients


class NorMuonState(NamedTuple):
    """The state of NorMuon: the momentum of each matrix, and how large the direction of each of its outputs was."""

    mu: nnx.State  # float32 mean of gradients
    outputs: nnx.State  # float32 mean of squares, of a parameter's shape without its inputs


class TurnsState(NamedTuple):
    """The state of NorMuon whose layers take turns."""

    mu: nnx.State
    outputs: nnx.State
    count: jax.Array  # type: ignore[assignment]  # int32, updates; hides tuple.count; a name in checkpoints


def scale_by_muon(momentum: float, dtype: jnp.dtype) -> optax.GradientTransformation:
    """Return the transform from gradients g to 0.2·√max(m, n) · orthogonalised(Nesterov momentum of g).

    M ← β·M + (1−β)·g; the Nesterov momentum is β·M + (1−β)·g. Each layer and each expert has a matrix of its own. dtype: of the
    products. With a mesh, each device orthogonalises its share of the matrices (`shared_out`).
    """

    def init(params: nnx.State) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: nnx.State, state: MuonState, params: nnx.State | None = None) -> tuple[nnx.State, MuonState]:
        mu = optax.tree.update_moment(grads, state.mu, momentum, order=1)
        ahead, tree = jax.tree.flatten(optax.tree.update_moment(grads, mu, momentum, order=1), is_leaf=is_variable)
        for i, variable in enumerate(ahead):
            x, axes = variable.get_value(), matrix_axes(variable)
            if axes is None or isinstance(x, optax.MaskedNode):  # another transform updates this parameter
                continue
            x_mn = as_matrices(x, axes)
            y_mn = RMS * max(x_mn.shape[-2:]) ** 0.5 * orthogonalised(x_mn, dtype, JORDAN)
            ahead[i] = variable.replace(lax.reshape(y_mn, x.shape, out_sharding=spec_of(x)))
        return jax.tree.unflatten(tree, ahead), MuonState(mu)

    return optax.GradientTransformation(init, update)


def scale_by_normuon(momentum: float, dtype: jnp.dtype, turns: int = 1) -> optax.GradientTransformation:
    """Return the transform from gradients to a direction with a root mean square of 0.2 in each matrix.

    With O the orthogonalised Nesterov momentum, v ← 0.9·v + 0.1·(mean of O² over the inputs of each output). The direction is
    0.2 · y / rms(y) of y = O / √v (Li et al. 2025, algorithm 1). `dtype`, and a mesh: as in `scale_by_muon`.

    turns: update n changes only the layers i with i mod turns = n mod turns, by `turns` times as much. So it takes 1 / turns of
    the products, which are most of the cost (after Gruntkowska et al. 2025, who draw the layers). The momentum of every layer
    takes in every gradient. A stack of fewer layers has as many turns as layers.
    """

    def init(params: nnx.State) -> NorMuonState | TurnsState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        outputs = jax.tree.map(_of_outputs, zeros, is_leaf=is_variable)
        return NorMuonState(zeros, outputs) if turns == 1 else TurnsState(zeros, outputs, jnp.zeros((), jnp.int32))

    def direction(x: jax.Array, v: jax.Array, axes: MatrixAxes) -> tuple[jax.Array, jax.Array]:
        inputs = tuple(range(axes.stacked, axes.stacked + axes.inputs))
        o = lax.reshape(orthogonalised(as_matrices(x, axes), dtype, POLAR_EXPRESS), x.shape, out_sharding=spec_of(x))
        v = OUTPUT_MEMORY * v + (1 - OUTPUT_MEMORY) * jnp.mean(jnp.square(o), axis=inputs)
        y = o * lax.rsqrt(jnp.expand_dims(jnp.maximum(v, EPS), inputs))
        size = jnp.sqrt(jnp.mean(jnp.square(y), axis=tuple(range(axes.stacked, y.ndim)), keepdims=True))
        return RMS * y / jnp.maximum(size, EPS), v

    def update(
        grads: nnx.State, state: NorMuonState | TurnsState, params: nnx.State | None = None
    ) -> tuple[nnx.State, NorMuonState | TurnsState]:
        mu = optax.tree.update_moment(grads, state.mu, momentum, order=1)
        ahead, tree = jax.tree.flatten(optax.tree.update_moment(grads, mu, momentum, order=1), is_leaf=is_variable)
        outputs, tree_of_outputs = jax.tree.flatten(state.outputs, is_leaf=is_variable)
        for i, variable in enumerate(ahead):
            x, axes = variable.get_value(), matrix_axes(variable)
            if axes is None or isinstance(x, optax.MaskedNode):  # another transform updates this parameter
                continue
            v = outputs[i].get_value()
            if isinstance(state, NorMuonState) or not is_stack(variable):
                y, v = direction(x, v, axes)
            else:
                each = min(turns, len(x))
                place = state.count % each
                some_y, some_v = direction(in_turn(x, place, each), in_turn(v, place, each), axes)
                y, v = put(each * some_y, place, each, jnp.zeros_like(x)), put(some_v, place, each, v)
            ahead[i], outputs[i] = variable.replace(y), outputs[i].replace(v)
        updates, new = jax.tree.unflatten(tree, ahead), jax.tree.unflatten(tree_of_outputs, outputs)
        return updates, NorMuonState(mu, new) if isinstance(state, NorMuonState) else TurnsState(mu, new, state.count + 1)

    return optax.GradientTransformation(init, update)


def in_turn(x: jax.Array, place: jax.Array, turns: int) -> jax.Array:
    """Return layers place, place + turns, … of x [L, …], ⌈L / turns⌉ of them; the last may be zeros.

    A mesh splits them as it splits x, unless its parts have no whole number of rounds.
    """
    rounds, spec = -(-len(x) // turns), spec_of(x)
    if spec is not None and len(x) % (turns * parts_of(spec[0])):
        spec = PartitionSpec(None, *spec[1:])
        x = jax.sharding.reshard(x, spec)
    padded = jnp.pad(x, ((0, rounds * turns - len(x)), *[(0, 0)] * (x.ndim - 1))) if len(x) % turns else x
    where = None if spec is None else PartitionSpec(spec[0], None, *spec[1:])
    return lax.dynamic_index_in_dim(lax.reshape(padded, (rounds, turns, *x.shape[1:]), out_sharding=where), place, 1, False)


def put(y: jax.Array, place: jax.Array, turns: int, x: jax.Array) -> jax.Array:
    """Return x [L, …] with the layers that `in_turn` takes replaced by y; the inverse of it."""
    spec = spec_of(y)
    where = None if spec is None else PartitionSpec(spec[0], None, *spec[1:])
    every = jnp.broadcast_to(jnp.expand_dims(y, 1), (len(y), turns, *y.shape[1:]), out_sharding=where)
    every = lax.reshape(every, (len(y) * turns, *y.shape[1:]), out_sharding=spec)[: len(x)]
    every = every if spec is None else jax.sharding.reshard(every, spec_of(x))
    is_due = jnp.expand_dims(jnp.arange(len(x)) % turns == place, tuple(range(1, x.ndim)))
    return jnp.where(is_due, every, x)


def _of_outputs(variable: nnx.Variable) -> nnx.Variable:
    """Return the mean of a variable over the inputs of each output, sharded as the outputs. Others have no value here."""
    axes = matrix_axes(variable)
    if axes is None:
        return variable
    over = tuple(range(axes.stacked, axes.stacked + axes.inputs))
    names = tuple([name for i, name in enumerate(logical_axes(variable)) if i not in over])
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=over), variable)
    return mean.replace(mean.get_value(), out_sharding=names, role="vector", inputs=())


def orthogonalised(x: jax.Array, dtype: jnp.dtype, coefficients: Coefficients) -> jax.Array:
    """Return U·Vᵀ, nearly, of each matrix U·S·Vᵀ of x [..., m, n], float32 with the sharding of x.

    Singular values end between 0.7 and 1.2, the smallest below. Products are in `dtype` and accumulate in float32. One CPU
    computes one matrix after the other, in float32 between two of them: XLA has no slices of bfloat16 (lm/kernels/saved.py).
    """
    spec = spec_of(x)
    if spec is None or math.prod(jax.sharding.get_abstract_mesh().shape.values()) == 1:
        if x.ndim > 2 and platform() == "cpu":
            one_by_one = functools.partial(lax.map, functools.partial(orthogonalised, dtype=dtype, coefficients=coefficients))
            if spec is None:
                return one_by_one(x)
            return jax.sharding.reshard(one_by_one(jax.sharding.reshard(x, PartitionSpec(*[None] * x.ndim))), spec)
        return newton_schulz(x.astype(dtype), coefficients).astype(jnp.float32)
    x = x.astype(dtype)
    L = x.shape[0] if x.ndim > 2 else 1
    x_Lmn = x if x.ndim > 2 else x[None]
    spec = spec if x.ndim > 2 else PartitionSpec(None, *spec)
    moves, padded = shared_out(x_Lmn.shape, spec, dict(jax.sharding.get_abstract_mesh().shape))
    if padded != L:
        x_Lmn = jnp.pad(x_Lmn, ((0, padded - L), *[(0, 0)] * (x_Lmn.ndim - 1)))
    for where in moves[1:]:
        x_Lmn = jax.sharding.reshard(x_Lmn, where)
    y_Lmn = newton_schulz(x_Lmn, coefficients)
    for where in moves[-2::-1]:
        y_Lmn = jax.sharding.reshard(y_Lmn, where)
    return (y_Lmn[:L] if x.ndim > 2 else y_Lmn[0]).astype(jnp.float32)


def newton_schulz(x: jax.Array, coefficients: Coefficients) -> jax.Array:
    """Return x [..., m, n] after steps of X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, from X/‖X‖ (Jordan et al. 2024).

    The Polar Express divides by ‖A²‖^¼, the root of order 8 of the sum of the eighth powers of the singular values: A² is at
    hand, and for a random matrix of 768 × 768 it exceeds the largest one 1.6 times, ‖X‖ 14 times. This saves a step (Gelfand's
    formula, as in Grishina et al. 2025). A is made on the shorter side: with m > n, A = Xᵀ·X, and X is multiplied from the
    left. The longer side may be split over devices. Then each computes a share of A, and of A².
    """
    wide, dtype, spec = x.shape[-2] <= x.shape[-1], x.dtype, spec_of(x)
    whole = rows = None
    if spec is not None:
        split, size = spec[-1 if wide else -2], min(x.shape[-2:])
        whole = PartitionSpec(*spec[:-2], None, None)
        rows = PartitionSpec(*spec[:-2], split if size % parts_of(split) == 0 else None, None)

    norm = functools.partial(jnp.linalg.norm, axis=(-2, -1), keepdims=True)
    more = "abcd"[: x.ndim - 2]

    def iteration(x: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        (a, b, c), is_measured = step
        gram = product(f"{more}mn,{more}pn->{more}mp" if wide else f"{more}mn,{more}mp->{more}np", x, x, rows, result=dtype)
        squared = product(
            f"{more}ij,{more}kj->{more}ik", gram, gram if whole is None else jax.sharding.reshard(gram, whole), rows
        )
        size = jnp.where(is_measured, SAFETY * jnp.maximum(norm(squared), EPS) ** 0.25, 1.0)
        factor = (b / size**3 * gram + c / size**5 * squared).astype(dtype)
        factor = factor if whole is None else jax.sharding.reshard(factor, whole)
        left, right = (factor, x) if wide else (x, factor)
        moved = product(f"{more}ij,{more}jn->{more}in" if wide else f"{more}mi,{more}ij->{more}mj", left, right, spec)
        return (a / size * x + moved).astype(dtype), None

    is_measured = jnp.arange(len(coefficients)) == (0 if coefficients is POLAR_EXPRESS else -1)
    steps = jnp.array(coefficients, jnp.float32), is_measured
    return lax.scan(iteration, (x / (norm(x.astype(jnp.float32)) + EPS)).astype(dtype), steps)[0]


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


def is_stack(variable: nnx.Variable) -> bool:
    """Return whether the first axis of a parameter counts layers."""
    return variable.get_metadata()["out_sharding"][0] == "layers"


def matrix_axes(variable: nnx.Variable) -> MatrixAxes | None:
    """Return the axes of a parameter that was declared as a matrix of layers (lm/model/initializers.py), else None."""
    inputs = variable.get_metadata().get("inputs", ())
    if not inputs:
        return None
    return MatrixAxes(inputs[0] + is_stack(variable), len(inputs))


def as_matrices(x: jax.Array, axes: MatrixAxes) -> jax.Array:
    """Return x as [..., inputs, outputs] with its `stacked` axes in front. Only the first of merged axes may be sharded."""
    groups: list[tuple[int, ...]] = [(i,) for i in range(axes.stacked)]
    groups += [tuple(range(axes.stacked, axes.stacked + axes.inputs)), tuple(range(axes.stacked + axes.inputs, x.ndim))]
    shape = [math.prod([x.shape[i] for i in group]) for group in groups]
    spec = spec_of(x)
    if spec is None:
        return x.reshape(shape)
    assert all([spec[i] is None for group in groups for i in group[1:]])
    return lax.reshape(x, shape, out_sharding=PartitionSpec(*[spec[group[0]] for group in groups]))


def parts_of(part: str | tuple[str, ...] | None) -> int:
    """Return how many parts an entry of a partition splits an axis into, on the current mesh."""
    return math.prod([jax.sharding.get_abstract_mesh().shape[axis] for axis in several(part)])
