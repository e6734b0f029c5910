"""A reward model: a decoder with one more output, the score of an answer (Christiano et al. 2017)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from tour.dpo import flat, pairs_of
from tour.mesh import make_mesh, spec
from tour.model import TINY, Config, Params, Tokens, Weight, declare, hidden, init
from tour.optimizers import Recipe
from tour.pretrain import Batch, Loss, fit


def declare_reward_model(config: Config) -> Params:
    """Return the weights of a decoder and of its score, a vector [D]."""
    return declare(config) | {"score": Weight((config.embed_dim,), ("norm",), std=0.02)}


def scores(params: Params, config: Config, ids: Tokens) -> Array:
    """Return the score of each row, float32 [B]: the product of the last token's state with the score vector."""
    x_BTD, _, _ = hidden(params, config, ids)
    score_BT = jnp.einsum("btd,d->bt", x_BTD.astype(jnp.float32), params["score"])
    places_T = jnp.arange(score_BT.shape[1])
    last_B1 = jnp.max(jnp.where(ids.segments > 0, places_T, 0), axis=1, keepdims=True)
    return jnp.sum(jnp.where(places_T == last_B1, score_BT, 0), axis=1)


def reward_loss(config: Config, centering: float = 0.0) -> Loss:
    """Return the loss Σ over pairs of −log σ(s_c − s_r) + λ·(s_c + s_r)².

    The chosen answer wins with probability σ(s_c − s_r) (Bradley and Terry 1952). The second term keeps scores near 0,
    since the first fixes their difference only (Eisenstein et al. 2023).
    """

    def loss(params: Params, batch: Batch, frozen: Any) -> Array:
        one = flat(batch)
        score_R = scores(params, config, Tokens(one["tokens"], one["segment_ids"], one["positions"]))
        score_B2 = lax.reshape(score_R, (len(score_R) // 2, 2), out_sharding=spec("batch", None))
        chosen_B, rejected_B = score_B2[:, 0], score_B2[:, 1]
        return jnp.sum(-jax.nn.log_sigmoid(chosen_B - rejected_B) + centering * jnp.square(chosen_B + rejected_B))

    return loss


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    weights, batch = (
        declare_reward_model(TINY),
        pairs_of([(list(b"hello? "), list(b"Hello!"), list(b"Go away"))] * 8, 16),
    )
    fit(reward_loss(TINY), weights, init(weights, 0), Recipe(40, 0.003), lambda n: batch)
