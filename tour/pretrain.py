"""Pretraining: predict the next token of text. The loss, the training step, checkpoints and exact resume.

A batch is a dict of arrays [B, T]: tokens, targets (the next tokens), segment_ids, positions, and weights, which are
0 for targets that do not count, such as padding. Batch n is a function of (seed, n), so a run resumes without replay.
"""

import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array, lax
from jax.sharding import NamedSharding

from tour.mesh import make_mesh, spec
from tour.model import TINY, Batch, Config, Params, declare, hidden, init, logits
from tour.optimizers import Recipe, State, first_state, update
from tour.text import batch_of_rows

Batches = Callable[[int, Params], Batch]  # batch n; reinforcement learning draws it with the current weights
Loss = Callable[[Params, Batch, Any], tuple]  # (weights, batch, what a loss needs and does not learn) → (sum, weight)


def token_losses(params: Params, config: Config, batch: Batch) -> tuple[Array, Array, Array]:
    """Return −log p(target) and log Z of each token, float32 [B, T], and the sum of the experts' balance losses.

    log p(v) = z_v − log Z with the logits z and Z = Σ_v exp(z_v).
    """
    x_BTD, _, balance = hidden(params, config, batch)
    logits_BTV = logits(params, config, x_BTD)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    # A sum, not a look-up: each device holds the logits of some words only.
    is_target_BTV = jnp.arange(config.vocab_size) == batch["targets"][..., None]
    return log_z_BT - jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0), axis=-1), log_z_BT, balance


@jax.jit(static_argnames="config")
def log_likelihoods(params: Params, config: Config, batch: Batch) -> Array:
    """Return Σ w · log p(target) of each row, float32 [B]."""
    return -jnp.sum(token_losses(params, config, batch)[0] * batch["weights"], axis=1)


def next_token_loss(config: Config, params: Params, batch: Batch, frozen: Any, z_loss: float = 0.0) -> tuple:
    """Return Σ w·(−log p(target) + z_loss·(log Z)²), plus the balance loss of experts, and Σ w.

    Z needs not be 1, and nothing else keeps it from growing until exp overflows; z_loss does.
    """
    nll_BT, log_z_BT, balance = token_losses(params, config, batch)
    total = jnp.sum(batch["weights"] * (nll_BT + z_loss * log_z_BT**2)) + config.balance_loss * balance
    return total, jnp.sum(batch["weights"])


def gradient(loss: Loss, params: Params, batch: Batch, frozen: Any, parts: int = 1) -> tuple[Array, Params]:
    """Return the mean loss and its gradient, one part of the batch at a time, which takes less memory.

    A loss is a sum and its weight. The mean is taken once, of the whole batch, so a token counts the same in any part.
    """

    def split(x: Array) -> Array:
        """Put rows i, i + parts, … into part i, so that every device keeps its rows."""
        shape, where = (x.shape[0] // parts, parts, *x.shape[1:]), spec("batch", *[None] * x.ndim)
        return jnp.moveaxis(lax.reshape(x, shape, out_sharding=where), 1, 0)

    def add(sums: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss, has_aux=True)(params, part, frozen)), None

    zeros = (jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, params)
    ((total, weight), grads), _ = lax.scan(add, zeros, jax.tree.map(split, batch))
    return total / weight, jax.tree.map(lambda g: g / weight, grads)


def make_step(loss: Loss, weights: Params, recipe: Recipe, parts: int = 1) -> Callable[..., tuple[State, Array]]:
    """Return the compiled (state, batch, frozen) → (next state, mean loss)."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: Batch, frozen: Any = None) -> tuple[State, Array]:
        mean_loss, grads = gradient(loss, state.params, batch, frozen, parts)
        return update(weights, state, grads, recipe), mean_loss

    return step


def on_mesh(batch: Batch) -> Batch:
    """Return the arrays of a batch, split over the mesh by rows."""
    mesh = jax.sharding.get_mesh()
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec("batch", *[None] * (x.ndim - 1)))), batch)


def fingerprint(*data: Any) -> str:
    """Return a name for a run of this data, model and recipe. In a folder of that name no other run is resumed."""
    return hashlib.sha256(repr(data).encode()).hexdigest()[:12]


def save(folder: Path, state: State) -> None:
    """Write a checkpoint. Orbax renames the folder when it is complete, so a run that dies leaves none that is half."""
    with ocp.StandardCheckpointer() as saver:
        saver.save(folder.resolve() / str(int(state.step)), state._asdict())


def restored(folder: Path, state: State) -> State:
    """Return the newest checkpoint, split like `state`; or `state` if there is none."""
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]  # others are not complete
    if not steps:
        return state
    with ocp.StandardCheckpointer() as saver:
        return State(**saver.restore(folder.resolve() / str(max(steps)), state._asdict()))


def fit(
    loss: Loss,
    weights: Params,
    params: Params,
    recipe: Recipe,
    batches: Batches,
    frozen: Any = None,
    folder: Any = None,
) -> Params:
    """Return the weights after all steps. With a folder, save checkpoints there, and begin at the newest of them.

    A restored state has the saved bits and batch n is the same again, so a resumed run computes the same bits.
    """
    step, state = make_step(loss, weights, recipe), first_state(params)
    state = restored(folder, state) if folder else state
    begin, start = time.monotonic(), int(state.step)
    for n in range(start + 1, recipe.steps + 1):
        state, mean_loss = step(state, on_mesh(batches(n - 1, state.params)), frozen)
        if n % max(1, recipe.steps // 5) == 0:  # seldom: to print the loss is to wait for the device
            print(f"step {n}: loss {mean_loss:.3f}, {(time.monotonic() - begin) / (n - start):.2f} s a step")
        if folder and (n % recipe.save_every == 0 or n == recipe.steps):
            save(folder, state)
    return state.params


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    text = Path(__file__).read_bytes()  # a byte a token
    batch = batch_of_rows([[list(text[i : i + 257])] for i in range(0, 2000, 250)], 256)
    loss, weights = functools.partial(next_token_loss, TINY, z_loss=1e-4), declare(TINY)
    fit(loss, weights, init(weights, 0), Recipe(steps=50, learning_rate=0.01), lambda n, _: batch)
