"""Log-probabilities of given tokens under a model, without the logits of a whole batch.

Axes: B batch, T time, D model, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lm.kernels.logprobs import target_logprobs
from lm.model.linear import trainable
from lm.model.transformer import Transformer
from lm.parallel.mesh import spec


def token_logprobs(model: Transformer, batch: dict, temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """log p(target | tokens before) and the entropy of that distribution, float32 [B, T], nats.

    batch: tokens, targets, segment_ids, positions, int32 [B, T]; others are not read. Logits are divided by the temperature.
    Only the first result has a gradient.
    """
    x_BTD = model.hidden(batch["tokens"], batch["segment_ids"], batch["positions"]).x_BTD
    return logprobs_of(model, x_BTD, batch["targets"], temperature)


def logprobs_of(model: Transformer, x_BTD, targets_BT, temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The same of hidden states after the last norm."""
    config = model.config
    return target_logprobs(
        model.to_head(x_BTD),
        model.head_VD,
        targets_BT,
        dtype=config.dtype,
        softcap=config.logit_softcap,
        temperature=temperature,
    )


def logprobs_reference(model: Transformer, batch: dict, temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The plain twin: whole logits."""
    logits = model(batch["tokens"], batch["segment_ids"], batch["positions"])
    logp_BTV = jax.nn.log_softmax(logits / temperature, axis=-1)
    entropy = -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)
    return jnp.take_along_axis(logp_BTV, batch["targets"][..., None], axis=-1)[..., 0], entropy


def sequence_logprobs(model: Transformer, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Σ log p over the targets of weight above 0, and how many there are, float32 [B, 2], for arrays [B, 2, T]."""
    logp_BT, _ = token_logprobs(model, rows(batch))
    two = batch["tokens"].shape[1]
    counted = (batch["weights"] > 0).astype(jnp.float32)
    return jnp.sum(examples(logp_BT, two) * counted, axis=-1), jnp.sum(counted, axis=-1)


def rows(batch: dict) -> dict:
    """The sequences of examples [B, 2, T] as rows [2·B, T]; what has other axes is left out."""
    return {
        name: lax.reshape(x, (x.shape[0] * x.shape[1], x.shape[2]), out_sharding=spec("batch", None))
        for name, x in batch.items()
        if x.ndim == 3
    }


def examples(x: jax.Array, sequences: int) -> jax.Array:
    """What is known of rows, [B·N, …], by example and its N `sequences`: [B, N, …], split over the mesh as rows are."""
    shape = (x.shape[0] // sequences, sequences, *x.shape[1:])
    return lax.reshape(x, shape, out_sharding=spec("batch", *[None] * x.ndim))


def reference_model(model: Transformer, frozen: nnx.State) -> Transformer:
    """The policy as it was when `frozen` was taken of the part of its parameters that learns.

    What never moves is the policy's own, so that a reference beside adapters costs no more than they do.
    """
    graph, params = nnx.split(model)
    rest = nnx.split_state(params, trainable(model.config), ...)[1]
    return nnx.merge(graph, jax.tree.map(lax.stop_gradient, nnx.merge_state(frozen, rest)))
