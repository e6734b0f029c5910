"""Compute advantages from rewards: pure functions of float32 arrays.

Axes here: B prompts or sequences, G answers to a prompt, T tokens.
"""

import jax.numpy as jnp
from jax import lax

from lm.align.settings import CHOICES
from lm.errors import UserError


def grpo(rewards_BG, scale="group"):
    """Return (r − mean of the group) / (std + 1e-4), float32 [B, G] (GRPO, Shao et al. 2024, §4.1.2).

    scale selects the sample standard deviation (n − 1): "group" as in the paper; "batch", which does not amplify the noise of
    groups with nearly equal rewards (Hu et al. 2025, REINFORCE++); "none" does not divide (Dr. GRPO, Liu et al. 2025).
    A group of equal rewards gives exactly 0.
    Raises UserError if G < 2.
    """
    centered_BG = _centered(rewards_BG)
    if scale == "none":
        return centered_BG
    if scale == "group":
        return centered_BG / (jnp.std(centered_BG, axis=1, ddof=1, keepdims=True) + 1e-4)
    if scale == "batch":
        return centered_BG / (jnp.std(jnp.asarray(rewards_BG, jnp.float32), ddof=1) + 1e-4)
    raise ValueError(f"scale={scale!r} is none of {', '.join(CHOICES['rl.scale'])}")


def rloo(rewards_BG):
    """Return r − mean of the other rewards in the group, float32 [B, G]; equal rewards give exactly 0.

    This is REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024; Kool et al. 2019). Raises UserError if G < 2.
    """
    centered_BG = _centered(rewards_BG)
    G = centered_BG.shape[1]
    return centered_BG * (G / (G - 1))  # r − (Σ − r)/(G−1) = (r − Σ/G)·G/(G−1)


def gae(rewards_BT, values_BT, gamma, lam, mask_BT=None):
    """Return generalised advantage estimates, float32 [B, T], before whitening (Schulman et al. 2016, eq. 16).

    A_t = δ_t + γλ·A_t+1 with δ_t = r_t + γ·V_t+1 − V_t, and V = A = 0 after the last action. The value targets are A + V.

    mask_BT: 1 for actions. The recursion skips other positions (prompt, padding, tool output): their advantage is 0 and their
    reward is ignored.
    """
    rewards_BT, values_BT = jnp.asarray(rewards_BT, jnp.float32), jnp.asarray(values_BT, jnp.float32)
    mask_BT = jnp.ones_like(rewards_BT) if mask_BT is None else jnp.asarray(mask_BT)

    def before(after, now):
        next_advantage_B, next_value_B = after
        reward_B, value_B, is_action_B = now
        advantage_B = reward_B + gamma * next_value_B - value_B + gamma * lam * next_advantage_B
        carry = jnp.where(is_action_B, advantage_B, next_advantage_B), jnp.where(is_action_B, value_B, next_value_B)
        return carry, jnp.where(is_action_B, advantage_B, 0.0)

    nothing_B = jnp.zeros_like(rewards_BT[:, 0])
    steps = rewards_BT.T, values_BT.T, mask_BT.T > 0
    return lax.scan(before, (nothing_B, nothing_B), steps, reverse=True)[1].T


def whiten(x, mask):
    """Return (x − mean) / √(sample variance + 1e-8) over positions with mask > 0, and 0 elsewhere."""
    mask = jnp.asarray(mask) > 0
    count = jnp.sum(mask)
    centered = jnp.where(mask, x - jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(count, 1), 0.0)
    return centered * lax.rsqrt(jnp.sum(jnp.square(centered)) / jnp.maximum(count - 1, 1) + 1e-8)


def _centered(rewards_BG):
    """Subtract the mean of each group. The first reward is subtracted before, so that equal rewards give exactly 0."""
    rewards_BG = jnp.asarray(rewards_BG, jnp.float32)
    if rewards_BG.shape[1] < 2:
        raise UserError("rl.group_size=1 gives no other answer to compare with: it must be at least 2")
    rewards_BG = rewards_BG - rewards_BG[:, :1]
    return rewards_BG - jnp.mean(rewards_BG, axis=1, keepdims=True)
