"""Sums across the processes of a CPU job, without gloo's reduce-scatter.

In a job of several processes, XLA's collectives on CPUs are gloo's. Its reduce-scatter sends from a buffer that it then
overwrites without waiting: once in a while the first device of a group gets a part of its neighbour's sum, and no error
(jax-ml/jax issue 40830; with parts of 16 MiB most results were wrong in jaxlib 0.10.2). Its all-to-all has no such fault.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir


def avoid_reduce_scatter() -> None:
    """From now on, programs for CPUs have `exchanged_and_summed` in place of each reduce-scatter, also of one in a gradient."""
    part = jax.ShapeDtypeStruct((2,), jnp.float32)
    traced = jax.make_jaxpr(lambda x: lax.psum_scatter(x, "axis", tiled=True), axis_env=[("axis", 2)])(part)
    rule = mlir.lower_fun(exchanged_and_summed, multiple_results=False)
    mlir.register_lowering(traced.eqns[0].primitive, rule, platform="cpu")


def exchanged_and_summed(
    x: jax.Array,
    *,
    axis_name: str,
    scatter_dimension: int,
    axis_index_groups: Sequence[Sequence[int]] | None,
    axis_size: int,
    tiled: bool,
    **_: object,
) -> jax.Array:
    """Within a shard_map, return what lax.psum_scatter returns: this device's part of the sum of x over an axis.

    Each device sends to each other one its part, and adds up what it got: as many bytes as a reduce-scatter moves.
    axis_size: devices of a group. The other arguments are those of lax.psum_scatter.
    """
    shape, d = x.shape, scatter_dimension
    parts = x.reshape(*shape[:d], axis_size, shape[d] // axis_size, *shape[d + 1 :]) if tiled else x
    mine = lax.all_to_all(parts, axis_name, d, d, axis_index_groups=axis_index_groups, tiled=True)
    return mine.sum(d, dtype=x.dtype)  # small integers would become int32
