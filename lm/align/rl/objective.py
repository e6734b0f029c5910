"""Reinforcement learning: the policy-gradient objectives of GRPO and its variants, RLOO and PPO, on rollouts.

A batch holds rollouts as rows: tokens, targets, segment_ids, positions int32 [B, T], weights float32 [B, T] (1 where the policy
drew the target), and the arrays that `prepared` adds. With shared prompts, rows hold only the tokens after the prompt
(lm/align/rl/shared_prompts.py). Axes: B rollouts, G answers per prompt, T tokens.
"""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from lm.align.logprobs import engine_values, logprobs_of, reference_model, routers
from lm.align.losses import clipped_surrogate, kl_estimate, value_loss
from lm.align.reference import starting_point
from lm.align.rl import advantages, shared_prompts
from lm.model.transformer import Hidden, Transformer
from lm.train.step import Objective, Sums, Trainer, make_trainer, slices
from lm.train.update import TrainState


def trainer(config, tokenizer, mesh: Mesh) -> tuple[Trainer, nnx.State | None]:
    """Return the trainer, whose step may make several updates, and the parameters of the reference if rl.beta > 0."""
    frozen = starting_point(config, mesh) if config.rl.beta > 0 else None
    updates = config.rl.epochs * config.rl.minibatches
    one_update = make_trainer(config, objective(config), updates)
    if updates == 1:
        return one_update, frozen
    return one_update._replace(step=iteration(one_update, config.rl.epochs, config.rl.minibatches)), frozen


def needs_preparation(config) -> bool:
    """Return whether `prepared` must add arrays to a batch. With one update and no reference, π_old is π and it need not."""
    rl = config.rl
    several = rl.algorithm == "ppo" or rl.epochs * rl.minibatches > 1
    return several or rl.correction != "none" or rl.beta > 0 or rl.require_equal


def prepared(graph, config) -> Callable:
    """Return prepare(params, frozen, batch) -> batch with arrays that stay fixed during its updates, float32 [B, T].

    old_logps: log-probabilities of the targets under the sampling policy, computed by the trainer, so the first ratio is 1.
    ref_logps: the same under the reference, if rl.beta > 0. For PPO also advantages, old_values and returns.

    PPO: the reward of a token is −β·(log π_old − log π_ref), and the last token also gets the rollout's reward (Ziegler et al.
    2019, eq. 2). Advantages are generalised advantage estimates, whitened over the batch. Other algorithms: the batch already
    has group-relative advantages [B], shared by all tokens of a rollout.
    """
    rl = config.rl

    def prepare(params: nnx.State, frozen: nnx.State | None, batch: dict) -> dict:
        model = nnx.merge(graph, params)
        given, batch = batch, shared_prompts.flat(batch)
        drawn_BT = batch["weights"] > 0
        out, old_BT, _ = values(config, model, batch)
        added = {"old_logps": jnp.where(drawn_BT, old_BT, 0.0)}
        if frozen is not None:
            _, ref_BT, _ = values(config, reference_model(model, frozen), batch)
            added["ref_logps"] = jnp.where(drawn_BT, ref_BT, 0.0)
        if rl.algorithm == "ppo":
            values_BT = jnp.where(drawn_BT, model.scores(out.x_BTD), 0.0)
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


def values(config, model: Transformer, batch: dict, used_BT=None) -> tuple[Hidden, jax.Array, jax.Array]:
    """Return the hidden states of a flat batch, log p of its targets at the rollouts' temperature, and the entropies, in nats.

    With rl.require_equal they are those of the engine. used_BT: as in `logprobs_of`.
    """
    with engine_values(model) if config.rl.require_equal else contextlib.nullcontext(model) as model:
        out = shared_prompts.hidden(model, batch)
        return out, *logprobs_of(model, out.x_BTD, batch["targets"], config.rollout.temperature or 1.0, used_BT)


def objective(config) -> Objective:
    """Return the objective: the clipped surrogate, plus β·ρ·KL to the reference if rl.beta > 0, reduced as rl.loss says.

    The factor ρ, the importance ratio, makes the KL gradient that of the current policy (DeepSeek-V3.2, 2025, eq. 7).
    rl.loss, where l_t is the loss of a token:

      grpo     mean over rollouts of the mean of l_t over their tokens (Shao et al. 2024, eq. 3)
      bnpo     Σ l_t / tokens of the minibatch
      dr_grpo  Σ l_t / (rollouts · max_new_tokens · max_turns), independent of the length (Liu et al. 2025)
      dapo     Σ l_t / tokens of all rollouts of the step, split evenly over minibatches (Yu et al. 2025, eq. 8)
      gspo     as grpo, with one ratio per rollout: the geometric mean of its token ratios (Zheng et al. 2025, eq. 5)

    PPO uses bnpo and adds value_coef · ½·max((V − R)², (clipped V − R)²); its KL penalty is in the rewards.
    rl.correction multiplies l_t by min(π_old / π_sampler, correction_cap), per token or per rollout, where π_sampler is the
    probability under the sampler (truncated importance sampling, Yao et al. 2025). With rl.max_lag the sampler is an older
    policy, and π_old, the one before the step, only limits the update: decoupled PPO (Hilton et al. 2022; Fu et al. 2025).
    """
    rl = config.rl
    is_ppo = rl.algorithm == "ppo"
    kind = "bnpo" if is_ppo else rl.loss
    longest = config.rollout.max_new_tokens * max(1, config.rollout.max_turns)

    def loss(model: Transformer, batch: dict, frozen, *, train: bool, key=None) -> tuple[jax.Array, Sums]:
        batch = shared_prompts.flat(batch)
        weights_BT = batch["weights"]
        out, logp_BT, entropy_BT = values(config, model, batch, weights_BT > 0)
        logp_BT = jnp.where(weights_BT > 0, logp_BT, 0.0)
        level = "sequence" if kind == "gspo" else "token"
        old_BT = batch.get("old_logps", lax.stop_gradient(logp_BT))
        surrogate = clipped_surrogate(logp_BT, old_BT, batch["advantages"], rl.clip_low, rl.clip_high, weights_BT, level)
        loss_BT, tokens = surrogate.loss_BT, jnp.sum(weights_BT)
        metrics = {
            "entropy": (jnp.sum(entropy_BT * weights_BT), tokens),
            "ratio": (jnp.sum(surrogate.ratio_BT * weights_BT), tokens),
            "clip_ratio/low_mean": (jnp.sum(surrogate.clipped_low_BT * weights_BT), tokens),
            "clip_ratio/high_mean": (jnp.sum(surrogate.clipped_high_BT * weights_BT), tokens),
        }
        metrics["clip_ratio/region_mean"] = (metrics["clip_ratio/low_mean"][0] + metrics["clip_ratio/high_mean"][0], tokens)
        if rl.correction != "none":
            correction_BT = correction(old_BT, batch["sampler_logps"], weights_BT, rl)
            loss_BT = loss_BT * correction_BT
            metrics["sampling/importance_sampling_ratio/mean"] = (jnp.sum(correction_BT * weights_BT), tokens)
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
        router, loads = routers(model, out, batch, weight_of_rows(batch), train)
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
    """Return the loss sum of a minibatch, which the caller divides by the objective's weight."""
    if kind in ("grpo", "gspo"):
        return jnp.sum(jnp.sum(loss_BT * weights_BT, axis=1) / jnp.maximum(1.0, jnp.sum(weights_BT, axis=1)))
    return jnp.sum(loss_BT * weights_BT)


def correction(old_BT, sampler_BT, weights_BT, rl) -> jax.Array:
    """Return min(π_old/π_sampler, cap) per token, or of the product over a rollout for all its tokens; no gradient."""
    log_ratio_BT = lax.stop_gradient((old_BT - sampler_BT) * weights_BT)
    if rl.correction == "sequence":
        log_ratio_BT = jnp.sum(log_ratio_BT, axis=1, keepdims=True) + jnp.zeros_like(log_ratio_BT)
    return jnp.exp(jnp.minimum(log_ratio_BT, jnp.log(rl.correction_cap)))


def iteration(trainer: Trainer, ppo_epochs: int, minibatches: int) -> Callable:
    """Return step(state, batch, frozen), which passes over the batch `ppo_epochs` times with `minibatches` updates per pass.

    Metrics are means over the updates. Counters (tokens, skipped updates) count each rollout once.
    """

    def step(state: TrainState, batch: dict, frozen=None) -> tuple[TrainState, dict]:
        parts = slices(batch, minibatches)

        def update(state, n):
            part = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, n % minibatches, keepdims=False), parts)
            return trainer.step(state, part, frozen)

        state, metrics = lax.scan(update, state, jnp.arange(ppo_epochs * minibatches))
        kept = {name: values[-1] for name, values in metrics.items() if name in ("skipped", "skipped_in_row", "learning_rate")}
        counted = {name: jnp.sum(metrics[name]) / ppo_epochs for name in ("tokens", "weight")}
        means = {name: jnp.mean(values) for name, values in metrics.items()}
        # In the first update the policy is unchanged. Values other than 1 and 0 mean that it misreads the sampled tokens.
        first = {f"first_update/{name}": metrics[name][0] for name in ("ratio", "clip_ratio/region_mean")}
        return state, means | first | kept | counted

    return step
