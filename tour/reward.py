"""A reward model: a decoder with one more output, the score of an answer (Christiano et al. 2017)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tour.dpo import pairs_of
from tour.generate import last_state
from tour.mesh import make_mesh
from tour.model import TINY, Batch, Config, Params, Weight, declare, hidden, init
from tour.optimizers import Recipe
from tour.pretrain import fit


def declare_reward_model(config: Config) -> Params:
    """Return the weights of a decoder and of its score, a vector [D]."""
    return declare(config) | {"score": Weight((config.embed_dim,), ("norm",), std=0.02)}


def scores(params: Params, config: Config, batch: Batch) -> jax.Array:
    """Return the score of each row, float32 [B]: the product of the last token's state with the score vector."""
    x_B1D = last_state(hidden(params, config, batch)[0], batch)
    return jnp.einsum("bod,d->b", x_B1D.astype(jnp.float32), params["score"])


def reward_loss(config: Config, params: Params, pairs: Batch, frozen: Any, centering: float = 0.0) -> tuple:
    """Return Σ over pairs of −log σ(s_c − s_r) + λ·(s_c + s_r)², and how many pairs there are.

    The chosen answer wins with probability σ(s_c − s_r) (Bradley and Terry 1952). The second term keeps scores near 0,
    since the first fixes their difference only (Eisenstein et al. 2023).
    """
    chosen_B, rejected_B = (scores(params, config, pairs[side]) for side in ("chosen", "rejected"))
    loss_B = -jax.nn.log_sigmoid(chosen_B - rejected_B) + centering * jnp.square(chosen_B + rejected_B)
    return jnp.sum(loss_B), len(loss_B)


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    weights, loss = declare_reward_model(TINY), functools.partial(reward_loss, TINY)
    batch = pairs_of([(list(b"hello? "), list(b"Hello!"), list(b"Go away"))] * 8, 16)
    fit(loss, weights, init(weights, 0), Recipe(40, 0.003), lambda n, _: batch)
