"""The batches of reinforcement learning and on-policy distillation: tasks of a step → rollouts → rewards → arrays.

A batch is a pure function of (parameters, seed, step), so a resumed run samples the same rollouts. With rl.max_lag the
parameters are those of an earlier step (lm/align/rl/ahead.py).
"""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm.align.cross.spans import Aligner
from lm.align.rl import advantages, shared_prompts
from lm.align.rl.ahead import Ahead, Sampled
from lm.align.rl.objective import needs_preparation, prepared
from lm.align.rl.rewards import Rewards, score_rollouts
from lm.align.rl.rollouts import Rollout, Sampler, arrays, seed_of
from lm.errors import Ended
from lm.parallel.mesh import place_rows

GRPO, RLOO = jax.jit(advantages.grpo, static_argnums=1), jax.jit(advantages.rloo)
UNEQUAL = (
    "log-probabilities of sampler and trainer differ by up to {:.2g} nats. One CPU computes equal ones, for models without "
    "experts, latent attention and layers with a state; else set rl.require_equal=False"
)


class RolloutStream:
    """A lm.train.feed.Stream that samples the rollouts of each step, and scores them.

    rewards: None for distillation. frozen: parameters of the reference or teacher, or None. with_spans: see RunData.
    """

    phase = "rollout"

    def __init__(
        self,
        config,
        mesh,
        sampler: Sampler,
        tasks: Sequence[dict],
        rewards: Rewards | None,
        frozen=None,
        with_spans: Aligner | None = None,
    ):
        self.config, self.mesh, self.sampler, self.tasks = config, mesh, sampler, tasks
        self.rewards, self.frozen, self._with_spans = rewards, frozen, with_spans
        self.group_size = 1 if rewards is None else config.rl.group_size
        prepares = rewards is not None and needs_preparation(config)
        self._prepare = jax.jit(prepared(sampler.graph, config)) if prepares else None
        shortest = min(len(task["prompt_ids"]) for task in tasks)
        self._answer_length = shared_prompts.answer_length(config, mesh, self.group_size, sampler.settings.width, shortest)
        self._ahead = Ahead(config, sampler.mesh or mesh, self.sampled) if rewards is not None and config.rl.max_lag else None

    def start(self, step: int) -> None:
        self._returned = None  # when the last batch was returned

    def next(self, step: int, params, wait: Callable[[], float]) -> tuple[dict[str, jax.Array], dict]:
        done = wait()
        timed = {} if self._returned is None else {"seconds/update": done - self._returned}  # of the previous step
        rows, metrics = self._ahead.next(step, params) if self._ahead else self.sampled(step, params)
        batch = dict(zip(rows, place_rows(*rows.values(), mesh=self.mesh)))  # every host has all rows
        if self._prepare:
            batch = self._prepare(params, self.frozen, batch)
            apart = differences(*(batch[name] for name in ("old_logps", "sampler_logps", "weights")))
            metrics |= {f"sampling/sampling_logp_difference/{name}": float(x) for name, x in apart.items()}
            if self.config.rl.require_equal and (largest := float(apart["max"])) != 0:
                raise Ended(f"rl.require_equal: in step {step} {UNEQUAL.format(largest)}")
        self._returned = time.perf_counter()
        return batch, timed | metrics

    def sampled(self, step: int, params) -> Sampled:
        """Return the rollouts of a step, sampled with these parameters, as rows with their rewards."""
        begin, config, G = time.perf_counter(), self.config, self.group_size
        tasks = tasks_of_step(self.tasks, step, config.batch_size // G, config.seed)
        rollouts = self.sampler(params, tasks, seed=seed_of(config.seed, step), each=G)
        sampled = time.perf_counter()
        metrics, total = length_metrics(rollouts), None
        if self.rewards is not None:
            total, each = score_rollouts(self.rewards, [task for task in tasks for _ in range(G)], rollouts)
            metrics |= reward_metrics(total, each, G)
        rows = batch_arrays(config, rollouts, total, self.sampler.tokenizer.pad_id or 0)
        if self._answer_length:
            prompts = [task["prompt_ids"] for task in tasks]
            rows = shared_prompts.grouped_arrays(rows, prompts, self.sampler.settings.width, self._answer_length)
        if self._with_spans is not None:
            rows = self._with_spans(rows)
        scored = time.perf_counter()
        return Sampled(rows, metrics | {"seconds/rollout": sampled - begin, "seconds/reward": scored - sampled})

    def pending(self) -> dict[str, dict[str, np.ndarray]]:
        return self._ahead.pending() if self._ahead else {}

    def take(self, pending: dict[str, dict[str, np.ndarray]]) -> None:
        if self._ahead:
            rows = self.config.batch_size
            self._ahead.take({step: batch for step, batch in pending.items() if batch["tokens_share"].size == rows})

    def ids(self, step: int) -> list[int] | None:
        return None

    def wait(self) -> None:
        """Wait until nothing is sampled, so that others may sample: on all processes in the same order."""
        if self._ahead:
            self._ahead.wait()

    def close(self) -> None:
        if self._ahead:
            self._ahead.close()


def tasks_of_step(tasks: Sequence[dict], step: int, count: int, seed: int) -> list[dict]:
    """Return the `count` tasks of a step, counted from 1. Each epoch has its own permutation of all tasks."""
    places = [divmod(place, len(tasks)) for place in range((step - 1) * count, step * count)]
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(len(tasks)) for epoch in {epoch for epoch, _ in places}}
    return [tasks[orders[epoch][place]] for epoch, place in places]


def batch_arrays(config, rollouts: Sequence[Rollout], rewards_B: np.ndarray | None, pad_id: int) -> dict[str, np.ndarray]:
    """Return the batch of a step: the arrays of rollouts.py, tokens_share, and "rewards" for PPO, else "advantages", [B].

    tokens_share: the batch's number of trained tokens divided by B, so that slices know it. rewards_B: None for distillation.
    """
    batch, rl = arrays(rollouts, config.sequence_length, pad_id), config.rl
    if rewards_B is not None:
        if rl.algorithm == "ppo":
            batch["rewards"] = rewards_B.astype(np.float32)
        else:
            rewards_PG = rewards_B.reshape(-1, rl.group_size)
            compared = RLOO(rewards_PG) if rl.algorithm == "rloo" else GRPO(rewards_PG, rl.scale)
            batch["advantages"] = np.asarray(compared, np.float32).reshape(-1)
        if rl.mask_truncated:
            batch["weights"] = batch["weights"] * np.float32([[rollout.ended] for rollout in rollouts])
    B = len(rollouts)
    return batch | {"tokens_share": np.full(B, batch["weights"].sum() / B, np.float32)}


@jax.jit
def differences(old_logps, sampler_logps, weights) -> dict[str, jax.Array]:
    """Return mean and maximum of |trainer − sampler| log-probability over sampled tokens, in nats."""
    apart = jnp.where(weights > 0, jnp.abs(old_logps - sampler_logps), 0.0)
    return {"mean": jnp.sum(apart) / jnp.maximum(1, jnp.sum(weights > 0)), "max": jnp.max(apart)}


def reward_metrics(total: np.ndarray, each: dict[str, np.ndarray], group_size: int) -> dict[str, float]:
    """Return reward metrics with TRL's names."""
    groups = total.reshape(-1, group_size)
    spread = groups.std(axis=1, ddof=1) if group_size > 1 else np.full(len(groups), total.std())
    metrics = {
        "reward": float(total.mean()),
        "reward_std": float(total.std(ddof=1)) if len(total) > 1 else 0.0,
        "frac_reward_zero_std": float(np.mean(spread < 1e-6)),
    }
    for name, values in each.items():
        known = values[~np.isnan(values)]
        metrics[f"rewards/{name}/mean"] = float(known.mean()) if known.size else float("nan")
        metrics[f"rewards/{name}/std"] = float(known.std(ddof=1)) if known.size > 1 else 0.0
    return metrics


def length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return metrics of completion lengths in tokens, of thoughts, and of tool calls, the first and last with TRL's names.

    cut_ratio: share of the rollouts with a thought that the budget closed.
    """
    drawn = np.asarray([rollout.length for rollout in rollouts])
    ended = np.asarray([rollout.ended for rollout in rollouts])
    metrics = {
        "completions/mean_length": float(drawn.mean()),
        "completions/min_length": float(drawn.min()),
        "completions/max_length": float(drawn.max()),
        "completions/clipped_ratio": float(1 - ended.mean()),
        "completions/mean_terminated_length": float(drawn[ended].mean()) if ended.any() else 0.0,
    }
    thoughts = np.asarray([rollout.thought_tokens for rollout in rollouts])
    if thoughts.any():
        metrics["thoughts/mean_length"] = float(thoughts.mean())
        metrics["thoughts/max_length"] = float(thoughts.max())
        metrics["thoughts/cut_ratio"] = float(np.mean([rollout.thought_cut for rollout in rollouts]))
    calls = sum(rollout.tool_calls for rollout in rollouts)
    if calls:
        metrics["tools/call_frequency"] = calls / len(rollouts)
        metrics["tools/failure_frequency"] = sum(rollout.tool_errors for rollout in rollouts) / calls
    return metrics
