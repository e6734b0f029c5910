"""Alignment losses as pure functions: preference and reward losses per example, reinforcement learning losses per token.

Arguments and results of preference losses are float32 [B], or broadcast to it. They are log-probabilities in nats, summed over
the tokens of an answer, under the policy π and the reference π₀. c = log π/π₀ of the chosen answer, r = log π/π₀ of the
rejected one, δ = c − r, and σ is the logistic function. No loss takes a mean; the caller averages over the real examples.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_sigmoid, relu, sigmoid

MAX_LOG_RATIO = 20.0  # e^20 is beyond any trust region; without this limit exp can overflow, and 0·inf is NaN
MIN_NLL = 1e-6  # lower bound of a mean nll, which keeps the odds of a certain answer finite


class Pairs(NamedTuple):
    """Summed log-probabilities (nats) and lengths (tokens) of a batch of pairs, each float32 [B]."""

    policy_chosen: jax.Array
    policy_rejected: jax.Array
    ref_chosen: jax.Array | None  # None: the loss has no reference
    ref_rejected: jax.Array | None
    chosen_lengths: jax.Array
    rejected_lengths: jax.Array

    @property
    def ratios(self) -> tuple[jax.Array, jax.Array]:
        """Return c and r."""
        return _ratio(self.policy_chosen, self.ref_chosen), _ratio(self.policy_rejected, self.ref_rejected)

    @property
    def delta(self) -> jax.Array:
        """Return δ = c − r."""
        chosen, rejected = self.ratios
        return chosen - rejected

    @property
    def means(self) -> tuple[jax.Array, jax.Array]:
        """Return the mean log-probabilities of a token, chosen and rejected, under the policy."""
        chosen, rejected = _float(self.policy_chosen), _float(self.policy_rejected)
        return chosen / _count(self.chosen_lengths), rejected / _count(self.rejected_lengths)


def dpo(pairs: Pairs, s):
    """Return −(1−ε)·log σ(βδ) − ε·log σ(−βδ), ε = label_smoothing.

    ε = 0: direct preference optimisation (Rafailov et al. 2023, eq. 7). ε > 0: conservative DPO, which assumes that a share ε
    of the labels is flipped (Mitchell 2023, eq. 3).
    """
    logits = s.beta * pairs.delta
    return -(1 - s.label_smoothing) * log_sigmoid(logits) - s.label_smoothing * log_sigmoid(-logits)


def robust(pairs: Pairs, s):
    """Return (−(1−ε)·log σ(βδ) + ε·log σ(−βδ)) / (1−2ε), ε = label_smoothing < ½.

    It is an unbiased estimate of the DPO loss on clean labels if a share ε of them is flipped (Chowdhury et al. 2024).
    """
    clean, flipped = -log_sigmoid(s.beta * pairs.delta), -log_sigmoid(-s.beta * pairs.delta)
    return ((1 - s.label_smoothing) * clean - s.label_smoothing * flipped) / (1 - 2 * s.label_smoothing)


def hinge(pairs: Pairs, s):
    """Return max(0, 1 − βδ) (SLiC, Zhao et al. 2023, with a reference as in RSO, Liu et al. 2023)."""
    return relu(1 - s.beta * pairs.delta)


def ipo(pairs: Pairs, s):
    """Return (c/|chosen| − r/|rejected| − 1/2β)² (Azar et al. 2023, eq. 17, where β is called τ).

    Lengths are in tokens, so that the ratios are means over tokens, as in the authors' experiments.
    """
    chosen, rejected = pairs.ratios
    return jnp.square(chosen / _count(pairs.chosen_lengths) - rejected / _count(pairs.rejected_lengths) - 1 / (2 * s.beta))


def apo_zero(pairs: Pairs, s):
    """Return 1 − σ(βc) + σ(βr), which raises chosen answers and lowers rejected ones (D'Oosterlinck et al. 2024, eq. 7).

    Use it if the chosen answers are better than the model's own.
    """
    chosen, rejected = pairs.ratios
    return sigmoid(-s.beta * chosen) + sigmoid(s.beta * rejected)


def apo_down(pairs: Pairs, s):
    """Return σ(βc) + 1 − σ(βδ), which lowers both answers, the rejected one more (D'Oosterlinck et al. 2024, eq. 8).

    Use it if the chosen answers are worse than the model's own.
    """
    return sigmoid(s.beta * pairs.ratios[0]) + sigmoid(-s.beta * pairs.delta)


def orpo(pairs: Pairs, s):
    """Return −β·log σ(log odds(chosen) − log odds(rejected)), the odds-ratio term of ORPO; it has no reference.

    odds = p/(1−p), where p is the geometric mean of an answer's token probabilities (Hong et al. 2024, eq. 4–7, where β is
    called λ). The objective adds the nll of the chosen answer.
    """

    def log_odds(mean):
        mean = jnp.minimum(mean, -MIN_NLL)
        return mean - jax.nn.log1mexp(-mean)

    chosen, rejected = pairs.means
    return -s.beta * log_sigmoid(log_odds(chosen) - log_odds(rejected))


def simpo(pairs: Pairs, s):
    """Return −log σ(β·(mean log π(chosen) − mean log π(rejected)) − γ), means over tokens; it has no reference.

    Source: Meng et al. 2024, eq. 6.
    """
    chosen, rejected = pairs.means
    return -log_sigmoid(s.beta * (chosen - rejected) - s.gamma)


# config.preference.loss -> function of (pairs, config.preference) that returns the loss [B]. "kto" takes no pairs.
LOSSES = {loss.__name__: loss for loss in (dpo, robust, hinge, ipo, apo_zero, apo_down, orpo, simpo)}
WITHOUT_REFERENCE = ("orpo", "simpo")


def kto(policy, ref, is_chosen, kl, beta=0.1):
    """Return 1 − σ(β(x − z)) for a desirable answer and 1 − σ(β(z − x)) for an undesirable one.

    x = log π/π₀; z = max(0, kl), without a gradient (Ethayarajh et al. 2024, eq. 7 and 8).
    is_chosen: bool or 0/1 [B], 1 for a desirable answer. kl: scalar, an estimate of KL(π‖π₀) in nats.
    """
    zero_point = lax.stop_gradient(relu(_float(kl)))
    sign = 1 - 2 * _float(is_chosen)
    return sigmoid(beta * sign * (_ratio(policy, ref) - zero_point))


def bradley_terry(chosen, rejected, margin=0.0, centering=0.0):
    """Return −log σ(chosen − rejected − margin) + λ·(chosen + rejected)² for reward model scores, λ = centering.

    The first term is the model of Bradley and Terry (1952). The margin is the rated difference between the answers (Llama 2,
    Touvron et al. 2023, eq. 2). The second term keeps scores near 0, because the first one only fixes their difference
    (Eisenstein et al. 2023, eq. 2).
    """
    chosen, rejected = _float(chosen), _float(rejected)
    return -log_sigmoid(chosen - rejected - _float(margin)) + centering * jnp.square(chosen + rejected)


class Surrogate(NamedTuple):
    """The loss, the importance ratio, and masks (0 or 1) of tokens whose gradient was clipped; each float32 [B, T]."""

    loss_BT: jax.Array
    ratio_BT: jax.Array
    clipped_low_BT: jax.Array
    clipped_high_BT: jax.Array


def clipped_surrogate(logp_BT, old_logp_BT, advantages, clip_low, clip_high, mask_BT=None, level="token") -> Surrogate:
    """Return −min(ρA, clip(ρ, 1 − clip_low, 1 + clip_high)·A) per token (PPO, Schulman et al. 2017, eq. 7).

    Separate limits are DAPO's clip-higher (Yu et al. 2025, eq. 10). At level "token", ρ is π/π_old of the token. At level
    "sequence", ρ is their geometric mean over the sequence, shared by all its tokens (GSPO, Zheng et al. 2025, eq. 7).

    Args:
      logp_BT, old_logp_BT: log-probabilities of the tokens under the current and the sampling policy, in nats.
      advantages: [B], one per sequence, or [B, T].
      mask_BT: 1 where the policy drew the token; level "sequence" needs it. Results elsewhere are undefined.
    """
    advantages = _float(advantages)
    advantages_BT = jnp.broadcast_to(advantages[:, None] if advantages.ndim == 1 else advantages, logp_BT.shape)
    log_ratio_BT = _float(logp_BT) - lax.stop_gradient(_float(old_logp_BT))
    if level == "sequence":
        length_B1 = _count(jnp.sum(mask_BT, axis=1, keepdims=True))
        mean_B1 = jnp.sum(jnp.where(mask_BT > 0, log_ratio_BT, 0.0), axis=1, keepdims=True) / length_B1
        log_ratio_BT = jnp.broadcast_to(mean_B1, logp_BT.shape)
    ratio_BT = jnp.exp(jnp.clip(log_ratio_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    clipped_BT = jnp.clip(ratio_BT, 1 - clip_low, 1 + clip_high)
    loss_BT = -jnp.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    low_BT = (ratio_BT < 1 - clip_low) & (advantages_BT < 0)
    high_BT = (ratio_BT > 1 + clip_high) & (advantages_BT > 0)
    return Surrogate(loss_BT, ratio_BT, low_BT.astype(jnp.float32), high_BT.astype(jnp.float32))


def kl_estimate(logp_BT, ref_logp_BT, kind="k3"):
    """Return an estimate of KL(π‖π₀) per token, in nats, from tokens drawn from π (Schulman 2020); d = log π₀ − log π.

    k1 = −d: unbiased, of either sign. Its expected gradient is 0, so use it in rewards, not in losses.
    k2 = d²/2: biased, never negative. On freshly drawn tokens its expected gradient is that of the KL.
    k3 = e^d − d − 1: unbiased, never negative.
    """
    d = _float(ref_logp_BT) - _float(logp_BT)
    if kind == "k1":
        return -d
    if kind == "k2":
        return 0.5 * jnp.square(d)
    if kind == "k3":
        d = jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        return jnp.expm1(d) - d
    raise ValueError(f"kind={kind!r} is none of k1, k2, k3")


def value_loss(values, old_values, returns, clip):
    """Return PPO's clipped value loss ½·max((V − R)², (V_old + clip(V − V_old, ±clip) − R)²), for arrays of any shape.

    It limits the move of a value from its estimate at sampling time to `clip` (Schulman et al. 2017, their implementation).
    """
    values, old_values, returns = _float(values), lax.stop_gradient(_float(old_values)), _float(returns)
    near = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(near - returns))


def _ratio(policy, ref):
    return _float(policy) - lax.stop_gradient(_float(ref))


def _float(x):
    return jnp.asarray(x, jnp.float32)


def _count(lengths):
    """Return lengths to divide by, at least 1: rows that pad a batch have empty answers."""
    return jnp.maximum(_float(lengths), 1.0)
