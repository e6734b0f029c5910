"""One training step and one validation step, as pure functions of (state, batch).

A batch is a dict of [B, T] arrays: tokens, targets, segment_ids, positions (int32) and weights (float32).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from lm.config import ModelConfig
from lm.kernels.cross_entropy import cross_entropy
from lm.model.linear import trainable
from lm.model.moe import balanced
from lm.model.transformer import build, skeleton
from lm.parallel.mesh import shardings, spec
from lm.train.optimizer import adamw
from lm.train.schedule import schedule


class TrainState(NamedTuple):
    """All that a step changes. `step` counts batches seen, `skipped` those whose update was left out."""

    step: jax.Array  # int32
    params: nnx.State
    optimizer: Any
    skipped: jax.Array  # int32
    skipped_in_row: jax.Array  # int32


class Trainer(NamedTuple):
    """The pure functions of one run; none of them holds state.

    init(params=None) -> TrainState, of random parameters if none are given; step(state, batch) -> (TrainState, metrics);
    evaluate(params, batch, bytes_V) -> sums.
    """

    init: Any
    step: Any
    evaluate: Any
    abstract_params: nnx.State


def make_trainer(config) -> Trainer:
    """Builds the step for a resolved training config (see configs/train/default.py) under the mesh that is set."""
    model_config = model_config_of(config)
    graph, abstract = skeleton(model_config)
    o = config.optimizer
    learns = trainable(model_config)
    transform = adamw(
        nnx.filter_state(abstract, learns), model_config, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay
    )
    learning_rate = schedule(
        o.schedule, peak=o.learning_rate, steps=config.steps, warmup=o.warmup, final=o.final, decay=o.decay
    )

    def init(params: nnx.State | None = None) -> TrainState:
        params = build(model_config, config.seed) if params is None else params
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, transform.init(nnx.filter_state(params, learns)), zero, zero)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        weight = jnp.sum(batch["weights"])
        params, frozen = nnx.split_state(state.params, learns, ...)

        def loss(params, batch):
            return training_loss(graph, nnx.merge_state(params, frozen), batch, z_loss=o.z_loss, mtp_loss=o.mtp_loss)

        (objective, sums), grads = accumulated_gradient(loss, params, batch, weight, config.accumulate)
        norm = optax.global_norm(grads)
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, o.clip_norm / (norm + 1e-9)), grads)
        rate = learning_rate(state.step)
        updates, optimizer = transform.update(grads, state.optimizer, params)
        params = nnx.merge_state(jax.tree.map(lambda p, u: p - rate * u, params, updates), frozen)
        if not model_config.adapter.rank:  # then nothing of the base moves
            params = with_balance(params, sums.loads, model_config.moe.bias_rate)
        ok = jnp.isfinite(objective) & jnp.isfinite(norm)
        # A bad step leaves parameters and moments bit for bit as they were, without asking the host.
        params, optimizer = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old), (params, optimizer), (state.params, state.optimizer)
        )
        bad = jnp.int32(1) - ok.astype(jnp.int32)
        in_row = (state.skipped_in_row + bad) * bad
        state = TrainState(state.step + 1, params, optimizer, state.skipped + bad, in_row)
        metrics = {
            "loss": sums.nll, "grad_norm": norm, "learning_rate": rate, "weight": weight * ok,
            "skipped": state.skipped, "skipped_in_row": in_row,
        }  # fmt: skip
        if sums.loads:
            metrics["expert_load"] = jnp.max(jnp.stack([busiest(load) for load in sums.loads.values()]))
        if model_config.mtp_depth:
            metrics["loss_ahead"] = sums.nll_ahead / jnp.maximum(1e-9, sums.weight_ahead)
        return state, metrics

    def evaluate(params: nnx.State, batch: dict, bytes_V: jax.Array) -> dict:
        """Sums over the batch: nll in nats, targets, and UTF-8 bytes that the targets stand for."""
        (_, nll), weight = token_loss(graph, params, batch, z_loss=0.0), jnp.sum(batch["weights"])
        target_bytes = bytes_V.at[batch["targets"]].get(out_sharding=spec("batch", None))
        return {"nll": nll, "weight": weight, "bytes": jnp.sum(batch["weights"] * target_bytes)}

    return Trainer(init, step, evaluate, abstract)


def model_config_of(config) -> ModelConfig:
    """The model's blueprint in a training config; the compute type stands at its top level."""
    return ModelConfig(**config.model, dtype=config.dtype)


class Sums(NamedTuple):
    """What a batch adds up to beside the objective: nll of the next token, nll and weight of those further ahead, and, by the
    path of each layer that routes, how many tokens each expert was sent."""

    nll: jax.Array
    nll_ahead: jax.Array
    weight_ahead: jax.Array
    loads: dict[tuple, jax.Array]


def token_loss(graph, params: nnx.State, batch: dict, *, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """(Σ w·(nll + z), Σ w·nll) over a batch, float32; the caller divides by Σ w."""
    model = nnx.merge(graph, params)
    x_BTD = model.hidden(batch["tokens"], batch["segment_ids"], batch["positions"]).x_BTD
    return _head_loss(model, x_BTD, batch["targets"], batch["weights"], z_loss)


def training_loss(graph, params: nnx.State, batch: dict, *, z_loss: float, mtp_loss: float) -> tuple[jax.Array, Sums]:
    """The training objective as a sum over tokens, and sums to report.

    To the next token's Σ w·(nll + z) come mtp_loss / depth · Σ over the depth of the same for tokens further ahead
    (DeepSeek-V3, 2024, eq. 25), and the routers' losses, which are sums over tokens and layers (lm/model/moe.py).
    """
    model = nnx.merge(graph, params)
    main, ahead = model.hidden_ahead(batch["tokens"], batch["targets"], batch["segment_ids"], batch["positions"])
    objective, nll = _head_loss(model, main.x_BTD, batch["targets"], batch["weights"], z_loss)
    nll_ahead, weight_ahead = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
    for k, hidden in enumerate(ahead, start=1):

        def later(x_BT, k=k):
            return jnp.pad(x_BT[:, k:], ((0, 0), (0, k)))

        # A target of the same document: one that is further ahead than the document goes has no weight.
        weights = later(batch["weights"]) * (later(batch["segment_ids"]) == batch["segment_ids"])
        one, nll_k = _head_loss(model, hidden.x_BTD, later(batch["targets"]), weights, z_loss)
        objective = objective + mtp_loss / len(ahead) * one
        nll_ahead, weight_ahead = nll_ahead + nll_k, weight_ahead + jnp.sum(weights)
    moe, loads = model.config.moe, {}
    for router in (hidden.router for hidden in (main, *ahead)):
        if router is not None:
            objective = objective + moe.balance_loss * router.balance + moe.router_z_loss * router.z
            loads |= router.loads
    return objective, Sums(nll, nll_ahead, weight_ahead, loads)


def _head_loss(model, x_BTD, targets_BT, weights_BT, z_loss):
    config = model.config
    return cross_entropy(
        x_BTD, model.head_VD, targets_BT, weights_BT, dtype=config.dtype, z_loss=z_loss, softcap=config.logit_softcap
    )


def busiest(load: jax.Array) -> jax.Array:
    """The load [..., E] of the busiest expert of any layer, in units of an even share."""
    return jnp.max(load / jnp.maximum(1e-9, jnp.mean(load, axis=-1, keepdims=True)))


def with_balance(params: nnx.State, loads: dict[tuple, jax.Array], rate: float) -> nnx.State:
    """The parameters with each router's balance bias moved against the load it had (DeepSeek-V3, 2024, §2.1.2)."""
    params = jax.tree.map(lambda x: x, params)
    for path, load in loads.items():
        layer = params
        for name in path:
            layer = layer[name]
        if "balance_bias" in layer["feed_forward"]:
            bias = layer["feed_forward"]["balance_bias"]
            bias.set_value(balanced(bias.get_value(), load, rate))
    return params


def accumulated_gradient(loss, params, batch: dict, weight, parts: int):
    """Value and gradient of loss(params, batch) / weight, taken in `parts` equal slices of the batch one after another.

    loss(params, batch) -> (objective, a tree of sums). Every slice is divided by the weight of the whole batch, so that a token
    counts the same whichever slice it is in.
    Returns: ((objective, sums), gradients), float32, all divided by `weight`.
    """

    def mean(params, part):
        return jax.tree.map(lambda total: total / weight, loss(params, part))

    grad = jax.value_and_grad(mean, has_aux=True)
    if parts == 1:
        return grad(params, batch)

    def split(x):
        # Slice i holds rows i, i + parts, …: on every device a share of its own rows, so nothing moves.
        x = jax.lax.reshape(x, (x.shape[0] // parts, parts, *x.shape[1:]), out_sharding=spec("batch", None, None))
        return jnp.moveaxis(x, 1, 0)

    def body(carry, part):
        return jax.tree.map(jnp.add, carry, grad(params, part)), None

    slices = jax.tree.map(split, batch)
    shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], slices))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding and x.sharding.spec), shapes)
    return lax.scan(body, zeros, slices)[0]


def abstract_state(trainer: Trainer, mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state: what a checkpoint is read onto, or a program compiled for."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(trainer.init),
        state_shardings(trainer, mesh),
    )


def state_shardings(trainer: Trainer, mesh) -> TrainState:
    """The NamedSharding of every array of the state: moments lie where their parameters do, counters everywhere."""
    return shardings(jax.eval_shape(trainer.init), mesh)
