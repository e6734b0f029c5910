"""Beside the residual stream: further streams (AltUp), a learned augmented residual (LAuReL), an embedding for each layer.

Gemma 3n has all three; each is an option of its own. Streams lie side by side in the last axis of a layer's input and output.

Axes: B batch, T time, D model, N streams, L layers, P size of a layer's embedding.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.kernels.ops import embedding, row_sums, rows_are_alone
from lm.kernels.saved import saved
from lm.model.feed_forward import activation_of
from lm.model.initializers import normal, parameter
from lm.model.linear import Linear, residual_std
from lm.model.moe import router_logits
from lm.model.norms import RMSNorm, layer_norm, mean
from lm.parallel.context import length_axis

LEAST = 1e-5  # mean square by which a stream is divided at least (Gemma 3n)


class Streams(nnx.Module):
    """What a layer has of the three options."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.altup = AltUp(config, rngs) if config.altup_streams else None
        self.laurel = Laurel(config, rngs) if config.laurel_rank else None
        self.embedding_gate = EmbeddingGate(config, rngs) if config.layer_embed_dim else None

    def predicted(self, x_BTS: jax.Array) -> list[jax.Array]:
        """Return the streams [B, T, D] before the layer; it computes with the first."""
        return [x_BTS] if self.altup is None else self.altup.predicted(x_BTS)

    def augmented(self, x_BTD: jax.Array, normed_BTD: jax.Array) -> jax.Array:
        """Return x after attention with the learned augmented residual; attention read normed_BTD."""
        return x_BTD if self.laurel is None else self.laurel(x_BTD, normed_BTD)

    def corrected(self, streams: Sequence[jax.Array], x_BTD: jax.Array, given_BTP: jax.Array | None) -> jax.Array:
        """Return all streams [B, T, N·D] after the layer. x_BTD: what it made of the first. given_BTP: its embeddings."""
        streams = [x_BTD] if self.altup is None else self.altup.corrected(streams, x_BTD)
        if self.embedding_gate is not None:
            assert given_BTP is not None
            added_BTD = self.embedding_gate(streams[0], given_BTP)
            alone = len(streams) == 1
            streams = [x if i == 0 and not alone else x + added_BTD for i, x in enumerate(streams)]
        return jnp.concatenate(streams, axis=-1)


class AltUp(nnx.Module):
    """Alternating updates (Baykal et al. 2023, algorithm 1), with coefficients that depend on the token (Gemma 3n).

    Before the layer stream j is predicted: h_j + Σ_i P(h_0)_ji·h_i. After it, with y what the layer made of the prediction p_0,
    stream j is p_j + (1 + C(y)_j)·(y − p_0). P and C are linear in tanh(W·norm(x)/D).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        N, D = config.altup_streams, config.embed_dim
        self.config = config
        self.router_norm = RMSNorm(D, config.norm_eps)
        self.router = parameter(normal(rngs, (D, N)), ("embed", "replicated"), "head")
        self.predicting = parameter(jnp.zeros((N, N, N), jnp.float32), ("replicated",) * 3, "vector")
        self.correcting = parameter(jnp.zeros((N, N), jnp.float32), ("replicated",) * 2, "vector")

    def predicted(self, x_BTS: jax.Array) -> list[jax.Array]:
        N = self.config.altup_streams
        old = [x.astype(jnp.float32) for x in jnp.split(x_BTS, N, axis=-1)]
        weights = self._coefficients(old[0].astype(x_BTS.dtype), self.predicting[...])
        new = [x + sum(weights[..., j, i, None] * old[i] for i in range(N)) for j, x in enumerate(old)]
        return [x.astype(x_BTS.dtype) for x in new]

    def corrected(self, streams: Sequence[jax.Array], y_BTD: jax.Array) -> list[jax.Array]:
        weights = 1 + self._coefficients(y_BTD, self.correcting[...])
        change = y_BTD.astype(jnp.float32) - streams[0].astype(jnp.float32)
        return [(x.astype(jnp.float32) + weights[..., j, None] * change).astype(x.dtype) for j, x in enumerate(streams)]

    def _coefficients(self, x_BTD: jax.Array, linear: jax.Array) -> jax.Array:
        """Return float32 [B, T, …] for linear [N, …]."""
        x_BTD = self.router_norm(x_BTD).astype(jnp.float32) / self.config.embed_dim
        if rows_are_alone():
            routed_BTN = jnp.concatenate([row_sums(x_BTD * w_D) for w_D in self.router[...].T], axis=-1)
        else:
            routed_BTN = router_logits(x_BTD, self.router[...], self.config)
        routed_NBT = jnp.moveaxis(jnp.tanh(routed_BTN), -1, 0)
        ones = (1,) * (linear.ndim - 1)
        return sum(x.reshape(*x.shape, *ones) * w for x, w in zip(routed_NBT, linear))


class Laurel(nnx.Module):
    """(x + n + norm(n·A·B)) / √2, where n is what attention read and x has its result (LAuReL, Menghani et al. 2024, §2)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, R = config.embed_dim, config.laurel_rank
        self.down = Linear(config, rngs, "streams.laurel.down", "btd,dr->btr", (D, R), ("embed", "replicated"))
        self.up = Linear(
            config, rngs, "streams.laurel.up", "btr,rd->btd", (R, D), ("replicated", "embed"), std=residual_std(config)
        )
        self.norm = layer_norm(config)

    def __call__(self, x_BTD: jax.Array, normed_BTD: jax.Array) -> jax.Array:
        axis = length_axis(normed_BTD)
        added = self.norm(self.up(saved(self.down(normed_BTD, axis)), axis)) + normed_BTD
        return ((x_BTD.astype(jnp.float32) + added.astype(jnp.float32)) * 0.5**0.5).astype(x_BTD.dtype)


class EmbeddingGate(nnx.Module):
    """norm(W·(f(gate(x)) · e)): what a layer adds of its embedding e of the token. AltUp's first stream x is scaled first."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, P = config.embed_dim, config.layer_embed_dim
        self.activation = activation_of(config)
        if config.altup_streams:
            self.scale = parameter(jnp.ones((D,), jnp.float32), ("norm",), "vector")
        self.gate = Linear(config, rngs, "streams.embedding_gate.gate", "btd,dp->btp", (D, P), ("embed", "replicated"))
        self.output = Linear(config, rngs, "streams.embedding_gate.output", "btp,pd->btd", (P, D), ("replicated", "embed"))
        self.norm = layer_norm(config)

    def __call__(self, x_BTD: jax.Array, given_BTP: jax.Array) -> jax.Array:
        axis = length_axis(x_BTD)
        if hasattr(self, "scale"):
            x_BTD = (x_BTD.astype(jnp.float32) * self.scale[...]).astype(x_BTD.dtype)
        gate_BTP = self.activation(saved(self.gate(x_BTD, axis)).astype(jnp.float32))
        return self.norm(self.output((gate_BTP * given_BTP.astype(jnp.float32)).astype(x_BTD.dtype), axis))


class LayerEmbedding(nnx.Module):
    """The embeddings of all layers, (√P·table[token] + norm(W·x/√D)) / √2, where x is the model's embedding (Gemma 3n)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        V, D = config.layer_embed_vocab or config.vocab_size, config.embed_dim
        L, P = config.num_layers, config.layer_embed_dim
        self.config, self.rows = config, V
        self.table = parameter(normal(rngs, (V, L * P)), ("vocab", "embed"), "embedding")
        axes = ("embed", "replicated", "head")
        self.projection = Linear(config, rngs, "layer_embedding.projection", "btd,dlp->btlp", (D, L, P), axes)
        self.norm = RMSNorm(P, config.norm_eps)

    def __call__(self, tokens_BT: jax.Array, x_BTD: jax.Array) -> list[tuple[jax.Array, ...]]:
        """Return for each stack an array [repeats, B, T, P] for each position of its block, in the compute dtype."""
        axis, D, P = length_axis(x_BTD), self.config.embed_dim, self.config.layer_embed_dim
        tokens_BT = jnp.where(tokens_BT < self.rows, tokens_BT, 0)
        rows = embedding(self.table.get_value(), tokens_BT, x_BTD.dtype, axis).astype(jnp.float32) * P**0.5
        projected = self.projection(x_BTD, axis).astype(jnp.float32) * D**-0.5
        both_BTLP = (self.norm(projected) + rows.reshape(projected.shape)) * 0.5**0.5
        both_LBTP = jnp.moveaxis(both_BTLP.astype(x_BTD.dtype), 2, 0)
        found, first = [], 0
        for block, repeats in self.config.stacks:
            last = first + len(block) * repeats
            found.append(tuple([both_LBTP[first + p : last : len(block)] for p in range(len(block))]))
            first = last
        return found


class StreamEnds(nnx.Module):
    """The streams before the first layer and after the last one (Gemma 3n).

    Stream i begins as W_i·x and ends as V_i·h_i, scaled to the root mean square of the first stream; the result is their mean.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, N = config.embed_dim, config.altup_streams

        def square(name: str) -> Linear:
            return Linear(config, rngs, f"streams.{name}", "btd,dc->btc", (D, D), ("embed", "replicated"))

        self.into = nnx.List([square(f"into.{i}") for i in range(N - 1)])
        self.out_of = nnx.List([square(f"out_of.{i}") for i in range(N - 1)])

    def begun(self, x_BTD: jax.Array) -> jax.Array:
        """Return the streams [B, T, N·D] of an embedding."""
        size = _size(x_BTD, 1e-30)
        others = [_scaled(linear(x_BTD, length_axis(x_BTD)), size) for linear in self.into]
        return jnp.concatenate([x_BTD, *others], axis=-1)

    def ended(self, x_BTS: jax.Array) -> jax.Array:
        """Return the residual stream [B, T, D] before the last norm."""
        first, *others = jnp.split(x_BTS, len(self.out_of) + 1, axis=-1)
        size = _size(first, 1e-30)
        others = [_scaled(linear(x, length_axis(x)), size) for linear, x in zip(self.out_of, others, strict=True)]
        total = functools.reduce(jnp.add, [x.astype(jnp.float32) for x in (first, *others)])
        return (total / (1 + len(others))).astype(x_BTS.dtype)


def _size(x_BTD: jax.Array, least: float) -> jax.Array:
    """Return the root mean square of each token, float32 [B, T, 1]. least: of the mean square, so that there is a gradient."""
    return jnp.sqrt(jnp.maximum(mean(jnp.square(x_BTD.astype(jnp.float32))), least))


def _scaled(x_BTD: jax.Array, size: jax.Array) -> jax.Array:
    return (x_BTD.astype(jnp.float32) * (size / _size(x_BTD, LEAST))).astype(x_BTD.dtype)
