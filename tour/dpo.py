"""Direct preference optimisation (Rafailov et al. 2023): learn from pairs of a better and a worse answer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from tour.mesh import make_mesh
from tour.model import TINY, Batch, Config, Params, declare, init
from tour.optimizers import Recipe
from tour.pretrain import fit, log_likelihoods
from tour.sft import rows

Pair = tuple[list[int], list[int], list[int]]  # prompt, chosen answer, rejected answer


def pairs_of(pairs: list[Pair], length: int) -> Batch:
    """Return a batch of pairs: {"chosen": rows of prompts with chosen answers, "rejected": with rejected ones}."""
    chosen, rejected = ([(pair[0], pair[side]) for pair in pairs] for side in (1, 2))
    return {"chosen": rows(chosen, length), "rejected": rows(rejected, length)}


def dpo_loss(config: Config, params: Params, pairs: Batch, frozen: Any, beta: float = 0.1) -> tuple:
    """Return Σ over pairs of −log σ(β·(c − r)) (eq. 7), and how many pairs there are.

    c = log π/π₀ of the chosen answer, given the prompt, r that of the rejected one.
    β·log π/π₀ is the reward for which π is the best policy that stays near the reference π₀ (`frozen`: its weights).
    So the loss is that of a reward model, without one.
    """

    def log_ratio(batch: Batch) -> Array:
        reference_B = lax.stop_gradient(log_likelihoods(frozen, config, batch))
        return log_likelihoods(params, config, batch) - reference_B

    difference_B = log_ratio(pairs["chosen"]) - log_ratio(pairs["rejected"])
    return -jnp.sum(jax.nn.log_sigmoid(beta * difference_B)), len(difference_B)


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    weights, batch = declare(TINY), pairs_of([(list(b"hello? "), list(b"Hello!"), list(b"Go away"))] * 8, 16)
    params, loss = init(weights, 0), functools.partial(dpo_loss, TINY)
    fit(loss, weights, params, Recipe(40, 0.003), lambda n, _: batch, frozen=params)
