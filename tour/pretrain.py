"""Pretraining: predict the next token of text. The loss, the training step, checkpoints and exact resume.

A batch is a dict of arrays [B, T]: tokens, targets (the next tokens), segment_ids, positions, and weights, which are
0 for targets that do not count, such as padding. Batch n is a function of (seed, n), so a run resumes without replay.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax
from jax.sharding import NamedSharding

from tour.mesh import make_mesh, spec
from tour.model import Config, Params, Tokens, declare, hidden, init, logits
from tour.optimizers import Moments, Recipe, init_moments, update

Batch = dict[str, Any]
Loss = Callable[[Params, Batch, Any], jax.Array]


class State(NamedTuple):
    """All that a step changes."""

    step: jax.Array
    params: Params
    moments: Moments


def token_losses(
    params: Params, config: Config, batch: Batch, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return −log p(target) and log Z of each token, float32 [B, T], and the sum of the experts' balance losses.

    log p(v) = z_v − log Z with the logits z, divided by the temperature, and Z = Σ_v exp(z_v).
    """
    ids = Tokens(batch["tokens"], batch["segment_ids"], batch["positions"])
    x_BTD, _, balance = hidden(params, config, ids)
    logits_BTV = logits(params, config, x_BTD) / temperature
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    # A sum, not a look-up: each device holds the logits of some words only.
    is_target_BTV = jnp.arange(config.vocab_size) == batch["targets"][..., None]
    return log_z_BT - jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0), axis=-1), log_z_BT, balance


def next_token_loss(config: Config, z_loss: float = 0.0) -> Loss:
    """Return the loss Σ w·(−log p(target) + z_loss·(log Z)²), plus the balance loss of experts."""

    def loss(params: Params, batch: Batch, frozen: Any) -> jax.Array:
        nll_BT, log_z_BT, balance = token_losses(params, config, batch)
        return jnp.sum(batch["weights"] * (nll_BT + z_loss * log_z_BT**2)) + config.balance_loss * balance

    return loss


def gradient(loss: Loss, params: Params, batch: Batch, frozen: Any, parts: int) -> tuple[jax.Array, Params]:
    """Return Σ loss / Σ counts and its gradient, one part of the batch at a time, which takes less memory.

    A loss is a sum, and is divided by the count of the whole batch, so a token counts the same in any part. Counts are
    those of tokens, their weights, unless the batch counts examples: then it has "counts" [B].
    """
    weight = jnp.sum(batch["counts"] if "counts" in batch else batch["weights"])

    def of_part(part: Batch) -> tuple[jax.Array, Params]:
        return jax.value_and_grad(lambda params: loss(params, part, frozen) / weight)(params)

    if parts == 1:
        return of_part(batch)

    def split(x: jax.Array) -> jax.Array:
        """Put rows i, i + parts, … into part i, so that every device keeps its rows."""
        shape, where = (x.shape[0] // parts, parts, *x.shape[1:]), spec("batch", *[None] * x.ndim)
        return jnp.moveaxis(lax.reshape(x, shape, out_sharding=where), 1, 0)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(part)), None

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    return lax.scan(add, zeros, jax.tree.map(split, batch))[0]


def make_step(loss: Loss, weights: Params, recipe: Recipe, parts: int = 1) -> Callable[..., tuple[State, jax.Array]]:
    """Return the compiled function (state, batch, frozen) → (next state, loss). All methods train with it.

    weights: the declaration of what learns. frozen: arrays of the loss that do not learn, such as a reference model.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: Batch, frozen: Any = None) -> tuple[State, jax.Array]:
        mean_loss, grads = gradient(loss, state.params, batch, frozen, parts)
        params, moments, _ = update(weights, state.params, grads, state.moments, state.step, recipe)
        return State(state.step + 1, params, moments), mean_loss

    return step


def first_state(weights: Params, params: Params, recipe: Recipe) -> State:
    """Return the state before the first step. The weights are copied, because a step reuses the memory of its input."""
    copy = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), copy, init_moments(weights, copy, recipe))


def on_mesh(batch: Batch) -> Batch:
    """Return the arrays of a batch, split over the mesh by rows."""
    mesh = jax.sharding.get_mesh()
    return {k: jax.device_put(x, NamedSharding(mesh, spec("batch", *[None] * (x.ndim - 1)))) for k, x in batch.items()}


def save(folder: Path, state: State) -> None:
    """Write a checkpoint. Orbax renames the folder when it is complete, so a run that dies leaves none that is half."""
    with ocp.StandardCheckpointer() as saver:
        saver.save(folder.resolve() / str(int(state.step)), state._asdict())


def restored(folder: Path, state: State) -> State:
    """Return the newest checkpoint, split like `state`; or `state` if there is none."""
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not steps:
        return state
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state._asdict())
    with ocp.StandardCheckpointer() as saver:
        fields = saver.restore(folder.resolve() / str(max(steps)), shapes)
    return State(**fields)


def train(step: Callable, state: State, batches: Callable[[int], Batch], stop: int, frozen: Any = None) -> State:
    """Run the steps up to `stop`, and print the loss ten times.

    A restored state has the bits that were saved and batch n is the same again, so a resumed run computes the same
    bits.
    """
    begin, start = time.monotonic(), int(state.step)
    for n in range(start, stop):
        state, loss = step(state, on_mesh(batches(n)), frozen)
        if (n + 1) % max(1, stop // 10) == 0:  # seldom: to print the loss is to wait for the device
            print(f"step {n + 1}: loss {loss:.3f}, {(time.monotonic() - begin) / (n + 1 - start):.2f} s a step")
    return state


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    config = Config(vocab_size=256, num_layers=2, embed_dim=64, mlp_dim=128, head_dim=16)
    recipe, weights = Recipe(steps=50, learning_rate=0.01), declare(config)
    text = np.frombuffer(Path(__file__).read_bytes(), np.uint8).astype(np.int32)

    def batches(n: int) -> Batch:
        """Return eight pieces of this file, a byte a token."""
        starts = np.random.default_rng(n).integers(0, len(text) - 65, 8)
        rows = np.stack([text[i : i + 65] for i in starts])
        same, ones = np.arange(64)[None].repeat(8, 0), np.ones((8, 64), np.int32)
        names = ("tokens", "targets", "positions", "segment_ids", "weights")
        return dict(zip(names, (rows[:, :-1], rows[:, 1:], same, ones, ones.astype(np.float32))))

    state = first_state(weights, init(weights, seed=0), recipe)
    train(make_step(next_token_loss(config, recipe.z_loss), weights, recipe), state, batches, recipe.steps)
