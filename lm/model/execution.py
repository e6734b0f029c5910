"""How the layers of a model are executed: scanned or unrolled, with rematerialisation and offload, in pipeline stages.

A stack is a block of layers of several kinds that is repeated; a layer's parameters, caches and reports are stacked over the
repeats. Everything about execution is decided here, and nothing of it changes what is computed.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_policies

from lm.config import LayerKind, ModelConfig
from lm.kernels.attention import Visible
from lm.kernels.saved import INPUT, NAME, WIDE, from_bits, kept_input, layer_input
from lm.model.cache import Given
from lm.model.inputs import Step
from lm.parallel.arrays import PyTree
from lm.parallel.context import slots
from lm.parallel.memory import HOST, has_host_memory
from lm.parallel.mesh import over_stages, platform
from lm.parallel.pipeline import layer_of, pipelined, schedule

Policy: TypeAlias = Callable[..., bool]  # of jax.checkpoint: whether to keep a value
Compute: TypeAlias = Callable[[jax.Array, jax.Array | None, PyTree], tuple[jax.Array, PyTree]]  # of `repeated`
Passed: TypeAlias = tuple[jax.Array, PyTree, PyTree]  # x, caches and reports, see `through`

FEW = 12  # layers of a kind that one CPU unrolls in training: then it copies no values into stacks, and little is to compile
KEPT: dict[str, tuple[str, ...]] = {"matmuls": (NAME, WIDE), "attention": (NAME,), "full": ()}  # by model.remat


def layer_policy(config: ModelConfig, remat: str = "") -> Policy:
    """Return the policy of jax.checkpoint for a layer. Its arguments are kept too, by jax.checkpoint itself.

    remat: that of the layer; default model.remat.
    With `model.offload` all that has a name is kept in host memory, also the layer's input: give it its name inside.
    """
    remat = remat or config.remat
    if remat == "none":
        return checkpoint_policies.everything_saveable
    return _keeping((*KEPT[remat], INPUT) if offloads(config) else KEPT[remat], config)


def layer_runs(config: ModelConfig, repeats: int) -> list[tuple[slice, Policy | None]]:
    """Return the runs of a stack's layers, in order, and the policy of each; None: jax.checkpoint is not used.

    The last `model.remat_matmuls_last` layers have the policy "matmuls". The backward pass begins with them.
    """
    if config.remat == "none":
        return [(slice(0, repeats), None)]
    first = repeats - min(config.remat_matmuls_last, repeats)
    runs = [(slice(0, first), layer_policy(config)), (slice(first, repeats), layer_policy(config, "matmuls"))]
    return [(layers, policy) for layers, policy in runs if layers.start < layers.stop]


def tick_policy(config: ModelConfig) -> Policy:
    """Return the policy of a tick of a pipeline with repeats. Its parameters are chosen again instead of being kept."""
    return _keeping((*KEPT["matmuls" if config.remat == "none" else config.remat], INPUT), config)


def offloads(config: ModelConfig) -> bool:
    """Return whether layers keep their values in host memory: `model.offload` asks for it, and the devices have it."""
    return config.offload and has_host_memory()


def _keeping(names: tuple[str, ...], config: ModelConfig) -> Policy:
    if not offloads(config):
        return checkpoint_policies.save_only_these_names(*names)
    return checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=names, offload_src="device", offload_dst=HOST
    )


def repeated(
    config: ModelConfig,
    compute: Compute,
    params: PyTree,
    caches: PyTree,
    repeats: int,
    layers: list[PyTree] | None,
    x_BTD: jax.Array,
) -> Passed:
    """Return x after the layers, and the caches and the reports of each position of the block, stacked over the repeats.

    Args:
      compute: compute(x, x_bits, (params, number, caches)) -> (x, (caches, reports)) of one repeat.
      params: stacked over the repeats. None: compute gets None, and finds those of its number.
      caches: stacked, or None.
      layers: the parameters of each repeat, from `unstacked`, which spares an unrolled stack a split; or None.
    """

    one_cpu = platform() == "cpu" and jax.sharding.get_abstract_mesh().size == 1
    scans = config.scan_layers and not (one_cpu and caches is None and repeats <= FEW)

    def under(policy: Policy | None) -> Compute:
        return compute if policy is None else jax.checkpoint(compute, policy=policy, prevent_cse=not scans)

    runs = layer_runs(config, repeats)
    if caches is not None:  # without a gradient, so that nothing is kept; a split stack would copy its caches
        runs = [(slice(0, repeats), runs[0][1])]
    if not scans:
        applies = [under(policy) for run, policy in runs for _ in range(run.stop - run.start)]
        return _unrolled(applies, x_BTD, params, caches, repeats, layers)
    inputs = (params, jnp.arange(repeats) if params is None else None, caches)
    of_runs = []
    for run, policy in runs:
        some, apply = inputs if len(runs) == 1 else jax.tree.map(operator.itemgetter(run), inputs), under(policy)
        scanned = functools.partial(lambda apply, x, layer: apply(*layer_input(x), layer), apply)
        x_BTD, new = lax.scan(scanned, x_BTD, some, length=run.stop - run.start)
        of_runs.append(new)
    return x_BTD, *(of_runs[0] if len(of_runs) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *of_runs))


def _unrolled(
    applies: Sequence[Compute], x_BTD: jax.Array, params: PyTree, caches: PyTree, repeats: int, layers: list[PyTree] | None
) -> tuple[jax.Array, PyTree, PyTree]:
    of_layers = []
    for n, of_layer in enumerate(layers or ([None] * repeats if params is None else layers_of(params, repeats))):
        cache = caches and tuple(cache[n] for cache in caches)
        x_BTD, new = applies[n](*layer_input(x_BTD, as_bits=False), (of_layer, n, cache))
        of_layers.append(new)
    new, reports = zip(*of_layers, strict=True)
    return x_BTD, tuple(zip(*new, strict=True)), jax.tree.map(lambda *x: jnp.stack(x), *reports)


def unstacked(params: PyTree, repeats: int) -> list[PyTree]:
    """Return the parameters of each layer of a stack, on all stages of the mesh."""
    if over_stages(repeats):
        return [layer_of(params, n) for n in range(repeats)]
    return layers_of(params, repeats)


def layers_of(tree: PyTree, repeats: int) -> list[PyTree]:
    """Split stacked arrays into a list of trees, one a layer. The gradients of all layers come back as one array."""
    leaves, kind = jax.tree.flatten(tree)
    split = [lax.split(leaf, (1,) * repeats) for leaf in leaves]
    return [jax.tree.unflatten(kind, [jnp.squeeze(parts[n], 0) for parts in split]) for n in range(repeats)]


def rows_of(steps: dict[bool, Step]) -> tuple[Any, ...]:
    """Return the arrays [B, …] of the Steps of a call without a cache."""
    step = next(iter(steps.values()))
    assert step.visible is not None
    by_kind = {local: (step.rotary, step.visible.segments_BT) for local, step in steps.items() if step.visible}
    return by_kind, step.visible.branches, step.tokens_BT, step.temperature_BT11


def of_rows(rows: tuple[Any, ...]) -> dict[bool, Step]:
    """Return the Steps of some rows; the inverse of `rows_of`."""
    by_kind, branches, *others = rows

    def step(angles: Any, segments_BT: jax.Array) -> Step:
        visible = Visible(segments_BT, segments_BT, slots(segments_BT.shape[1]), branches)
        return Step(angles, visible, False, 0, segments_BT > 0, None, *others)

    return {local: step(*of_kind) for local, of_kind in by_kind.items()}


def through(
    config: ModelConfig,
    stack: tuple[Sequence[nnx.Module], tuple[LayerKind, ...], int],
    rows: int,
    steps: dict[bool, Step],
    caches: tuple[PyTree, ...] | None = None,
    layers: list[PyTree] | None = None,
    given: tuple[jax.Array, ...] | None = None,
) -> Callable[[jax.Array], Passed]:
    """Return the function of x [rows, T, D] that sends it through a stack.

    It returns x, and for each position of the block its caches and its RouterStats or None, stacked over the repeats.
    A stack that is split over the stages of the mesh is a pipeline. With a cache, or if the pipeline's repeats do not
    divide it, it is not: then each layer's parameters are sent to all devices before they are used.

    Args:
      stack: (the modules of a block, their kinds, the number of repeats).
      caches: for each position of the block, or None. layers: the parameters of each repeat, from `Transformer.unstacked`.
      given: embeddings for the layers at each position, [repeats, B, T, P] (model.layer_embed_dim), beside their parameters.
    """
    modules, block, repeats = stack
    graphs, params = zip(*map(nnx.split, modules))
    if given is not None:
        layers = layers and [tuple(zip(*both)) for both in zip(layers, layers_of(given, repeats))]
        params = tuple(zip(params, given))
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
            of_layer, given_BTP = (of_layer, None) if given is None else of_layer
            cache = Given(cache) if kind.gives else cache
            x, cache, router = nnx.merge(graph, of_layer)(x, steps[kind.local], cache, given_BTP)
            new.append(cache)
            stats.append(router)
        return x, (tuple(new), tuple(stats))

    plan = schedule(config.pipeline, rows) if on_stages and caches is None else None
    if plan is None or repeats % (plan.stages * plan.repeats):
        compute = functools.partial(compute_block, steps)
        return functools.partial(repeated, config, compute, None if on_stages else params, caches, repeats, layers)

    def stage(params: PyTree, x: jax.Array, rows: PyTree) -> tuple[jax.Array, PyTree]:
        compute, here = functools.partial(compute_block, of_rows(rows)), repeats // (plan.stages * plan.repeats)
        x, _, stats = repeated(config, compute, params, None, here, None, x)
        return x, stats

    def in_stages(x_BTD: jax.Array) -> Passed:
        x_BTD, stats = pipelined(stage, params, x_BTD, rows_of(steps), plan, tick_policy(config))
        return x_BTD, (None,) * len(block), stats

    return in_stages


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

    return repeated(config, compute, None if on_stages else params, None, num_layers, None, x_RPD)[0]
