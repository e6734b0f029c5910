"""Tiny batches of examples as data/chat/example_batches.py gives them, and what an objective makes of one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data.chat.example_batches import Sides, joined_pairs
from lm.align.logprobs import logprobs_of
from lm.model.inputs import inputs_of
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from tests.lm.examples import parameters, tiny_config

T = 16


def align_config(batch_size: int = 4, model: dict = {}, **sections: dict):  # noqa: B006
    """A tiny training config with the sections that the objectives read; `sections` overrides their keys."""
    config = tiny_config(**model)
    config.batch_size, config.sequence_length = batch_size, T
    config.unlock()
    config.sft = ConfigDict(dict(loss="nll", neftune_alpha=0.0))
    config.preference = ConfigDict(
        dict(loss="dpo", beta=0.1, label_smoothing=0.0, gamma=0.5, nll_weight=0.0, desirable_weight=1.0, undesirable_weight=1.0)
    )
    config.reward = ConfigDict(dict(kind="outcome", centering=0.0))
    config.optimizer.z_loss = 0.0
    for name, keys in sections.items():
        config[name].update(keys)
    return config


def pair_batch(B: int = 4, seed: int = 0, filler: int = 0) -> dict[str, np.ndarray]:
    """B pairs [2, T], prompt and one answer or the other, and `filler` rows that only fill up."""
    rng = np.random.default_rng(seed)
    names = ("tokens", "targets", "segment_ids", "positions")
    batch = {name: np.zeros((B + filler, 2, T), np.int32) for name in names}
    batch["weights"] = np.zeros((B + filler, 2, T), np.float32)
    for b in range(B):
        prompt = rng.integers(1, 64, rng.integers(2, 6))
        for i in (0, 1):
            ids = np.concatenate([prompt, rng.integers(1, 64, rng.integers(2, 9))])
            n = len(ids)
            batch["tokens"][b, i, :n], batch["targets"][b, i, : n - 1] = ids, ids[1:]
            batch["segment_ids"][b, i, :n], batch["positions"][b, i, :n] = 1, np.arange(n)
            batch["weights"][b, i, len(prompt) - 1 : n - 1] = 1
    batch["margin"] = np.pad(rng.uniform(0, 1, B), (0, filler)).astype(np.float32)
    return batch


def joined(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same pairs with the prompt once."""
    sides = []
    for tokens, segments, weights in zip(*(batch[name] for name in ("tokens", "segment_ids", "weights")), strict=True):
        ids = [tokens[i, : segments[i].sum()] for i in (0, 1)]
        trained = [np.r_[False, weights[i, : len(ids[i]) - 1] > 0] for i in (0, 1)]
        sides.append(Sides(*ids, *trained) if len(ids[0]) else None)
    return joined_pairs(sides, 2 * T) | {"margin": batch["margin"]}


def labelled_batch(B: int = 4, seed: int = 0, filler: int = 0) -> dict[str, np.ndarray]:
    """B answers, every third of them not desirable, each beside another answer to the same prompt."""
    batch = pair_batch(B, seed, filler)
    del batch["margin"]
    return batch | {"desirable": np.pad(np.arange(B) % 3 != 1, (0, filler)).astype(np.float32)}


@functools.cache
def reference(config, seed: int = 7):
    """Parameters of another policy: the part of them that learns."""
    return nnx.filter_state(parameters(config, seed, 2.0), trainable(config))


def measured(objective, config, params, batch, frozen=None, key=None, gradient: bool = True):
    """(mean objective, {metric: value}, gradient of what learns or None) of a batch under a ModelConfig and its parameters."""
    found = _compiled(objective, config, key is not None, gradient)
    (total, weight, metrics), slope = found(params, {name: jnp.asarray(x) for name, x in batch.items()}, frozen, key)
    return float(total / weight), {name: float(x / w) for name, (x, w) in metrics.items() if w}, slope


@functools.cache
def _compiled(objective, config, training: bool, gradient: bool):
    graph, learns = skeleton(config)[0], trainable(config)

    @jax.jit
    def found(params, batch, frozen, key):
        params, rest = nnx.split_state(params, learns, ...)
        weight = objective.weight(batch)

        def loss(params):
            model = nnx.merge(graph, nnx.merge_state(params, rest))
            total, sums = objective.loss(model, batch, frozen, train=training, key=key if training else None)
            return total / weight, (total, weight, sums.metrics)

        if gradient:
            (_, sums), slope = jax.value_and_grad(loss, has_aux=True)(params)
            return sums, slope
        return loss(params)[1], None

    return found


def token_logprobs(model, batch: dict, temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Return log p(target | earlier tokens) and the entropy, each [B, T], of a forward pass over whole rows."""
    return logprobs_of(model, model.hidden(inputs_of(batch)).x_BTD, batch["targets"], temperature)
