"""Layers with a state of fixed size in place of attention: short gated convolutions, gated delta nets, Mamba-2.

`model.attention_pattern` says which layers are of which kind. A kind is a module of linear maps around a core
(lm/model/states.py, which also says what it remembers of a sequence).

Axes: B batch, T time, D model, C channels, W tokens that a convolution sees; G heads of keys, R heads of values for each of
them, K and V their sizes, X = R·V.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.kernels.ops import recurrence, rms_norm, rows_are_alone, short_convolution, silu_gated
from lm.kernels.recurrence import Flow
from lm.kernels.saved import saved
from lm.model.initializers import normal, parameter
from lm.model.inputs import Step
from lm.model.linear import Linear, residual_std, together
from lm.model.norms import RMSNorm
from lm.model.states import Arrays, State, advanced
from lm.parallel.context import length_axis
from lm.parallel.mesh import spec

PARTS = ("query", "key", "value")  # each with a convolution


class ShortConvolution(nnx.Module):
    """A double-gated convolution: output(b ⊙ convolution(a ⊙ value)), with a, b, value linear in x (LFM2, Liquid AI 2025)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, W, bias = config.embed_dim, config.recurrent.kernel, config.recurrent.bias

        def linear(name: str) -> Linear:
            return Linear(config, rngs, f"attention.{name}", "btd,dc->btc", (D, D), ("embed", "heads"), bias=bias)

        self.in_gate, self.out_gate, self.value = linear("in_gate"), linear("out_gate"), linear("value")
        self.taps = parameter(normal(rngs, (D, W), W**-0.5), ("heads", "replicated"), "vector")
        if bias:
            self.bias = parameter(jnp.zeros((D,), jnp.float32), ("heads",), "vector")
        std, axes = residual_std(config), ("heads", "embed")
        self.output = Linear(config, rngs, "attention.output", "btc,cd->btd", (D, D), axes, std=std, bias=bias)

    def __call__(self, x_BTD: jax.Array, step: Step, state: State | None = None) -> tuple[jax.Array, State | None]:
        """Return the mixed values [B, T, D] and the state after the tokens."""
        three = together(x_BTD, self.in_gate, self.out_gate, self.value)
        in_BTC, out_BTC, value_BTC = map(saved, three or (self.in_gate(x_BTD), self.out_gate(x_BTD), self.value(x_BTD)))
        weights = {"taps": self.taps[...]} | ({"bias": self.bias[...]} if hasattr(self, "bias") else {})
        mixed_BTC, state = advanced(self._core, {"in": in_BTC, "out": out_BTC, "value": value_BTC}, weights, state, step)
        return self.output(mixed_BTC, length_axis(x_BTD)), state

    @staticmethod
    def _core(inputs: Arrays, weights: Arrays, state: Arrays | None, flow: Flow) -> tuple[jax.Array, Arrays | None]:
        in_BTC, out_BTC, value_BTC = (inputs[name].astype(jnp.float32) for name in ("in", "out", "value"))
        before = None if state is None else state["tail"]
        y_BTC, tail = short_convolution(in_BTC * value_BTC, weights["taps"], weights.get("bias"), before, flow)
        return (out_BTC * y_BTC).astype(inputs["value"].dtype), None if tail is None else {"tail": tail}


class StateSpace(nnx.Module):
    """A layer whose heads each have a matrix as their state (lm.kernels.ops.recurrence): a gated delta net, or Mamba-2.

    Queries, keys and values go through short convolutions and silu. A head's state decays by exp(−exp(decay_rate)·Δ), where
    Δ = softplus(decay(x) + decay_bias). R = H/G heads of values share a head of keys.

    delta (Yang et al. 2024, "Gated Delta Networks"; Qwen3-Next): queries and keys are unit vectors, and the state learns at the
    rate σ(beta(x)). output(norm(y) ⊙ silu(gate(x))), each head normed.
    mamba (Dao and Gu 2024): values are multiplied by Δ, and y gets skip · value. output(norm(y ⊙ silu(gate(x)))), the heads of
    a group normed together. Its names: queries are C, keys B, G groups.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, kind: str):
        r, D = config.recurrent, config.embed_dim
        G, R, K, V = r.num_key_heads, r.num_heads // r.num_key_heads, r.key_dim, r.value_dim
        self.sizes, self.values, self.chunk = (K, K, R * V), (R, V), r.chunk  # of PARTS, of a head of keys
        self.eps, self.least_step, axes = config.norm_eps, r.least_step, ("heads", "replicated")

        def linear(name: str, size: int) -> Linear:
            if kind == "mamba":  # whose fused matrix has all groups of a part side by side
                return Linear(config, rngs, f"attention.{name}", "btd,dc->btc", (D, G * size), ("embed", "heads"))
            return Linear(config, rngs, f"attention.{name}", "btd,dgk->btgk", (D, G, size), ("embed", "heads", "head"))

        self.query, self.key, self.value, self.gate = (linear(n, x) for n, x in zip((*PARTS, "gate"), (*self.sizes, R * V)))
        self.decay = linear("decay", R)
        for name, size in zip(PARTS, self.sizes):
            taps = normal(rngs, (G * size, r.kernel), r.kernel**-0.5)
            setattr(self, f"{name}_taps", parameter(taps, axes, "vector"))
            if kind == "mamba" and r.bias:
                bias = jnp.zeros((G * size,), jnp.float32)
                setattr(self, f"{name}_bias", parameter(bias, ("heads",), "vector"))
        rates = jnp.log(jnp.linspace(1.0, 16.0, G * R)).reshape(G, R)  # as in Mamba-2
        self.decay_rate, self.decay_bias = parameter(rates, axes, "vector"), parameter(jnp.ones((G, R)), axes, "vector")
        if kind == "mamba":
            self.skip = parameter(jnp.ones((G, R), jnp.float32), axes, "vector")
            self.scale = parameter(jnp.ones((G, R * V), jnp.float32), axes, "vector")
        else:
            self.beta, self.norm = linear("beta", R), RMSNorm(V, config.norm_eps)
        shape, std = (G, R * V, D), residual_std(config)
        self.output = Linear(config, rngs, "attention.output", "btgk,gkd->btd", shape, ("heads", "head", "embed"), std=std)

    def __call__(self, x_BTD: jax.Array, step: Step, state: State | None = None) -> tuple[jax.Array, State | None]:
        """Return the mixed values [B, T, D] and the state after the tokens."""
        linears = (self.query, self.key, self.value, self.gate)
        *qkv, gate_BTGX = map(saved, together(x_BTD, *linears) or [one(x_BTD) for one in linears])
        inputs = dict(zip(PARTS, qkv)) | {"decay": saved(self.decay(x_BTD))}
        inputs |= {"beta": saved(self.beta(x_BTD))} if hasattr(self, "beta") else {}
        names = [f"{name}_{kind}" for name in PARTS for kind in ("taps", "bias")] + ["decay_rate", "decay_bias", "skip"]
        weights = {name: getattr(self, name)[...] for name in names if hasattr(self, name)}
        y_BTGRV, state = advanced(self._core, inputs, weights, state, step)
        gate_BTGX = _shaped(gate_BTGX, (*y_BTGRV.shape[:3], self.sizes[-1]))
        if hasattr(self, "norm"):
            y_BTGX = silu_gated(gate_BTGX, _shaped(self.norm(y_BTGRV), gate_BTGX.shape))
        else:
            y_BTGX = silu_gated(gate_BTGX, _shaped(y_BTGRV, gate_BTGX.shape))
            y_BTGX = rms_norm(y_BTGX, jnp.ones(self.sizes[-1:]), self.eps, rows_are_alone()) * self.scale[...]
        return self.output(y_BTGX.astype(x_BTD.dtype), length_axis(x_BTD)), state

    def _core(self, inputs: Arrays, weights: Arrays, state: Arrays | None, flow: Flow) -> tuple[jax.Array, Arrays | None]:
        mixed, after = Arrays(), Arrays()
        for name, size in zip(PARTS, self.sizes):
            flat_BTC = inputs[name].reshape(*inputs[name].shape[:2], -1)
            taps, bias, before = weights[f"{name}_taps"], weights.get(f"{name}_bias"), None if state is None else state[name]
            y_BTC, tail = short_convolution(flat_BTC, taps, bias, before, flow, silu=True)
            mixed[name] = y_BTC.reshape(*y_BTC.shape[:2], -1, size)
            after |= {} if tail is None else {name: tail}
        q, k = mixed["query"], mixed["key"]
        v = mixed["value"].reshape(*k.shape[:3], *self.values)
        decay, *beta = (
            inputs[name].astype(jnp.float32).reshape(*k.shape[:3], -1) for name in ("decay", "beta") if name in inputs
        )
        delta = jax.nn.softplus(decay + weights["decay_bias"])
        delta = delta if beta else jnp.maximum(delta, self.least_step)
        decay, matrix = -jnp.exp(weights["decay_rate"]) * delta, None if state is None else state["matrix"]
        if beta:
            q, k = _unit(q, q.shape[-1] ** -0.5), _unit(k)
            y, matrix = recurrence(q, k, v, decay, jax.nn.sigmoid(beta[0]), matrix, flow, self.chunk)
        else:
            y, matrix = recurrence(q, k, (v * delta[..., None]).astype(v.dtype), decay, None, matrix, flow, self.chunk)
            y = (y + v * weights["skip"][..., None]).astype(v.dtype)
        return y, None if matrix is None else after | {"matrix": matrix}


def _shaped(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return x [B, T, …] as [B, T, G, X]."""
    return jax.lax.reshape(x, shape, out_sharding=spec("batch", "length", "heads", None))


def _unit(x: jax.Array, length: float = 1.0) -> jax.Array:
    """Return vectors of a length along the last axis, in x's dtype: x / √(Σ x² + 1e-6) · length."""
    K = x.shape[-1]
    return rms_norm(x, jnp.full((K,), length * K**-0.5), 1e-6 / K, rows_are_alone())


RECURRENT_LAYERS: dict[str, Callable[[ModelConfig, nnx.Rngs], nnx.Module]] = {
    "conv": ShortConvolution,
    "delta": functools.partial(StateSpace, kind="delta"),
    "mamba": functools.partial(StateSpace, kind="mamba"),
}
