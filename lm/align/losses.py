"""The losses of alignment as pure functions of arrays: preferences and rewards an example, reinforcement learning a token.

Of preferences, every argument and every result is float32 [B] (or whatever broadcasts): log-probabilities in nats, summed over
an answer's tokens, under the policy π and the reference π₀. c = log π/π₀ of the chosen answer, r that of the rejected one,
δ = c − r. σ is the logistic function. None of them takes a mean: the caller does, over the examples that count.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_sigmoid, relu, sigmoid

MAX_LOG_RATIO = 20.0  # e^20 is beyond any trust region; without an end, one lost token makes exp overflow and 0·inf a NaN
LEAST_NLL = 1e-6  # of a mean log-probability, so that the odds of a certain answer are finite


def dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, label_smoothing=0.0):
    """−(1−ε)·log σ(βδ) − ε·log σ(−βδ), ε = label_smoothing.

    ε = 0: direct preference optimisation (Rafailov et al. 2023, eq. 7). ε > 0: conservative DPO, which takes a share ε of the
    labels to be the wrong way round (Mitchell 2023, eq. 3).
    """
    logits = beta * _delta(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return -(1 - label_smoothing) * log_sigmoid(logits) - label_smoothing * log_sigmoid(-logits)


def robust(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, label_smoothing=0.0):
    """(−(1−ε)·log σ(βδ) + ε·log σ(−βδ)) / (1−2ε): what DPO's loss would be on average without the share ε < ½ of flipped labels
    (Chowdhury et al. 2024)."""
    logits = beta * _delta(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    clean, flipped = -log_sigmoid(logits), -log_sigmoid(-logits)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1):
    """max(0, 1 − βδ) (SLiC, Zhao et al. 2023, with a reference as in RSO, Liu et al. 2023)."""
    return relu(1 - beta * _delta(policy_chosen, policy_rejected, ref_chosen, ref_rejected))


def ipo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, chosen_lengths=1.0, rejected_lengths=1.0):
    """(c/|chosen| − r/|rejected| − 1/2β)² (Azar et al. 2023, eq. 17, where β is called τ).

    Lengths, in tokens: with them the margin is one of means over tokens, as the authors had it in their experiments; without,
    it is the equation as printed.
    """
    chosen = _ratio(policy_chosen, ref_chosen) / _count(chosen_lengths)
    rejected = _ratio(policy_rejected, ref_rejected) / _count(rejected_lengths)
    return jnp.square(chosen - rejected - 1 / (2 * beta))


def apo_zero(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1):
    """1 − σ(βc) + σ(βr): chosen answers up, rejected ones down (D'Oosterlinck et al. 2024, eq. 7); for pairs whose chosen
    answer is better than what the model says."""
    chosen, rejected = _ratio(policy_chosen, ref_chosen), _ratio(policy_rejected, ref_rejected)
    return sigmoid(-beta * chosen) + sigmoid(beta * rejected)


def apo_down(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1):
    """σ(βc) + 1 − σ(βδ): both down, rejected ones more (D'Oosterlinck et al. 2024, eq. 8); for pairs whose chosen answer is
    worse than what the model says."""
    chosen, rejected = _ratio(policy_chosen, ref_chosen), _ratio(policy_rejected, ref_rejected)
    return sigmoid(beta * chosen) + sigmoid(-beta * (chosen - rejected))


def kto(policy, ref, is_chosen, kl, beta=0.1):
    """1 − σ(β(x − z)) of a desirable answer, 1 − σ(β(z − x)) of another, x = log π/π₀ and z = max(0, kl) without a gradient
    (Ethayarajh et al. 2024, eq. 7 and 8).

    is_chosen: bool or 0/1 [B], whether the answer is a desirable one. kl: scalar, an estimate of KL(π‖π₀) in nats.
    """
    zero_point = lax.stop_gradient(relu(_float(kl)))
    sign = 1 - 2 * _float(is_chosen)
    return sigmoid(beta * sign * (_ratio(policy, ref) - zero_point))


def orpo(policy_chosen, policy_rejected, chosen_lengths, rejected_lengths, beta=0.1):
    """−β·log σ(log odds(chosen) − log odds(rejected)), odds = p/(1−p) and p an answer's probability a token, its geometric mean
    (Hong et al. 2024, eq. 4–7, β called λ). The odds term only: the objective adds the chosen answer's negative log-likelihood.
    No reference."""

    def log_odds(policy, lengths):
        mean = jnp.minimum(_float(policy) / _count(lengths), -LEAST_NLL)
        return mean - jax.nn.log1mexp(-mean)

    return -beta * log_sigmoid(log_odds(policy_chosen, chosen_lengths) - log_odds(policy_rejected, rejected_lengths))


def simpo(policy_chosen, policy_rejected, chosen_lengths, rejected_lengths, beta=2.0, gamma=1.0):
    """−log σ(β·(mean log π(chosen) − mean log π(rejected)) − γ), means over an answer's tokens (Meng et al. 2024, eq. 6).
    No reference."""
    chosen, rejected = _float(policy_chosen) / _count(chosen_lengths), _float(policy_rejected) / _count(rejected_lengths)
    return -log_sigmoid(beta * (chosen - rejected) - gamma)


def bradley_terry(chosen, rejected, margin=0.0, centering=0.0):
    """−log σ(chosen − rejected − margin) + λ·(chosen + rejected)² of a reward model's scores, λ = centering.

    The model of choices is Bradley and Terry's (1952). A margin says how much better the chosen answer was said to be (Llama 2,
    Touvron et al. 2023, eq. 2). The last term holds scores near 0, which the first leaves free (Eisenstein et al. 2023, eq. 2).
    """
    chosen, rejected = _float(chosen), _float(rejected)
    return -log_sigmoid(chosen - rejected - _float(margin)) + centering * jnp.square(chosen + rejected)


class Pairs(NamedTuple):
    """What is known of a batch of pairs, each float32 [B]: summed log-probabilities in nats, lengths in tokens."""

    policy_chosen: jax.Array
    policy_rejected: jax.Array
    ref_chosen: jax.Array | None  # None: the loss has no reference
    ref_rejected: jax.Array | None
    chosen_lengths: jax.Array
    rejected_lengths: jax.Array


# By the name that `config.preference.loss` gives: a loss [B] of Pairs and of that section of the config. "kto" has no pairs.
LOSSES = {
    "dpo": lambda pairs, s: dpo(*pairs[:4], s.beta, s.label_smoothing),
    "robust": lambda pairs, s: robust(*pairs[:4], s.beta, s.label_smoothing),
    "hinge": lambda pairs, s: hinge(*pairs[:4], s.beta),
    "ipo": lambda pairs, s: ipo(*pairs[:4], s.beta, *pairs[4:]),
    "apo_zero": lambda pairs, s: apo_zero(*pairs[:4], s.beta),
    "apo_down": lambda pairs, s: apo_down(*pairs[:4], s.beta),
    "orpo": lambda pairs, s: orpo(*pairs[:2], *pairs[4:], s.beta),
    "simpo": lambda pairs, s: simpo(*pairs[:2], *pairs[4:], s.beta, s.gamma),
}
WITHOUT_REFERENCE = ("orpo", "simpo")


class Surrogate(NamedTuple):
    """Each float32 [B, T]: what to minimise, the importance ratio, and where (0 or 1) clipping stopped the gradient."""

    loss_BT: jax.Array
    ratio_BT: jax.Array
    clipped_low_BT: jax.Array
    clipped_high_BT: jax.Array


def clipped_surrogate(logp_BT, old_logp_BT, advantages, clip_low, clip_high, mask_BT=None, level="token") -> Surrogate:
    """−min(ρA, clip(ρ, 1 − clip_low, 1 + clip_high)·A) a token (PPO, Schulman et al. 2017, eq. 7).

    Two ends apart are DAPO's clip-higher (Yu et al. 2025, eq. 10). ρ at level "token" is π/π_old of that token; at "sequence"
    it is the geometric mean of those over the sequence, the same for all its tokens (GSPO, Zheng et al. 2025, eq. 7).

    Args:
      logp_BT, old_logp_BT: log-probabilities of the tokens now and when they were drawn, in nats.
      advantages: [B], one a sequence, or [B, T].
      mask_BT: 1 where the policy drew the token; needed by level "sequence". Other places hold numbers without a meaning.
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
    """An estimate a token of KL(π‖π₀) from tokens drawn from π, in nats; d = log π₀ − log π (Schulman 2020).

    k1 = −d: unbiased, of either sign; its gradient is 0 on average, so it belongs into rewards, not into losses.
    k2 = d²/2: biased but never negative, and on tokens just drawn its gradient is the KL's.
    k3 = e^d − d − 1: unbiased and never negative.
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
    """½·max((V − R)², (V_old + clip(V − V_old, ±clip) − R)²) a token: PPO's value loss, which lets a value move by no more than
    `clip` from where it was when the tokens were drawn (Schulman et al. 2017's implementation). Shapes are free."""
    values, old_values, returns = _float(values), lax.stop_gradient(_float(old_values)), _float(returns)
    near = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(near - returns))


def _ratio(policy, ref):
    return _float(policy) - lax.stop_gradient(_float(ref))


def _delta(policy_chosen, policy_rejected, ref_chosen, ref_rejected):
    return _ratio(policy_chosen, ref_chosen) - _ratio(policy_rejected, ref_rejected)


def _float(x):
    return jnp.asarray(x, jnp.float32)


def _count(lengths):
    """Lengths to divide by: an empty answer, as rows that only fill a batch have, counts as one token."""
    return jnp.maximum(_float(lengths), 1.0)
