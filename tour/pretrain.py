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
import orbax.checkpoint as ocp
from jax import Array, lax
from jax.sharding import NamedSharding

from tour.mesh import make_mesh, spec
from tour.model import TINY, Config, Params, Tokens, declare, hidden, init, logits
from tour.optimizers import Moments, Recipe, init_moments, update
from tour.text import batch_of_rows

Batch = dict[str, Any]
Batches = Callable[[int], Batch]  # batch n
Loss = Callable[[Params, Batch, Any], Array]


class State(NamedTuple):
    """All that a step changes."""

    step: Array
    params: Params
    moments: Moments


def token_losses(params: Params, config: Config, batch: Batch, temperature: float = 1.0) -> tuple[Array, Array, Array]:
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

    def loss(params: Params, batch: Batch, frozen: Any) -> Array:
        nll_BT, log_z_BT, balance = token_losses(params, config, batch)
        return jnp.sum(batch["weights"] * (nll_BT + z_loss * log_z_BT**2)) + config.balance_loss * balance

    return loss


def gradient(loss: Loss, params: Params, batch: Batch, frozen: Any, parts: int) -> tuple[Array, Params]:
    """Return loss / count and its gradient, one part of the batch at a time, which takes less memory.

    A loss is a sum, and the count is that of the whole batch, so a token counts the same in any part. What counts are
    tokens, by their weights; or examples, where the batch has "counts" [B].
    """
    weight = jnp.sum(batch["counts"] if "counts" in batch else batch["weights"])

    def of_part(part: Batch) -> tuple[Array, Params]:
        return jax.value_and_grad(lambda params: loss(params, part, frozen) / weight)(params)

    if parts == 1:
        return of_part(batch)

    def split(x: Array) -> Array:
        """Put rows i, i + parts, … into part i, so that every device keeps its rows."""
        shape, where = (x.shape[0] // parts, parts, *x.shape[1:]), spec("batch", *[None] * x.ndim)
        return jnp.moveaxis(lax.reshape(x, shape, out_sharding=where), 1, 0)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(part)), None

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    return lax.scan(add, zeros, jax.tree.map(split, batch))[0]


def make_step(loss: Loss, weights: Params, recipe: Recipe, parts: int = 1) -> Callable[..., tuple[State, Array]]:
    """Return the compiled (state, batch, frozen) → (next state, loss). frozen: what a loss needs and does not learn."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: Batch, frozen: Any = None) -> tuple[State, Array]:
        mean_loss, grads = gradient(loss, state.params, batch, frozen, parts)
        params, moments = update(weights, state.params, grads, state.moments, state.step, recipe)
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


def train(step: Callable, state: State, batches: Batches, stop: int, frozen: Any = None) -> State:
    """Run the steps up to `stop`, and print the loss sometimes.

    A restored state has the saved bits and batch n is the same again, so a resumed run computes the same bits.
    """
    begin, start = time.monotonic(), int(state.step)
    for n in range(start, stop):
        state, loss = step(state, on_mesh(batches(n)), frozen)
        if (n + 1) % max(1, stop // 5) == 0:  # seldom: to print the loss is to wait for the device
            print(f"step {n + 1}: loss {loss:.3f}, {(time.monotonic() - begin) / (n + 1 - start):.2f} s a step")
    return state


def fit(loss: Loss, weights: Params, params: Params, recipe: Recipe, batches: Batches, frozen: Any = None) -> Params:
    """Return the weights after all steps of a recipe."""
    step, state = make_step(loss, weights, recipe), first_state(weights, params, recipe)
    return train(step, state, batches, recipe.steps, frozen).params


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    text = Path(__file__).read_bytes()  # a byte a token
    batch = batch_of_rows([[list(text[i : i + 257])] for i in range(0, 2000, 250)], 256)
    recipe, weights = Recipe(steps=50, learning_rate=0.01), declare(TINY)
    fit(next_token_loss(TINY, recipe.z_loss), weights, init(weights, 0), recipe, lambda n: batch)
