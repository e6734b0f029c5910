"""Apply the layers of a stack in order, in a loop or unrolled."""

import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from lm.config import ModelConfig
from lm.kernels.saved import layer_input
from lm.model.cache import layers_of
from lm.model.execution.remat import Policy, layer_runs
from lm.parallel.arrays import PyTree

Compute: TypeAlias = Callable[[jax.Array, jax.Array | None, PyTree], tuple[jax.Array, PyTree]]


def repeated(
    config: ModelConfig,
    compute: Compute,
    x_BTD: jax.Array,
    params: PyTree,
    caches: PyTree,
    repeats: int,
    layers: list[PyTree] | None = None,
) -> tuple[jax.Array, PyTree, PyTree]:
    """Return x after the layers, and the caches and the reports of each position of the block, stacked over the repeats.

    Args:
      compute: compute(x, x_bits, (params, number, caches)) -> (x, (caches, reports)) of one repeat.
      params: stacked over the repeats. None: compute gets None, and finds those of its number.
      caches: stacked, or None. layers: the parameters of each repeat, from `unstacked`, which spares an unrolled stack a split.
    """

    def under(policy: Policy | None) -> Compute:
        return compute if policy is None else jax.checkpoint(compute, policy=policy, prevent_cse=not config.scan_layers)

    runs = layer_runs(config, repeats)
    if caches is not None:  # without a gradient, so that nothing is kept; a split stack would copy its caches
        runs = [(slice(0, repeats), runs[0][1])]
    if not config.scan_layers:
        applies = [under(policy) for run, policy in runs for _ in range(run.stop - run.start)]
        return _unrolled(applies, x_BTD, params, caches, repeats, layers)
    inputs = (params, jnp.arange(repeats) if params is None else None, caches)
    found = []
    for run, policy in runs:
        some = inputs if len(runs) == 1 else jax.tree.map(operator.itemgetter(run), inputs)
        x_BTD, new = _scanned(under(policy), x_BTD, some, run.stop - run.start)
        found.append(new)
    return x_BTD, *(found[0] if len(found) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *found))


def _scanned(apply: Compute, x_BTD: jax.Array, inputs: PyTree, length: int) -> tuple[jax.Array, PyTree]:
    return lax.scan(lambda x, layer: apply(*layer_input(x), layer), x_BTD, inputs, length=length)


def _unrolled(
    applies: Sequence[Compute], x_BTD: jax.Array, params: PyTree, caches: PyTree, repeats: int, layers: list[PyTree] | None
) -> tuple[jax.Array, PyTree, PyTree]:
    found = []
    for n, one in enumerate(layers or ([None] * repeats if params is None else layers_of(params, repeats))):
        cache = caches and tuple(cache[n] for cache in caches)
        x_BTD, new = applies[n](*layer_input(x_BTD, as_bits=False), (one, n, cache))
        found.append(new)
    new, reports = zip(*found, strict=True)
    return x_BTD, tuple(zip(*new, strict=True)), jax.tree.map(lambda *x: jnp.stack(x), *reports)
