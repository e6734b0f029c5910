"""Reinforcement learning: the policy-gradient objective of GRPO and its kin, RLOO and PPO, on rollouts.

A batch holds rollouts as rows: tokens, targets, segment_ids, positions int32 [B, T], weights float32 [B, T] (1 where the policy
drew the target), and what `prepared` adds; or the same of the tokens after the prompts, which stand apart
(lm/align/rl/shared_prompts.py). Axes: B rollouts, G answers to a prompt, T tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lm.align.logprobs import logprobs_of, reference_model
from lm.align.losses import clipped_surrogate, kl_estimate, value_loss
from lm.align.preference import routers
from lm.align.rl import advantages, shared_prompts
from lm.model.transformer import Transformer
from lm.train.step import Objective, Sums, Trainer, TrainState, slices


def needs_reference(config) -> bool:
    return config.rl.beta > 0


def needs_preparation(config) -> bool:
    """Whether more has to be known of a rollout than what the update itself works out: with one update and nothing to compare
    with, π_old is π."""
    rl = config.rl
    return rl.algorithm == "ppo" or rl.epochs * rl.minibatches > 1 or rl.correction != "none" or needs_reference(config)


def prepared(graph, config) -> Callable:
    """prepare(params, frozen, batch) -> the batch with what stays fixed while it is learnt from, float32 [B, T]:

    old_logps: of the targets under the policy that drew them, as the trainer computes it, so that the first ratio is 1.
    ref_logps: under the reference, if rl.beta is above 0. advantages; and for PPO old_values and returns.

    For PPO the reward of a token is −β·(log π_old − log π_ref), and the rollout's own reward comes at its last one (Ziegler et
    al. 2019, eq. 2); advantages are generalised advantage estimates, whitened over the batch. For the others, rewards stand in
    batch["advantages"] [B] already compared with the group's, and all tokens of a rollout share it.
    """
    rl, temperature = config.rl, config.rollout.temperature or 1.0

    def prepare(params: nnx.State, frozen: nnx.State | None, batch: dict) -> dict:
        model = nnx.merge(graph, params)
        given, batch = batch, shared_prompts.flat(batch)
        x_BTD = shared_prompts.hidden(model, batch).x_BTD
        drawn_BT = batch["weights"] > 0
        old_BT, _ = logprobs_of(model, x_BTD, batch["targets"], temperature)
        added = {"old_logps": jnp.where(drawn_BT, old_BT, 0.0)}
        if frozen is not None:
            reference = reference_model(model, frozen)
            ref_BT, _ = logprobs_of(reference, shared_prompts.hidden(reference, batch).x_BTD, batch["targets"], temperature)
            added["ref_logps"] = jnp.where(drawn_BT, ref_BT, 0.0)
        if rl.algorithm == "ppo":
            values_BT = jnp.where(drawn_BT, model.scores(x_BTD), 0.0)
            after_BT = jnp.flip(jnp.cumsum(jnp.flip(batch["weights"], 1), 1), 1)  # drawn tokens from here on
            rewards_BT = jnp.where(drawn_BT & (after_BT == 1), batch["rewards"][:, None], 0.0)
            if frozen is not None:
                rewards_BT = rewards_BT - rl.beta * (added["old_logps"] - added["ref_logps"])
            raw_BT = advantages.gae(rewards_BT, values_BT, rl.gamma, rl.lam, batch["weights"])
            added |= {"old_values": values_BT, "returns": raw_BT + values_BT}
            added["advantages"] = advantages.whiten(raw_BT, batch["weights"])
        if given is not batch:
            added = shared_prompts.grouped(added, given["tokens"].shape[1])
        return given | added

    return prepare


def objective(config) -> Objective:
    """The clipped surrogate, and β·ρ·KL to the reference if rl.beta is above 0, reduced as rl.loss says; l_t is a token's loss.

    ρ, the importance ratio, makes the KL's gradient that of the policy as it is now (DeepSeek-V3.2, 2025, eq. 7).

      grpo     mean over rollouts of the mean over their tokens of l_t (Shao et al. 2024, eq. 3)
      bnpo     Σ l_t / tokens of the minibatch
      dr_grpo  Σ l_t / (rollouts · max_new_tokens · max_turns), so that length has no say (Liu et al. 2025)
      dapo     Σ l_t / tokens of all rollouts of the step, evenly for each minibatch (Yu et al. 2025, eq. 8)
      gspo     as grpo, with one ratio for a rollout: the geometric mean of its tokens' (Zheng et al. 2025, eq. 5)

    PPO's is bnpo, to which value_coef · ½·max((V − R)², (clipped V − R)²) comes; its KL stands in the rewards.
    With rl.correction each l_t is multiplied by min(π_old / π_sampler, correction_cap), of the token or of the whole rollout,
    where π_sampler is what the token was really drawn from (truncated importance sampling, Yao et al. 2025).
    """
    rl, temperature = config.rl, config.rollout.temperature or 1.0
    is_ppo = rl.algorithm == "ppo"
    kind = "bnpo" if is_ppo else rl.loss
    longest = config.rollout.max_new_tokens * max(1, config.rollout.max_turns)

    def loss(model: Transformer, batch: dict, frozen, key) -> tuple[jax.Array, Sums]:
        batch = shared_prompts.flat(batch)
        weights_BT = batch["weights"]
        out = shared_prompts.hidden(model, batch)
        logp_BT, entropy_BT = logprobs_of(model, out.x_BTD, batch["targets"], temperature)
        logp_BT = jnp.where(weights_BT > 0, logp_BT, 0.0)
        level = "sequence" if kind == "gspo" else "token"
        old_BT = batch.get("old_logps", lax.stop_gradient(logp_BT))
        surrogate = clipped_surrogate(logp_BT, old_BT, batch["advantages"], rl.clip_low, rl.clip_high, weights_BT, level)
        loss_BT = surrogate.loss_BT
        if rl.correction != "none":
            loss_BT = loss_BT * correction(old_BT, batch["sampler_logps"], weights_BT, rl)
        tokens = jnp.sum(weights_BT)
        metrics = {
            "entropy": (jnp.sum(entropy_BT * weights_BT), tokens),
            "ratio": (jnp.sum(surrogate.ratio_BT * weights_BT), tokens),
            "clip_ratio/low_mean": (jnp.sum(surrogate.clipped_low_BT * weights_BT), tokens),
            "clip_ratio/high_mean": (jnp.sum(surrogate.clipped_high_BT * weights_BT), tokens),
        }
        metrics["clip_ratio/region_mean"] = (metrics["clip_ratio/low_mean"][0] + metrics["clip_ratio/high_mean"][0], tokens)
        if "ref_logps" in batch:
            kl_BT = kl_estimate(logp_BT, batch["ref_logps"], "k1" if is_ppo else rl.kl)
            if not is_ppo:
                kl_BT = surrogate.ratio_BT * kl_BT
                loss_BT = loss_BT + rl.beta * kl_BT
            metrics["kl"] = (jnp.sum(kl_BT * weights_BT), tokens)
        total = reduced(loss_BT, weights_BT, kind)
        if is_ppo:
            values_BT = model.scores(out.x_BTD)
            critic = jnp.sum(value_loss(values_BT, batch["old_values"], batch["returns"], rl.value_clip) * weights_BT)
            metrics |= {"loss/policy_avg": (total, tokens), "loss/value_avg": (critic, tokens)}
            total = total + rl.value_coef * critic
        router, loads = routers(model, out, batch, weight_of_rows(batch), key)
        return total + router, Sums(metrics, loads)

    def weight_of_rows(batch: dict) -> jax.Array:
        if kind in ("grpo", "gspo"):
            return jnp.maximum(1.0, jnp.sum(jnp.any(batch["weights"] > 0, axis=1)))
        if kind == "dr_grpo":
            return jnp.float32(batch["weights"].shape[0] * longest)
        if kind == "dapo":
            return jnp.maximum(1.0, jnp.sum(batch["tokens_share"]))
        return jnp.maximum(1.0, jnp.sum(batch["weights"]))

    return Objective(loss, lambda batch: weight_of_rows(shared_prompts.flat(batch)))


def reduced(loss_BT, weights_BT, kind: str) -> jax.Array:
    """What a minibatch adds to the sum that the objective's weight divides."""
    if kind in ("grpo", "gspo"):
        return jnp.sum(jnp.sum(loss_BT * weights_BT, axis=1) / jnp.maximum(1.0, jnp.sum(weights_BT, axis=1)))
    return jnp.sum(loss_BT * weights_BT)


def correction(old_BT, sampler_BT, weights_BT, rl) -> jax.Array:
    """min(π_old/π_sampler, cap) of each token, or of each rollout's product for all its tokens; no gradient."""
    log_ratio_BT = lax.stop_gradient((old_BT - sampler_BT) * weights_BT)
    if rl.correction == "sequence":
        log_ratio_BT = jnp.sum(log_ratio_BT, axis=1, keepdims=True) + jnp.zeros_like(log_ratio_BT)
    return jnp.exp(jnp.minimum(log_ratio_BT, jnp.log(rl.correction_cap)))


def iteration(trainer: Trainer, epochs: int, minibatches: int) -> Callable:
    """step(state, batch, frozen) that goes through the batch `epochs` times, in `minibatches` updates each time.

    Metrics are means over the updates; what a run counts (tokens, skipped updates) is counted once.
    """

    def step(state: TrainState, batch: dict, frozen=None) -> tuple[TrainState, dict]:
        parts = slices(batch, minibatches)

        def update(state, n):
            part = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, n % minibatches, keepdims=False), parts)
            return trainer.step(state, part, frozen)

        state, metrics = lax.scan(update, state, jnp.arange(epochs * minibatches))
        kept = {name: values[-1] for name, values in metrics.items() if name in ("skipped", "skipped_in_row", "learning_rate")}
        counted = {name: jnp.sum(metrics[name]) / epochs for name in ("tokens", "weight")}
        means = {name: jnp.mean(values) for name, values in metrics.items()}
        # Of the first update alone, before anything has moved: 1 and 0, or the trainer does not see what was drawn.
        first = {f"first_update/{name}": metrics[name][0] for name in ("ratio", "clip_ratio/region_mean")}
        return state, means | first | kept | counted

    return step
