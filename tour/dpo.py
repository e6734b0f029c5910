"""Direct preference optimisation (Rafailov et al. 2023): learn from pairs of a better and a worse answer.

A batch has arrays [B, 2, T]: row 0 of a pair is the prompt with the chosen answer, row 1 with the rejected one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tour.mesh import make_mesh, spec
from tour.model import TINY, Config, Params, declare, init
from tour.optimizers import Recipe
from tour.pretrain import Batch, Loss, fit, token_losses
from tour.sft import rows

Pair = tuple[list[int], list[int], list[int]]  # prompt, chosen answer, rejected answer


def pairs_of(pairs: Sequence[Pair], length: int) -> Batch:
    """Return a batch of pairs."""
    sides = [rows([(pair[0], pair[side]) for pair in pairs], length) for side in (1, 2)]
    batch = {name: np.stack([side[name] for side in sides], axis=1) for name in sides[0]}
    return batch | {"counts": np.ones(len(pairs), np.float32)}


def flat(batch: Batch) -> Batch:
    """Return the rows of pairs, [B, 2, T] as [2·B, T]."""
    arrays, where = {name: x for name, x in batch.items() if x.ndim == 3}, spec("batch", None)
    return {name: lax.reshape(x, (2 * len(x), x.shape[2]), out_sharding=where) for name, x in arrays.items()}


def answer_log_probabilities(params: Params, config: Config, batch: Batch) -> Array:
    """Return log π(answer | prompt), the sum over the answer's tokens, float32 [B, 2]."""
    nll_RT, _, _ = token_losses(params, config, flat(batch))
    nll_B2T = lax.reshape(nll_RT, batch["weights"].shape, out_sharding=spec("batch", None, None))
    return -jnp.sum(nll_B2T * batch["weights"], axis=-1)


def dpo_loss(config: Config, beta: float = 0.1) -> Loss:
    """Return the loss Σ over pairs of −log σ(β·(c − r)) (eq. 7).

    c = log π/π₀ of the chosen answer, r that of the rejected one.
    β·log π/π₀ is the reward for which π is the best policy that stays near the reference π₀ (`frozen`: its weights).
    So the loss is that of a reward model, without one.
    """

    def loss(params: Params, batch: Batch, frozen: Any) -> Array:
        reference_B2 = lax.stop_gradient(answer_log_probabilities(frozen, config, batch))
        reward_B2 = beta * (answer_log_probabilities(params, config, batch) - reference_B2)
        return -jnp.sum(jax.nn.log_sigmoid(reward_B2[:, 0] - reward_B2[:, 1]))

    return loss


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    weights, batch = declare(TINY), pairs_of([(list(b"hello? "), list(b"Hello!"), list(b"Go away"))] * 8, 16)
    params = init(weights, 0)
    fit(dpo_loss(TINY), weights, params, Recipe(40, 0.003), lambda n: batch, frozen=params)
