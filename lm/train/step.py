"""One training step and one validation step, as pure functions of (state, batch).

A batch is a dict of [B, T] arrays: tokens, targets, segment_ids, positions (int32) and weights (float32).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from lm.config import ModelConfig
from lm.kernels.cross_entropy import cross_entropy
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

    init() -> TrainState; step(state, batch) -> (TrainState, metrics); evaluate(params, batch, bytes_V) -> sums.
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
    transform = adamw(abstract, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay)
    learning_rate = schedule(
        o.schedule, peak=o.learning_rate, steps=config.steps, warmup=o.warmup, final=o.final, decay=o.decay
    )

    def init() -> TrainState:
        params = build(model_config, config.seed)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, transform.init(params), zero, zero)

    loss = functools.partial(token_loss, graph, z_loss=o.z_loss)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        weight = jnp.sum(batch["weights"])
        (objective, nll), grads = accumulated_gradient(loss, state.params, batch, weight, config.accumulate)
        norm = optax.global_norm(grads)
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, o.clip_norm / (norm + 1e-9)), grads)
        rate = learning_rate(state.step)
        updates, optimizer = transform.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        ok = jnp.isfinite(objective) & jnp.isfinite(norm)
        # A bad step leaves parameters and moments bit for bit as they were, without asking the host.
        params, optimizer = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old), (params, optimizer), (state.params, state.optimizer)
        )
        bad = jnp.int32(1) - ok.astype(jnp.int32)
        in_row = (state.skipped_in_row + bad) * bad
        state = TrainState(state.step + 1, params, optimizer, state.skipped + bad, in_row)
        metrics = {
            "loss": nll, "grad_norm": norm, "learning_rate": rate, "weight": weight * ok,
            "skipped": state.skipped, "skipped_in_row": in_row,
        }  # fmt: skip
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


def token_loss(graph, params: nnx.State, batch: dict, *, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """(Σ w·(nll + z), Σ w·nll) over a batch, float32; the caller divides by Σ w."""
    model = nnx.merge(graph, params)
    x_BTD, _ = model.hidden(batch["tokens"], batch["segment_ids"], batch["positions"])
    return cross_entropy(
        x_BTD, model.head_VD, batch["targets"], batch["weights"], dtype=model.config.dtype, z_loss=z_loss
    )


def accumulated_gradient(loss, params, batch: dict, weight, parts: int):
    """Value and gradient of loss(params, batch) / weight, taken in `parts` equal slices of the batch one after another.

    Every slice is divided by the weight of the whole batch, so that a token counts the same whichever slice it is in.
    Returns: ((objective, nll), gradients), float32.
    """

    def mean(params, part):
        total, nll = loss(params, part)
        return total / weight, nll / weight

    grad = jax.value_and_grad(mean, has_aux=True)
    if parts == 1:
        return grad(params, batch)

    def split(x):
        # Slice i holds rows i, i + parts, …: on every device a share of its own rows, so nothing moves.
        x = jax.lax.reshape(x, (x.shape[0] // parts, parts, *x.shape[1:]), out_sharding=spec("batch", None, None))
        return jnp.moveaxis(x, 1, 0)

    def body(carry, part):
        return jax.tree.map(jnp.add, carry, grad(params, part)), None

    zeros = ((jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, params))
    return lax.scan(body, zeros, jax.tree.map(split, batch))[0]


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
