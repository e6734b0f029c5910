"""Measure rewards on held-out tasks during training, and write sample answers to a few of them to samples.jsonl."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lm.align.alarms import alarms
from lm.align.rl.rewards import Rewards, score_rollouts
from lm.align.rl.rollouts import Rollout, Sampler
from lm.files.saving import write_lines
from lm.parallel.hosts import is_first
from lm.progress import shown


def evaluate(sampler: Sampler, params, tasks: Sequence[dict], rewards: Rewards, rows: int) -> dict[str, float]:
    """Return mean rewards and mean length of greedy rollouts, sampled `rows` at a time."""
    rollouts: list[Rollout] = []
    quiet = {"soon": False, "enabled": is_first(), "leave": False}
    for begin in shown(range(0, len(tasks), rows), "batches of held-out tasks", -(-len(tasks) // rows), **quiet):
        some = list(tasks[begin : begin + rows])
        filled = some + [some[0]] * (rows - len(some))  # a constant shape avoids recompilation
        rollouts += sampler(params, filled, seed=0, temperature=0.0)[: len(some)]
    total, each = score_rollouts(rewards, tasks, rollouts)
    metrics = {"reward": float(total.mean())}
    metrics |= {f"rewards/{name}": float(np.nanmean(values)) for name, values in each.items() if not np.isnan(values).all()}
    return metrics | {"mean_length": float(np.mean([rollout.length for rollout in rollouts]))}


class Samples:
    """A function of (step, params) that adds one line per task to samples.jsonl and returns new alarms as text."""

    def __init__(self, config, workdir: Path, sampler: Sampler, tasks: Sequence[dict], rewards: Rewards | None):
        self.config, self.sampler, self.rewards = config, sampler, rewards
        self.workdir, self.tasks = workdir, list(tasks[: config.num_samples])
        self._reported: set[str] = set()

    def __call__(self, step: int, params) -> list[str]:
        size = self.config.batch_size
        filled = (self.tasks * size)[: max(size, len(self.tasks))]  # a step's number of rows avoids recompilation
        rollouts = self.sampler(params, filled, seed=self.config.seed)[: len(self.tasks)]
        total, each = np.zeros(len(rollouts)), {}
        if self.rewards is not None:
            total, each = score_rollouts(self.rewards, self.tasks, rollouts)
        if not is_first():
            return []
        lines = [
            {
                "step": step,
                "prompt": task["prompt"],
                "completion": rollout.completion,
                "messages": rollout.messages[len(task["prompt"]) :],
                "rewards": {name: None if np.isnan(values[i]) else float(values[i]) for name, values in each.items()},
                "reward": float(total[i]) if self.rewards is not None else None,
                "tokens": rollout.length,
                "ended": rollout.ended,
            }
            for i, (task, rollout) in enumerate(zip(self.tasks, rollouts, strict=True))
        ]
        self._write(step, lines)
        return self._alarms()

    def _write(self, step: int, lines: Iterable[dict]) -> None:
        """Write the lines atomically. Lines of this or later steps, left by a killed run, are replaced."""
        path = self.workdir / "samples.jsonl"
        kept = [line for line in read(path) if line["step"] < step]
        write_lines(path, (*kept, *lines))

    def _alarms(self) -> list[str]:
        """Return alarms of kinds that were not reported yet."""
        found = alarms(read(self.workdir / "metrics.jsonl"), read(self.workdir / "samples.jsonl"))
        new = [alarm for alarm in found if alarm.kind not in self._reported]
        self._reported |= {alarm.kind for alarm in new}
        return [f"step {alarm.step}: {alarm.kind}: {alarm.text}" for alarm in new]


def read(path: Path) -> list[dict]:
    """Return the lines of a JSONL file; skip lines that a crash left incomplete."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        lines += [row] if isinstance(row, dict) else []
    return lines
