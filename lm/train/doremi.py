"""DoReMi: the shares of sources that a small proxy model finds by group-robust training (Xie et al. 2023, arXiv 2305.10429).

The proxy's parameters minimise the maximum over the weights α of Σ_d α_d · (mean excess loss of source d) (eq. 1). The excess
is its loss minus that of a reference model. Each step of algorithm 1 takes a batch with equally many rows of all sources:

    λ_d  = mean over the tokens of source d of max(nll_proxy − nll_reference, 0)
    α_d ← α_d · exp(η·λ_d), normalised; then α ← (1 − c)·α + c·u, with u uniform
    the proxy learns from Σ_d α_d · (mean nll of source d).

The result is the mean of α over the steps. Letters: B rows, T tokens, D sources.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax import lax

from lm.kernels.logprobs import target_logprobs
from lm.model.inputs import inputs_of
from lm.model.transformer import Transformer
from lm.parallel.arrays import PyTree
from lm.train.step import Batch, Trainer, make_trainer, slices
from lm.train.update import TrainState

STEP_SIZE, SMOOTHING = 1.0, 1e-3  # η and c of algorithm 1, which the paper uses throughout


class Weights(NamedTuple):
    """The sources' weights during a run, each float32 [D]; part of the training state.

    excess: λ of the last batch that held tokens of the source. total: Σ of α over the steps that were applied.
    """

    now: jax.Array
    excess: jax.Array
    total: jax.Array


def updated(
    now_D: jax.Array, excess_D: jax.Array, uniform_D: jax.Array, step_size: float = STEP_SIZE, smoothing: float = SMOOTHING
) -> jax.Array:
    """Return α of the next step, float32 [D]: algorithm 1 of the paper. A source with α = 0 and u = 0 keeps 0."""
    grown_D = now_D * jnp.exp(step_size * (excess_D - jnp.max(excess_D)))  # the factor cancels, and nothing overflows
    return (1 - smoothing) * grown_D / jnp.sum(grown_D) + smoothing * uniform_D


def proxy_trainer(config: ml_collections.ConfigDict, uniform: Mapping[str, float]) -> Trainer:
    """Return the trainer of the proxy: that of `make_trainer`, with the weights of the sources in its state.

    A step takes the reference's parameters as `frozen`, and a batch with `sources`, int32 [B], indices into `uniform`. It
    measures both models on the batch, which takes two more forward passes than a step of pretraining, and learns from the batch
    with each token's weight multiplied by α_d / (tokens of source d). So slices and meshes change nothing. The metrics
    `loss/NAME`, `excess/NAME` (nats per token) and `weight/NAME` are added. A step that is not finite leaves the weights as
    they were.

    Args: uniform: source -> its share of u, in the order of the dataset; 0 for a source that is not read.
    """
    trainer = make_trainer(config)
    uniform_D = jnp.array(list(uniform.values()), jnp.float32)

    def init(params: nnx.State | None = None) -> TrainState:
        zero_D = jnp.zeros_like(uniform_D)
        return trainer.init(params)._replace(sources=Weights(uniform_D, zero_D, zero_D))

    def step(state: TrainState, batch: Batch, frozen: PyTree = None) -> tuple[TrainState, dict[str, jax.Array]]:
        before, proxy, reference = state.sources, nnx.merge(trainer.graph, state.params), nnx.merge(trainer.graph, frozen)
        tokens_D, nll_D, over_D = measured(proxy, reference, batch, len(uniform), config.accumulate)
        mean_D = 1 / jnp.maximum(tokens_D, 1)
        excess_D = jnp.where(tokens_D > 0, over_D * mean_D, before.excess)
        now_D = updated(before.now, excess_D, uniform_D)
        scale_B = jnp.sum(belongs(batch["sources"], len(uniform)) * (now_D * mean_D), axis=1)
        after, metrics = trainer.step(
            state._replace(sources=()),
            {name: x for name, x in batch.items() if name != "sources"} | {"weights": batch["weights"] * scale_B[:, None]},
        )
        applied = after.skipped == state.skipped
        weights = jax.tree.map(
            lambda new, old: jnp.where(applied, new, old), Weights(now_D, excess_D, before.total + now_D), before
        )
        for name, of in (("loss", nll_D * mean_D), ("excess", excess_D), ("weight", weights.now)):
            metrics |= {f"{name}/{source}": of[d] for d, source in enumerate(uniform)}
        return after._replace(sources=weights), metrics

    return trainer._replace(init=init, step=step)


def measured(proxy: Transformer, reference: Transformer, batch: Batch, sources: int, parts: int = 1) -> list[jax.Array]:
    """Return sums by source, each float32 [D]: tokens, nll of the proxy, and max(nll of the proxy − of the reference, 0).

    parts: slices of the batch that are measured one after another.
    """

    def sums(part: Batch) -> list[jax.Array]:
        nll_BT = token_nll(proxy, part)
        over_BT = jnp.maximum(nll_BT - token_nll(reference, part), 0)
        of_BD = belongs(part["sources"], sources)
        return [
            jnp.sum(of_BD * jnp.sum(part["weights"] * x, axis=1)[:, None], axis=0)
            for x in (jnp.ones_like(nll_BT), nll_BT, over_BT)
        ]

    if parts == 1:
        return sums(batch)

    def body(carry: list[jax.Array], part: Batch) -> tuple[list[jax.Array], None]:
        return jax.tree.map(jnp.add, carry, sums(part)), None

    zeros = [jnp.zeros(sources, jnp.float32)] * 3
    return lax.scan(body, zeros, slices(batch, parts))[0]


def token_nll(model: Transformer, batch: Batch) -> jax.Array:
    """Return −log p of each target, float32 [B, T], in nats."""
    x_BTD, config = model.hidden(inputs_of(batch)).x_BTD, model.config
    logps_BT, _ = target_logprobs(
        model.to_head(x_BTD), model.head_VD, batch["targets"], dtype=config.dtype, softcap=config.logit_softcap
    )
    return -logps_BT


def belongs(sources_B: jax.Array, sources: int) -> jax.Array:
    """Return float32 [B, D]: 1 where the row is of the source."""
    return (sources_B[:, None] == jnp.arange(sources)).astype(jnp.float32)


def average(weights: Weights) -> jax.Array:
    """Return the mean of α over the steps, float32 [D]; before the first step α itself. Its sum is 1."""
    total = jnp.sum(weights.total)
    return jnp.where(total > 0, weights.total / jnp.maximum(total, 1), weights.now)
