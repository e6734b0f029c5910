"""The data stream of reinforcement learning: sample each step's rollouts with the current parameters and score them.

A batch is a pure function of (parameters, seed, step), so a resumed run samples the same rollouts.
"""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.align.rl import advantages
from lm.align.rl.rewards import Rewards, scored
from lm.align.rl.rollouts import Rollout, arrays, roll_out
from lm.align.rl.tools import Tool
from lm.errors import UserError
from lm.parallel.hosts import is_first
from lm.parallel.mesh import place_rows
from lm.progress import shown

GRPO, RLOO = jax.jit(advantages.grpo, static_argnums=1), jax.jit(advantages.rloo)


class Rolling:
    """A stream of batches: rollouts of `config.batch_size / group_size` tasks per step, with their rewards.

    prepare: prepare(params, frozen, batch) -> batch to train on (`prepared` in rl/objective.py), or None. rewards: None for
    distillation. Tasks are reshuffled in each epoch.
    """

    def __init__(
        self,
        config,
        mesh,
        graph,
        tokenizer,
        tasks: Sequence[dict],
        rewards: Rewards | None,
        *,
        group_size: int,
        frozen=None,
        prepare: Callable | None = None,
        tools: Sequence[Tool] = (),
        template: str | None = None,
    ):
        self.config, self.mesh, self.graph, self.tokenizer = config, mesh, graph, tokenizer
        self.tasks, self.rewards, self.group_size, self.frozen = tasks, rewards, group_size, frozen
        self.tools, self.template = tools, template
        self.prepare = prepare and jax.jit(prepare)
        self._width = check_room(config, tasks)
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def start(self, step: int) -> None:
        self._left = None

    def next(self, step: int, params, wait: Callable[[], float]) -> tuple[dict[str, jax.Array], dict]:
        done, begin = wait(), time.perf_counter()
        metrics = {} if self._left is None else {"seconds/update": done - self._left}  # of the previous step
        chosen = self._chosen(step)
        tasks = [task for task in chosen for _ in range(self.group_size)]
        seed = int(np.random.SeedSequence([self.config.seed, step]).generate_state(1)[0])
        rollouts = self.roll(params, chosen, seed, each=self.group_size)
        rolled = time.perf_counter()
        batch = arrays(rollouts, self.config.sequence_length, self.tokenizer.pad_id or 0)
        metrics |= lengths(rollouts)
        if self.rewards is not None:
            total, each = judged(self.rewards, tasks, rollouts)
            batch |= self._compared(total)
            metrics |= earned(total, each, self.group_size)
            if self.config.rl.mask_truncated:
                batch["weights"] = batch["weights"] * np.float32([[r.ended] for r in rollouts])
        batch["tokens_share"] = np.full(len(tasks), batch["weights"].sum() / len(tasks), np.float32)
        judged_at = time.perf_counter()
        on_devices = self.placed(batch)
        if self.prepare:
            on_devices = self.prepare(params, self.frozen, on_devices)
            if "old_logps" in on_devices:
                apart = differences(*(on_devices[name] for name in ("old_logps", "sampler_logps", "weights")))
                metrics |= {f"sampling/sampling_logp_difference/{name}": float(x) for name, x in apart.items()}
        self._left = time.perf_counter()
        metrics |= {"seconds/rollout": rolled - begin, "seconds/reward": judged_at - rolled}
        return on_devices, metrics

    def ids(self, step: int) -> list[int] | None:
        return None

    def close(self) -> None: ...

    def roll(self, params, tasks: Sequence[dict], seed: int, temperature: float | None = None, each: int = 1) -> list[Rollout]:
        """Sample `each` rollouts of each task with the settings of config.rollout; `temperature` overrides its value."""
        o = self.config.rollout
        return roll_out(
            nnx.merge(self.graph, params),
            self.tokenizer,
            tasks,
            max_new_tokens=o.max_new_tokens,
            temperature=o.temperature if temperature is None else temperature,
            top_p=o.top_p,
            top_k=o.top_k,
            seed=seed,
            width=self._width,
            most_tokens=self.config.sequence_length + 1,
            tools=self.tools,
            max_turns=o.max_turns,
            template=self.template,
            each=each,
        )

    def placed(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Rows split over the mesh; every host holds them all."""
        return dict(zip(batch, place_rows(*batch.values(), mesh=self.mesh)))

    def _chosen(self, step: int) -> list[dict]:
        count = self.config.batch_size // self.group_size
        chosen = []
        for place in range((step - 1) * count, step * count):
            epoch, at = divmod(place, len(self.tasks))
            if self._order[0] != epoch:
                self._order = (epoch, np.random.default_rng([self.config.seed, epoch]).permutation(len(self.tasks)))
            chosen.append(self.tasks[self._order[1][at]])
        return chosen

    def _compared(self, total: np.ndarray) -> dict[str, np.ndarray]:
        """Return the batch arrays that depend on the rewards [B]: "rewards" for PPO, else "advantages"."""
        o = self.config.rl
        if o.algorithm == "ppo":
            return {"rewards": total.astype(np.float32)}
        rewards_PG = total.reshape(-1, self.group_size)
        compared = RLOO(rewards_PG) if o.algorithm == "rloo" else GRPO(rewards_PG, o.scale)
        return {"advantages": np.asarray(compared, np.float32).reshape(-1)}


@jax.jit
def differences(old_logps, sampler_logps, weights) -> dict[str, jax.Array]:
    """Return mean and maximum of |trainer − sampler| log-probability over sampled tokens, in nats."""
    apart = jnp.where(weights > 0, jnp.abs(old_logps - sampler_logps), 0.0)
    return {"mean": jnp.sum(apart) / jnp.maximum(1, jnp.sum(weights > 0)), "max": jnp.max(apart)}


def check_room(config, tasks: Sequence[dict]) -> int:
    """Return the length of the longest prompt in tokens. Raises UserError if it and one turn do not fit into a row."""
    width = max(len(task["prompt_ids"]) for task in tasks)
    most = width + config.rollout.max_new_tokens
    if most > config.sequence_length + 1:
        raise UserError(
            f"sequence_length={config.sequence_length} is too short for prompts of {width} tokens and "
            f"rollout.max_new_tokens={config.rollout.max_new_tokens}: make it {most - 1} at least"
        )
    return width


def judged(rewards: Rewards, tasks: Sequence[dict], rollouts: Sequence[Rollout]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the total reward of each rollout [N], and its components by name."""
    names = dict.fromkeys(name for task in tasks for name in task if name not in ("prompt", "prompt_ids"))
    columns = {name: [task.get(name) for task in tasks] for name in names} | {"rollouts": list(rollouts)}
    return scored(rewards, [task["prompt"] for task in tasks], [r.completion for r in rollouts], columns)


def earned(total: np.ndarray, each: dict[str, np.ndarray], group_size: int) -> dict[str, float]:
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


def lengths(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return metrics of completion lengths in tokens, and of tool calls, with TRL's names."""
    drawn = np.asarray([rollout.length for rollout in rollouts])
    ended = np.asarray([rollout.ended for rollout in rollouts])
    metrics = {
        "completions/mean_length": float(drawn.mean()),
        "completions/min_length": float(drawn.min()),
        "completions/max_length": float(drawn.max()),
        "completions/clipped_ratio": float(1 - ended.mean()),
        "completions/mean_terminated_length": float(drawn[ended].mean()) if ended.any() else 0.0,
    }
    calls = sum(rollout.tool_calls for rollout in rollouts)
    if calls:
        metrics["tools/call_frequency"] = calls / len(rollouts)
        metrics["tools/failure_frequency"] = sum(rollout.tool_errors for rollout in rollouts) / calls
    return metrics


def evaluate(rolling: Rolling, tasks: Sequence[dict], rewards: Rewards, params, at_most: int | None = None) -> dict[str, float]:
    """Return mean rewards and mean length of greedy rollouts of the first `at_most` held-out tasks."""
    tasks = list(tasks[:at_most])
    size = rolling.config.batch_size
    rollouts: list[Rollout] = []
    quiet = {"soon": False, "enabled": is_first(), "leave": False}
    for begin in shown(range(0, len(tasks), size), "batches of held-out tasks", -(-len(tasks) // size), **quiet):
        some = tasks[begin : begin + size]
        filled = some + [some[0]] * (size - len(some))  # a constant shape avoids recompilation
        rollouts += rolling.roll(params, filled, seed=0, temperature=0.0)[: len(some)]
    total, each = judged(rewards, tasks, rollouts)
    metrics = {"reward": float(total.mean())}
    metrics |= {f"rewards/{name}": float(np.nanmean(values)) for name, values in each.items() if not np.isnan(values).all()}
    return metrics | {"mean_length": float(np.mean([rollout.length for rollout in rollouts]))}
