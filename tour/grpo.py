"""Reinforcement learning with GRPO (Shao et al. 2024): draw several answers to a prompt, and prefer the better ones.

A step: draw G answers to each prompt (rollouts), score them, turn scores into advantages, and learn once from them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tour.generate import generate
from tour.mesh import make_mesh
from tour.model import TINY, Batch, Config, Params, declare, init
from tour.optimizers import Recipe
from tour.pretrain import fit, on_mesh, token_losses
from tour.sft import rows

Reward = Callable[[int, list[int]], float]  # of (number of the prompt, tokens of the answer)


def advantages(rewards_PG: np.ndarray) -> np.ndarray:
    """Return (r − mean of the group) / (standard deviation + 1e-4), float32 [P, G]: P prompts, G answers to each.

    A group of equal rewards teaches nothing: all its advantages are 0. The deviation divides by G − 1.
    """
    centered_PG = rewards_PG - rewards_PG.mean(axis=1, keepdims=True)
    return (centered_PG / (rewards_PG.std(axis=1, ddof=1, keepdims=True) + 1e-4)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="config")
def answer_logps(params: Params, config: Config, batch: Batch) -> jax.Array:
    """Return log π of each target, float32 [B, T], 0 where the policy did not draw it."""
    return jnp.where(batch["weights"] > 0, -token_losses(params, config, batch)[0], 0)


def grpo_loss(config: Config, params: Params, batch: Batch, frozen: Any, clip: float = 0.2, beta: float = 0.0) -> tuple:
    """Return Σ over rollouts of the mean over tokens of −min(ρ·A, clip(ρ, 1 ± ε)·A) + β·ρ·KL (eq. 3), and their number.

    ρ = π/π_old of the token: how much likelier it is than when it was drawn. Behind 1 ± ε it teaches nothing more (PPO,
    Schulman et al. 2017, eq. 7). A: the advantage of the answer. KL to the reference is estimated by e^d − d − 1 with
    d = log π_ref/π (Schulman 2020); ρ makes its gradient that of the current policy (DeepSeek-V3.2 2025, eq. 7).
    """
    logp_BT, drawn_BT = answer_logps(params, config, batch), batch["weights"]
    ratio_BT, advantage_B1 = jnp.exp(logp_BT - batch["old_logps"]), batch["advantages"][:, None]
    loss_BT = -jnp.minimum(ratio_BT * advantage_B1, jnp.clip(ratio_BT, 1 - clip, 1 + clip) * advantage_B1)
    if beta:
        d_BT = batch["ref_logps"] - logp_BT
        loss_BT += beta * ratio_BT * (jnp.expm1(d_BT) - d_BT)
    loss_B = jnp.sum(loss_BT * drawn_BT, axis=1) / jnp.maximum(1, jnp.sum(drawn_BT, axis=1))
    return jnp.sum(loss_B), len(loss_B)


def rollouts(
    params: Params, config: Config, prompts: list, G: int, reward: Reward, max_new_tokens: int, stop_ids: tuple, n: int
) -> Batch:
    """Draw G answers to each prompt of step n, print the mean reward, and return the batch to learn from."""
    many = [prompt for prompt in prompts for _ in range(G)]
    answers = generate(params, config, many, max_new_tokens, temperature=1.0, stop_ids=stop_ids, seed=n)
    rewards_PG = np.array([reward(i // G, answer) for i, answer in enumerate(answers)], np.float32).reshape(-1, G)
    print(f"step {n + 1}: mean reward {rewards_PG.mean():.3f}")
    batch = rows(list(zip(many, answers)), max(map(len, prompts)) + max_new_tokens)
    batch["advantages"] = advantages(rewards_PG).reshape(-1)
    # The trainer's own log-probabilities, so that the first ratio is 1.
    return batch | {"old_logps": answer_logps(params, config, on_mesh(batch))}


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    weights, loss = declare(TINY), functools.partial(grpo_loss, TINY)

    def low(i: int, answer: list[int]) -> float:
        """Return the reward: the share of tokens below 128."""
        return float(np.mean(np.array(answer) < 128))

    def batches(n: int, params: Params) -> Batch:
        return rollouts(params, TINY, [[1], [2]], 16, low, 8, (), n)

    fit(loss, weights, init(weights, 0), Recipe(20, 0.03, warmup=1), batches)
