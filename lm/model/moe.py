"""Mixture of experts: a router sends each token to a few of many feed-forward experts; a shared expert may take all tokens.

Axes: B batch, T time, D model, E experts, F hidden units of an expert, K experts that a token uses.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lm.config import MixtureOfExperts, ModelConfig
from lm.kernels.matmul import gathered
from lm.kernels.ops import experts, matmul
from lm.kernels.saved import saved
from lm.model.feed_forward import FeedForward, activation_of
from lm.model.initializers import STD, normal, parameter
from lm.model.linear import declared, hidden_std, residual_std, scaled_output, whole
from lm.parallel.context import length_axis
from lm.parallel.mesh import reshard, spec


class RouterStats(NamedTuple):
    """Sums over the tokens of a batch without padding, so those of parts of a batch add up.

    balance: float32, Σ over rows of (tokens of the row · its load-balance loss). z: float32, Σ (log Z)².
    load_E: float32 [E], tokens that chose each expert; they sum to tokens · K.
    """

    balance: jax.Array
    z: jax.Array
    load_E: jax.Array


class Balance(nnx.Variable):
    """The bias [E] that is added to scores for the choice of experts. It has no gradient; `balanced` updates it."""


class MoE(nnx.Module):
    """y = Σ over the experts a token chose of weight · expert(x), + shared(x), the latter with `shared_gate` times σ(x·W).

    With `weigh_inputs` it is expert(weight · x).

    expert(x) is down(f(gate(x)) · up(x)), or down(f(up(x))) if not gated; its weight is applied before `down`, which is
    equal, so that the gradient of the weight does not need the output of `down`.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        moe, D = config.moe, config.embed_dim
        E, F = moe.num_experts, moe.expert_dim or config.mlp_dim
        self.config = config
        self.router = parameter(normal(rngs, (D, E)), ("embed", "replicated"), "head")
        if moe.balance_bias:
            self.balance_bias = parameter(jnp.zeros((E,), jnp.float32), ("replicated",), "vector", Balance)
        if moe.biases:
            self.router_bias = parameter(jnp.zeros((E,), jnp.float32), ("replicated",), "vector")
            for name in ("gate_bias", "up_bias")[not config.gated :]:
                setattr(self, name, parameter(jnp.zeros((E, F), jnp.float32), ("expert", "mlp"), "vector"))
            self.down_bias = parameter(jnp.zeros((E, D), jnp.float32), ("replicated", "replicated"), "vector")
        into, out_of = ("expert", "embed", "mlp"), ("expert", "mlp", "embed")
        if config.gated:
            self.gate = declared(config, "feed_forward.gate", normal(rngs, (E, D, F), hidden_std(config, STD, D)), into, (1,))
        self.up = declared(config, "feed_forward.up", normal(rngs, (E, D, F), hidden_std(config, STD, D)), into, (1,))
        std = hidden_std(config, residual_std(config), F)
        self.down = declared(config, "feed_forward.down", normal(rngs, (E, F, D), std), out_of, (1,))
        if moe.shared_dim:
            self.shared = FeedForward(config, rngs, moe.shared_dim, name="feed_forward.shared")
        if moe.shared_gate:
            self.shared_gate = parameter(normal(rngs, (D, 1)), ("embed", "replicated"), "head")

    def __call__(self, x_BTD: jax.Array, valid_BT: jax.Array) -> tuple[jax.Array, RouterStats]:
        """Return y_BTD in the compute dtype, and statistics. Padding (`valid_BT` False) uses no expert and is not counted."""
        config, moe = self.config, self.config.moe
        valid_BT = reshard(valid_BT, "batch", length_axis(x_BTD))
        logits_BTE = router_logits(x_BTD, self.router[...], config)
        logits_BTE = saved(logits_BTE + self.router_bias[...] if moe.biases else logits_BTE)
        bias_E = self.balance_bias[...] if moe.balance_bias else None
        scores_BTE, choice_BTK, weight_BTK = route(logits_BTE, bias_E, moe)
        used_BTK = jnp.where(valid_BT[..., None], choice_BTK, moe.num_experts)
        y_BTD = experts(
            x_BTD,
            used_BTK,
            weight_BTK,
            self.expert_weights(),
            activation=activation_of(config),
            dtype=config.compute_dtype,
            capacity_factor=moe.capacity_factor,
            limit=config.gate_limit,
            weigh_inputs=moe.weigh_inputs,
        )
        if moe.biases:  # Σ_k weight · bias of `down`, of which each token has few
            weight_BTE = jnp.sum(jnp.where(_chosen(used_BTK, moe.num_experts), weight_BTK[..., None], 0), axis=-2)
            out = ("batch", length_axis(x_BTD), None)
            y_BTD = y_BTD + matmul("bte,ed->btd", weight_BTE, self.down_bias[...], dtype=config.compute_dtype, out=out)
        if moe.shared_dim:
            y_BTD = y_BTD + self._shared(x_BTD)
        return y_BTD, router_stats(logits_BTE, scores_BTE, choice_BTK, valid_BT)

    def _shared(self, x_BTD: jax.Array) -> jax.Array:
        y_BTD = self.shared(x_BTD)
        if not self.config.moe.shared_gate:
            return y_BTD
        return y_BTD * jax.nn.sigmoid(router_logits(x_BTD, self.shared_gate[...], self.config)).astype(y_BTD.dtype)

    def expert_weights(self) -> dict[str, jax.Array]:
        """Return gate (if gated) and up [E, D, F], down [E, F, D], dequantized to the compute dtype, and biases [E, F]."""
        names = ("gate", "up", "down")[not self.config.gated :]
        matrices = {name: whole(getattr(self, name), self.config.compute_dtype) for name in names}
        biases = [f"{name}_bias" for name in names[:-1]] if self.config.moe.biases else []
        return matrices | {name: getattr(self, name)[...] for name in biases}


def router_logits(x_BTD: jax.Array, router_DE: jax.Array, config: ModelConfig) -> jax.Array:
    """Return logits, computed in full float32 because near ties decide the expert. μP treats the router as an output."""
    return jnp.einsum(
        "btd,de->bte",
        scaled_output(config, x_BTD.astype(jnp.float32)),
        gathered(router_DE),
        precision=lax.Precision.HIGHEST,
        out_sharding=spec("batch", length_axis(x_BTD), None),
    )


def route(logits_BTE: jax.Array, bias_E: jax.Array | None, moe: MixtureOfExperts) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the scores of all experts, and the K experts of each token with their weights.

    scores s = softmax or sigmoid of the logits; the choice is the top K of s + bias, if there are several groups from the best
    ones only; the weights are s of the chosen (without the bias), divided by their sum if `normalize`, times `weight_scale`.
    DeepSeek-V2 (2024, §2.1.2), DeepSeek-V3 (2024, eq. 12–16); without groups and bias Shazeer et al. 2017.
    Returns: scores_BTE and weight_BTK float32, choice_BTK int32.
    """
    scores_BTE = jax.nn.softmax(logits_BTE) if moe.scores == "softmax" else jax.nn.sigmoid(logits_BTE)
    ranked_BTE = lax.stop_gradient(scores_BTE if bias_E is None else scores_BTE + bias_E)
    if moe.num_groups > 1:
        ranked_BTE = _in_best_groups(ranked_BTE, moe)
    # Saved for the backward pass, which might choose differently near ties if it computed this again.
    choice_BTK = saved(lax.top_k(ranked_BTE, moe.top_k)[1])
    weight_BTK = jnp.sum(jnp.where(_chosen(choice_BTK, moe.num_experts), scores_BTE[..., None, :], 0), axis=-1)
    if moe.normalize:
        weight_BTK = weight_BTK / (jnp.sum(weight_BTK, axis=-1, keepdims=True) + 1e-20)  # sigmoids may all vanish
    return scores_BTE, choice_BTK, weight_BTK * moe.weight_scale


def _in_best_groups(ranked_BTE: jax.Array, moe: MixtureOfExperts) -> jax.Array:
    """Return the ranks with −∞ for experts outside the `top_groups` best groups."""
    ranked_BTGE = ranked_BTE.reshape(*ranked_BTE.shape[:-1], moe.num_groups, -1)
    best = 1 if moe.group_score == "max" else 2
    group_BTG = jnp.sum(lax.top_k(ranked_BTGE, best)[0], axis=-1)
    kept_BTG = jnp.any(_chosen(lax.top_k(group_BTG, moe.top_groups)[1], moe.num_groups), axis=-2)
    return jnp.where(kept_BTG[..., None], ranked_BTGE, -jnp.inf).reshape(ranked_BTE.shape)


def _chosen(index: jax.Array, size: int) -> jax.Array:
    """Return indices […, K] as booleans […, K, size]. Comparing is cheaper than gathering, and so is its gradient."""
    return index[..., None] == jnp.arange(size)


def router_stats(logits_BTE: jax.Array, scores_BTE: jax.Array, choice_BTK: jax.Array, valid_BT: jax.Array) -> RouterStats:
    """Return the unweighted auxiliary losses of a batch and the load of its experts, as sums over the valid tokens.

    Load balance, a sequence of n tokens at a time (DeepSeek-V3, 2024, eq. 17–20): Σ_e f_e · P_e, where f_e = E/(K·n) · (tokens
    that chose e) and P_e is the mean of s_e / Σ s; 1 when all is even, and times n here. z: (log Σ exp logits)² (ST-MoE,
    Zoph et al. 2022, eq. 5).
    """
    E, K = scores_BTE.shape[-1], choice_BTK.shape[-1]
    valid_BT1 = valid_BT[..., None].astype(jnp.float32)
    chosen_BTE = jnp.sum(_chosen(choice_BTK, E), axis=-2) * valid_BT1
    load_BE = jnp.sum(chosen_BTE, axis=1)
    shares_BTE = scores_BTE / (jnp.sum(scores_BTE, axis=-1, keepdims=True) + 1e-20)
    shares_BE = jnp.sum(shares_BTE * valid_BT1, axis=1)
    tokens_B1 = jnp.maximum(jnp.sum(valid_BT1, axis=1), 1)
    balance = jnp.sum(E / (K * tokens_B1) * load_BE * shares_BE)
    z = jnp.sum(jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1)) * valid_BT1[..., 0])
    return RouterStats(balance, z, jnp.sum(load_BE, axis=0))


def balanced(bias_E: jax.Array, load_E: jax.Array, rate: float) -> jax.Array:
    """Return bias + rate · sign(mean load − load), which makes overloaded experts less likely to be chosen.

    Auxiliary-loss-free balancing (Wang et al. 2024; DeepSeek-V3, 2024, §2.1.2). `load_E`: of the whole batch; leading axes
    (layers) are independent, and its unit does not matter.
    """
    mean = jnp.mean(load_E, axis=-1, keepdims=True)
    # The order of summation must not change the bias of experts with an even load.
    return bias_E + rate * jnp.where(jnp.abs(load_E - mean) < 1e-5 * mean, 0.0, jnp.sign(mean - load_E))
