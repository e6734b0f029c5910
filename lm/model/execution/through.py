"""Activations through the layers of a stack.

A stack is a block of layers of several kinds that is repeated; a layer's parameters, caches and reports are stacked over the
repeats. Everything about execution is decided here, and nothing of it changes what is computed.
"""

import functools
from collections.abc import Sequence

import jax
from flax import nnx

from lm.config import LayerKind, ModelConfig
from lm.kernels.saved import from_bits, kept_input
from lm.model.execution.loop import repeated
from lm.model.execution.remat import offloads, tick_policy
from lm.model.execution.stages import of_rows, rows_of
from lm.model.steps import Step
from lm.parallel.arrays import PyTree
from lm.parallel.mesh import over_stages
from lm.parallel.pipeline import layer_of, pipelined, schedule


def through(
    config: ModelConfig,
    stack: tuple[Sequence[nnx.Module], tuple[LayerKind, ...], int],
    x_BTD: jax.Array,
    steps: dict[bool, Step],
    caches: tuple[PyTree, ...] | None = None,
    layers: list[PyTree] | None = None,
) -> tuple[jax.Array, tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Return x, and for each position of the block its caches and its RouterStats or None, stacked over the repeats.

    A stack that is split over the stages of the mesh is a pipeline. With a cache, or if the pipeline's repeats do not
    divide it, it is not: then each layer's parameters are sent to all devices before they are used.

    Args:
      stack: (the modules of a block, their kinds, the number of repeats).
      caches: for each position of the block, or None. layers: the parameters of each repeat, from `Transformer.unstacked`.
    """
    modules, block, repeats = stack
    graphs, params = zip(*(nnx.split(module) for module in modules))
    on_stages, offloaded = over_stages(repeats) and layers is None, offloads(config)

    def compute_block(
        steps: dict[bool, Step], x: jax.Array, x_bits: jax.Array | None, layer: PyTree
    ) -> tuple[jax.Array, PyTree]:
        if offloaded:
            x, x_bits = kept_input(x, x_bits)
        x, (all_params, n, caches) = from_bits(x_bits, x), layer
        all_params = layer_of(params, n) if all_params is None else all_params
        new, stats = [], []
        for graph, kind, of_layer, cache in zip(graphs, block, all_params, caches or [None] * len(block)):
            x, cache, router = nnx.merge(graph, of_layer)(x, steps[kind.local], cache)
            new.append(cache)
            stats.append(router)
        return x, (tuple(new), tuple(stats))

    def in_order(params: PyTree, x: jax.Array, steps: dict[bool, Step], repeats: int) -> tuple[jax.Array, PyTree, PyTree]:
        """Return x after the layers, their caches and reports. params: None: each layer's are sent when it comes."""
        compute = functools.partial(compute_block, steps)
        return repeated(config, compute, x, params, caches, repeats, layers)

    plan = schedule(config.pipeline, len(x_BTD)) if on_stages and caches is None else None
    if plan is None or repeats % (plan.stages * plan.repeats):
        return in_order(None if on_stages else params, x_BTD, steps, repeats)

    def stage(params: PyTree, x: jax.Array, rows: PyTree) -> tuple[jax.Array, PyTree]:
        x, _, stats = in_order(params, x, of_rows(rows), repeats // (plan.stages * plan.repeats))
        return x, stats

    x_BTD, stats = pipelined(stage, params, x_BTD, rows_of(steps), plan, tick_policy(config))
    return x_BTD, (None,) * len(block), stats


def through_encoder(config: ModelConfig, layers: nnx.Module, x_RPD: jax.Array, num_layers: int) -> jax.Array:
    """Return x after the first `num_layers` of the layers of an encoder, which have no cache and are all of one kind."""
    graph, params = nnx.split(layers)
    stored, offloaded = len(jax.tree.leaves(params)[0]), offloads(config)
    on_stages = over_stages(stored)
    if num_layers < stored and not on_stages:
        params = jax.tree.map(lambda x: x[:num_layers], params)

    def compute(x: jax.Array, x_bits: jax.Array | None, layer: PyTree) -> tuple[jax.Array, PyTree]:
        if offloaded:
            x, x_bits = kept_input(x, x_bits)
        x, (of_layer, n, _) = from_bits(x_bits, x), layer
        return nnx.merge(graph, layer_of(params, n) if of_layer is None else of_layer)(x), ((), ())

    return repeated(config, compute, x_RPD, None if on_stages else params, None, num_layers)[0]
