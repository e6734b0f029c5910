"""Pipeline parallelism: devices along the mesh axis `stage` hold different layers of a stack, and rows go from one to the next.

A stack of n layers is split into S stages, and the rows of a call into M microbatches. In each tick a stage computes one
microbatch and sends the result on (GPipe, Huang et al. 2019, §2). The backward pass is the same loop in reverse. With R repeats
a microbatch goes around the stages R times: stage s holds the parts s, S + s, … of S·R parts of the layers (circular pipeline,
Narayanan et al. 2021, §2.2). A stage is idle while the first microbatch is on its way to it, and after the last one has left:

    bubble = d·(S − 1) / (M·R + d·(S − 1)), the fraction of the ticks in which a stage computes nothing that is used

d is 1. It is 2 if a result travels for one tick, in which the stages compute other microbatches and do not wait for it.

An idle stage computes too, on values that are not used. The residuals of all ticks are kept for the backward pass (under the
remat policy of the layers). `accumulate` bounds their memory: the M microbatches are those of one slice of the batch.

Outside of the stack, rows are split over the stages too, so embedding, head and loss are computed once. Stage s begins with
the microbatches s·M/S … (s + 1)·M/S − 1 and ends with their results. Microbatches that wait move towards stage 0, and results
towards their owners: each by one stage when its place is used.

Axes: B batch, S stages, M microbatches, R repeats, n layers of a stack.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from lm.config import Pipeline
from lm.parallel.arrays import PyTree
from lm.parallel.context import length_axis
from lm.parallel.mesh import reshard, row_ways, spec

STAGE = "stage"
Result: TypeAlias = tuple[jax.Array, PyTree]  # x [B, T, D], and sums of each layer over the batch
Stage: TypeAlias = Callable[[PyTree, jax.Array, PyTree], Result]  # from parameters [layers, …], x and rows
Carry: TypeAlias = tuple[tuple[jax.Array, ...], jax.Array, jax.Array, PyTree]  # what travels, waits, is done; sums
MICROBATCHES = 4  # of a stage, unless the config says otherwise


class Schedule(NamedTuple):
    """When a stage computes what. Stage s is d·s ticks behind stage 0; `at` says what that one does in a tick.

    Microbatches go around in groups of d·S: a group is back at stage 0 in the tick after its last microbatch has entered.
    """

    stages: int
    microbatches: int
    repeats: int
    delay: int

    def at(self, tick: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return (microbatch, repeat, whether both exist) of stage 0 in a tick, which may be negative; int32 arrays."""
        group = self.stages * self.delay
        microbatch = tick // (group * self.repeats) * group + tick % group
        there = (tick >= 0) & (microbatch < self.microbatches)
        return jnp.clip(microbatch, 0, self.microbatches - 1), tick % (group * self.repeats) // group, there

    @property
    def ticks(self) -> int:
        last, group = self.microbatches - 1, self.stages * self.delay
        return (last // group * self.repeats + self.repeats - 1) * group + last % group + self.delay * (self.stages - 1) + 1

    @property
    def bubble(self) -> float:
        """Return the fraction of the ticks in which a stage computes nothing that is used."""
        return 1 - self.microbatches * self.repeats / self.ticks

    def __str__(self) -> str:
        rounds = f", each {self.repeats} times around" if self.repeats > 1 else ""
        shape = f"{self.stages} stages, {self.microbatches} microbatches{rounds}"
        return f"{shape}: bubble {100 * self.bubble:.1f} % of {self.ticks} ticks"


def schedule(settings: Pipeline, rows: int, mesh: Mesh | AbstractMesh | None = None) -> Schedule:
    """Return the schedule of a call with this many rows. mesh: default the one that is set.

    Microbatches are at most as many as the config says, a multiple of the stages, and divide the rows of each device evenly.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    S, each = mesh.shape[STAGE], rows // row_ways(mesh)
    most = min(each, max(1, settings.microbatches // S if settings.microbatches else MICROBATCHES))
    return Schedule(S, S * max(n for n in range(1, most + 1) if each % n == 0), settings.repeats, 1 + settings.overlap)


def pipelined(
    stage: Stage, params: PyTree, x_BTD: jax.Array, rows: PyTree, plan: Schedule, keep: Callable[..., bool]
) -> Result:
    """Return x after all layers of a stack, and the sums of each layer over the batch, stacked over the n layers.

    Args:
      stage: stage(params, x, rows) -> (x, sums) computes successive layers, whose parameters [layers, …] it gets, for one
        microbatch. sums: a tree of arrays [layers, …].
      params: arrays [n, …]; S·R divides n. rows: a tree of arrays [B, T, …] without gradients that a layer needs beside x.
      keep: the remat policy of a tick, used with repeats. Without it each tick would keep a copy of the parameters it chose.
    """
    S, M, R, delay = plan
    K = M // S
    forward, back = [(s, (s + 1) % S) for s in range(S if R > 1 else S - 1)], [(s + 1, s) for s in range(S - 1)]

    def on_stage(params: PyTree, x: jax.Array, rows: PyTree) -> Result:
        """Run all ticks on one stage, whose part of `params`, x and `rows` these are."""
        s = lax.axis_index(STAGE)
        waiting_K, rows_M = _apart(x, K), jax.tree.map(lambda r: lax.all_gather(_apart(r, K), STAGE, tiled=True), rows)
        parts = params if R == 1 else interleaved(params, S, R)

        def compute(parts: PyTree, rows_M: PyTree, x: jax.Array, microbatch: jax.Array, repeat: jax.Array) -> Result:
            some = parts if R == 1 else jax.tree.map(lambda p: _at(p, repeat), parts)
            return stage(some, x, jax.tree.map(lambda r: _at(r, microbatch), rows_M))

        if R > 1:
            compute = jax.checkpoint(compute, policy=keep, prevent_cse=False)

        def tick(carry: Carry, t: jax.Array) -> tuple[Carry, None]:
            travelling, waiting_K, done_K, sums_R = carry
            # What stage 0 takes from those that wait, and who takes its place.
            microbatch, repeat, there = plan.at(t)
            enters = there & (repeat == 0)
            first = _at(waiting_K, microbatch % K)
            waiting_K = _put(waiting_K, jnp.where(enters, lax.ppermute(first, STAGE, back), first), microbatch % K)

            # What this stage computes.
            *others, leaving = travelling
            arriving, *others = *others, lax.ppermute(leaving, STAGE, forward)
            microbatch, repeat, there = plan.at(t - delay * s)
            x = jnp.where((s == 0) & (repeat == 0), first, arriving)
            y, sums = compute(parts, rows_M, x, microbatch, repeat)
            sums_R = jax.tree.map(lambda a, b: _put(a, _at(a, repeat) + jnp.where(there, b, 0), repeat), sums_R, sums)

            # What the last stage has finished.
            microbatch, repeat, there = plan.at(t - delay * (S - 1))
            leaves = there & (repeat == R - 1)
            before = _at(done_K, microbatch % K)
            after = jnp.where(s == S - 1, y, lax.ppermute(before, STAGE, back))
            done_K = _put(done_K, jnp.where(leaves, after, before), microbatch % K)
            return ((*others, y), waiting_K, done_K, sums_R), None

        # Like rows that are used, or all tokens of an idle stage would be the same and take the same experts.
        nothing = lax.stop_gradient(waiting_K[0])
        _, sums = jax.eval_shape(compute, parts, rows_M, nothing, jnp.int32(0), jnp.int32(0))
        sums_R = jax.tree.map(lambda a: jnp.zeros((R, *a.shape), a.dtype), sums)
        carry = (nothing,) * delay, waiting_K, jnp.zeros_like(waiting_K), sums_R
        (_, _, done_K, sums_R), _ = lax.scan(tick, carry, jnp.arange(plan.ticks))
        return _together(done_K), jax.tree.map(lambda a: a[:, None], sums_R)

    x_BTD, rows = jax.tree.map(lambda r: reshard(r, "batch", length_axis(r), *[None] * (r.ndim - 2)), (x_BTD, rows))
    # Without check_vma: with it JAX 0.10 and 0.11 cannot lower the gradient of a shard_map within this one, as experts have.
    out = P(STAGE), P(None, STAGE)
    split = jax.shard_map(on_stage, in_specs=P(STAGE), out_specs=out, axis_names={STAGE}, check_vma=False)
    y_BTD, sums = split(params, x_BTD, rows)
    whole = jax.tree.map(lambda a: jax.sharding.reshard(a, P()), sums)  # [R, S, layers of a part, …]
    return y_BTD, jax.tree.map(lambda a: a.reshape(-1, *a.shape[3:]), whole)


def interleaved(params: PyTree, S: int, R: int) -> PyTree:
    """Return the R parts of a stage, [R, layers, …], from the n / S successive layers that it stores. Within a shard_map.

    Layers are stored in order, so that a checkpoint does not depend on the pipeline. Each step sends all of them once, and
    their gradients back; that is little beside the gathering of weights that fsdp does for each microbatch.
    """
    most = -(-R // S)  # parts that one stage gets from another
    send, pick, filled = np.zeros((S, S, most), np.int32), np.zeros((S, R), np.int32), np.zeros((S, S), int)
    for part in range(S * R):
        source, owner = part // R, part % S
        place = filled[source, owner]
        filled[source, owner] += 1
        send[source, owner, place] = part % R
        pick[owner, part // S] = source * most + place
    s = lax.axis_index(STAGE)
    send_SC, pick_R = jnp.asarray(send)[s], jnp.asarray(pick)[s]

    def moved(x: jax.Array) -> jax.Array:
        parts = x.reshape(R, -1, *x.shape[1:])[send_SC.reshape(-1)]
        return lax.all_to_all(parts, STAGE, 0, 0, tiled=True)[pick_R]

    return jax.tree.map(moved, params)


def layer_of(params: PyTree, n: jax.Array | int) -> PyTree:
    """Return layer n of arrays [layers, …] that are split over the stages, on all of them. n: int32 or an int."""

    def on_stage(params: PyTree, n: jax.Array) -> PyTree:
        def one(x: jax.Array) -> jax.Array:
            wide = x.astype(jnp.int8) if x.dtype in (jnp.int4, jnp.uint4) else x
            mine = lax.axis_index(STAGE) == n // len(x)
            return lax.psum(jnp.where(mine, _at(wide, n % len(x)), jnp.zeros_like(wide[0])), STAGE).astype(x.dtype)

        return jax.tree.map(one, params)

    split = jax.shard_map(on_stage, in_specs=(P(STAGE), P()), out_specs=P(), axis_names={STAGE})
    return split(params, jnp.int32(n))


def _apart(x: jax.Array, K: int) -> jax.Array:
    """Reshape rows [B, T, …] to [K, B / K, T, …]. Microbatch k has the rows k, k + K, …, so that no row moves."""
    where = spec("batch", None, length_axis(x), *[None] * (x.ndim - 2))
    x = lax.reshape(x, (len(x) // K, K, *x.shape[1:]), out_sharding=where)
    return jnp.moveaxis(x, 1, 0)


def _together(x_K: jax.Array) -> jax.Array:
    """Reshape [K, B / K, T, …] to [B, T, …]; the inverse of `_apart`."""
    x, where = jnp.moveaxis(x_K, 0, 1), spec("batch", length_axis(x_K[0]), *[None] * (x_K.ndim - 3))
    return lax.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=where)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _put(x: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x, value, index, axis=0)
