"""What objectives compute from a model: log-probabilities of tokens without the logits of a whole batch, and router losses."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from lm.kernels.logprobs import target_logprobs
from lm.kernels.ops import rows_alone
from lm.model.linear import trainable
from lm.model.transformer import Hidden, Transformer, skeleton
from lm.parallel.mesh import spec, spec_of
from lm.train.step import router_loss


def logprobs_of(model: Transformer, x_BTD, targets_BT, temperature: float = 1.0, used_BT=None) -> tuple[jax.Array, jax.Array]:
    """Return log p(target | earlier tokens) and the entropy of that distribution, each float32 [B, T] in nats.

    x_BTD: hidden states after the last norm. Logits are divided by the temperature. used_BT: bool, where results are needed;
    elsewhere they may be 0. Only the first result has a gradient.
    """
    config = model.config
    return target_logprobs(
        model.to_head(x_BTD),
        model.head_VD,
        targets_BT,
        dtype=config.dtype,
        softcap=config.logit_softcap,
        temperature=temperature,
        used_BT=used_BT,
    )


@contextlib.contextmanager
def engine_values(model: Transformer) -> Iterator[Transformer]:
    """Yield the model, in a context in which its values are those of the engine that samples from it, to the bit.

    As there, matrices are rounded to the compute dtype and activations are float32 (lm/infer/engine/local.py). Gradients are
    those of training.
    """
    config = model.config
    model = nnx.merge(skeleton(dataclasses.replace(config, dtype="float32"))[0], nnx.split(model)[1])
    name, about = "embedding" if config.tie_embeddings else "head", jnp.finfo(config.dtype)
    w = getattr(model, name)[...]
    rounded = w + lax.stop_gradient(lax.reduce_precision(w, about.nexp, about.nmant) - w)  # which is exact
    setattr(model, name, getattr(model, name).replace(rounded))
    with rows_alone(config.dtype):
        yield model


def rows(batch: dict) -> dict:
    """Reshape arrays [B, 2, T] to rows [2·B, T]; drop arrays of other ranks."""
    return {
        name: lax.reshape(x, (x.shape[0] * x.shape[1], x.shape[2]), out_sharding=spec("batch", "length"))
        for name, x in batch.items()
        if x.ndim == 3
    }


def examples(x: jax.Array, sequences: int) -> jax.Array:
    """Reshape rows [B·N, …] to [B, N, …], where N = `sequences` per example; the batch axis stays sharded."""
    shape, where = (x.shape[0] // sequences, sequences, *x.shape[1:]), spec_of(x)
    return lax.reshape(x, shape, out_sharding=where and PartitionSpec(where[0], None, *where[1:]))


def reference_model(model: Transformer, frozen: nnx.State) -> Transformer:
    """Return the reference model: `frozen`, a copy of the trainable parameters, plus the policy's own frozen parameters.

    Frozen parameters are shared, so the reference of a LoRA run costs only the memory of the adapters.
    """
    graph, params = nnx.split(model)
    rest = nnx.split_state(params, trainable(model.config), ...)[1]
    return nnx.merge(graph, jax.tree.map(lax.stop_gradient, nnx.merge_state(frozen, rest)))


def routers(model: Transformer, hidden: Hidden, batch: dict, weight, train: bool) -> tuple[jax.Array, dict]:
    """Return the router losses (0 in evaluation) and the expert loads.

    The losses are a mean over tokens, as in pretraining, times `weight`, by which the caller divides the objective.
    """
    total, loads = router_loss(model, [hidden])
    if not train or not loads:
        return jnp.zeros((), jnp.float32), loads
    return total * weight / jnp.maximum(jnp.sum(batch["segment_ids"] > 0), 1), loads
