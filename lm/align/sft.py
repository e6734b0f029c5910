"""Supervised fine-tuning: next-token prediction on the assistant's turns of packed conversations (kind "conversation")."""

import jax
import jax.numpy as jnp
from jax import lax

from lm.align.settings import SFT_LOSSES, one_of
from lm.model.inputs import inputs_of
from lm.train.step import Objective, Sums, head_loss, training_loss


def objective(config) -> Objective:
    """Return the objective of `config.sft`, a mean over the trained targets.

    loss "nll": −log p(target). "dft": −sg(p)·log p, where sg stops the gradient: dynamic fine-tuning (Wu et al. 2025, eq. 9).
    It cancels the factor 1/p in the gradient of the nll, so unlikely targets do not dominate.
    neftune_alpha: if above 0, adds noise to the embeddings in training, not in evaluation; see `embedding_noise`.
    Training also adds z_loss and mtp_loss of the optimizer section and the router losses, as in pretraining.

    Metrics: loss, entropy of the next-token distribution (nats), mean_token_accuracy; with "dft" also nll.
    Raises UserError for an unknown loss.
    """
    one_of("sft.loss", config.sft.loss, SFT_LOSSES)
    head = {"dft": config.sft.loss == "dft", "measured": True, "sparse": True}
    alpha, o = config.sft.neftune_alpha, config.optimizer

    def loss(model, batch, frozen, *, train, key=None):
        weight = jnp.sum(batch["weights"])
        if not train:
            x_BTD = model.hidden(inputs_of(batch)).x_BTD
            total, *sums = head_loss(model, x_BTD, batch["targets"], batch["weights"], 0.0, **head)
            metrics = {name: (x, weight) for name, x in zip(("loss", "entropy", "mean_token_accuracy"), sums)}
            sums = Sums(metrics, {})
        else:
            noise_BTD = embedding_noise(key, batch, model.config.embed_dim, alpha) if alpha else None
            total, sums = training_loss(model, batch, z_loss=o.z_loss, mtp_loss=o.mtp_loss, noise_BTD=noise_BTD, **head)
        if config.sft.loss == "dft":
            sums = sums._replace(metrics=sums.metrics | {"nll": sums.metrics["loss"], "loss": (total, weight)})
        return total, sums

    return Objective(loss, lambda batch: jnp.sum(batch["weights"]))


def embedding_noise(key, batch: dict, embed_dim: int, alpha: float) -> jax.Array:
    """Return NEFTune's noise, float32 [B, T, D]: uniform in ±alpha / √(L·D), where L is the length of the token's segment.

    Source: Jain et al. 2023, algorithm 1. A packed row holds several segments, each with its own L. The noise of a row depends
    only on the key and on the row's tokens, so it does not depend on slicing or sharding of the batch.
    """
    tokens_BT, T = batch["tokens"], batch["tokens"].shape[1]

    def of_row(name, length_T):
        noise_TD = jax.random.uniform(jax.random.fold_in(key, name), (T, embed_dim), minval=-1.0, maxval=1.0)
        return noise_TD * (alpha * lax.rsqrt(length_T * embed_dim))[:, None]

    odd_T = 2 * jnp.arange(T, dtype=jnp.uint32) + jnp.uint32(0x9E3779B1)  # makes the order of tokens matter
    name_B = jnp.sum(tokens_BT.astype(jnp.uint32) * odd_T, axis=1, dtype=jnp.uint32)
    return jax.vmap(of_row)(name_B, segment_lengths(batch["segment_ids"]))


def segment_lengths(segment_ids_BT) -> jax.Array:
    """Return the length of each token's segment: float32 [B, T]."""
    T = segment_ids_BT.shape[1]
    place_T = jnp.arange(T)
    differs_BT = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    first_BT = jnp.pad(differs_BT, ((0, 0), (1, 0)), constant_values=True)
    last_BT = jnp.pad(differs_BT, ((0, 0), (0, 1)), constant_values=True)
    begin_BT = lax.cummax(jnp.where(first_BT, place_T, 0), axis=1)
    end_BT = lax.cummin(jnp.where(last_BT, place_T, T - 1), axis=1, reverse=True)
    return (end_BT - begin_BT + 1).astype(jnp.float32)
