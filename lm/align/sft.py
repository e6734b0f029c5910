"""Supervised fine-tuning: next-token prediction on the assistant's turns of packed conversations (kind "conversation")."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax

from data.chat.media import rows
from data.chat.media.encoding import Towers
from data.text.tokenizer import Tokenizer
from lm.align.data import RunData, Setup, from_examples
from lm.config.towers import NAMES
from lm.convert.multimodal import processor
from lm.errors import UserError
from lm.model.inputs import inputs_of
from lm.train.step import Objective, Sums, Trainer, head_loss, make_trainer, training_loss
from lm.train.values import model_of

SENSES = dict(zip(rows.NAMES, NAMES))  # media of examples: the section of the model's config with their encoder


def data(setup: Setup) -> RunData:
    """Return conversations, with images and audio for a model with encoders."""
    return from_examples(setup, towers=towers_of(setup.config, setup.tokenizer, setup.workdir))


def towers_of(config, tokenizer: Tokenizer, workdir: Path) -> Towers | None:
    """Return what the model of a run sees and hears; None for a model of text.

    The settings of the processor are those in the workdir, or else in init_from (lm/convert/multimodal/processor.py).
    Raises: UserError if encoders, processor, tokenizer and sequence_length do not go together.
    """
    model = model_of(config)
    places = [Path(place) for place in (workdir, config.init_from) if place]
    folder = next((place for place in places if processor.has_processor(place)), places[0])
    towers = processor.towers_of(folder, model, tokenizer)
    for what, section in (("image", "vision"), ("window of sound", "audio")):
        tower = getattr(model, section)
        if tower.num_layers and tower.tokens >= config.sequence_length:
            raise UserError(
                f"sequence_length={config.sequence_length} is too short for one {what} of model.{section}, which has "
                f"{tower.tokens} tokens: raise it"
            )
    return towers


def trainer(config, tokenizer, mesh) -> tuple[Trainer, None]:
    """Return the trainer; there is no reference."""
    return make_trainer(config, objective(config)), None


def objective(config) -> Objective:
    """Return the objective of `config.sft`, a mean over the trained targets.

    loss "nll": −log p(target). "dft": −sg(p)·log p, where sg stops the gradient: dynamic fine-tuning (Wu et al. 2025, eq. 9).
    It cancels the factor 1/p in the gradient of the nll, so unlikely targets do not dominate.
    neftune_alpha: if above 0, adds noise to the embeddings in training, not in evaluation; see `embedding_noise`.
    Training also adds z_loss and mtp_loss of the optimizer section and the router losses, as in pretraining.

    Metrics: loss, entropy of the next-token distribution (nats), mean_token_accuracy; with "dft" also nll.
    """
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
