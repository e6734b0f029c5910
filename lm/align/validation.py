"""Measures of an alignment run: the objective on held-out examples, rewards of answers to held-out tasks, and samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.align.alarms import alarms
from lm.align.rl.rewards import Rewards, answer_records, score_rollouts
from lm.align.rl.rollouts import Rollout, Sampler
from lm.files.saving import write_json, write_lines
from lm.parallel.context import sequences_whole
from lm.parallel.hosts import is_first
from lm.progress import shown
from lm.runs.workdir import kept_json
from lm.train.feed import Feed, of_each
from lm.train.history import json_lines
from lm.train.loop import Event, Run
from lm.train.step import Trainer

HELD_OUT = "held_out.json"  # {"before" and "after": {measure: (value, weight) of each held-out task or batch}}
Weighed = tuple[float, float]


class Validation:
    """Compute the validation metrics: rewards of greedy answers to held-out tasks, and the objective on held-out examples."""

    def __init__(
        self,
        config,
        trainer: Trainer,
        feed: Feed | None,
        sampler: Sampler | None,
        tasks: Sequence[dict],
        rewards: Rewards | None,
        frozen,
    ):
        self.config, self.feed, self.step = config, feed, jax.jit(trainer.evaluate)
        self.sampler, self.tasks, self.rewards, self.frozen = sampler, tasks, rewards, frozen
        self.samples = bool(tasks and rewards)
        self.measures = feed is not None or self.samples
        self.each: dict[str, list[Weighed]] = {}  # of the last call: the measures of each task or batch

    def __call__(self, params, at_most: int | None = None) -> dict[str, float]:
        metrics, self.each = {}, {}  # the most important metric comes first
        if self.samples:
            rows = self.config.batch_size
            tasks = self.tasks if at_most is None else self.tasks[: at_most * rows]
            with sequences_whole(params) as whole:
                found, totals = evaluate(self.sampler, whole, tasks, self.rewards, rows)
            metrics |= found
            self.each["reward"] = [(total, 1.0) for total in totals]
        if self.feed is not None:
            batches = of_each(lambda batch: self.step(params, batch, self.frozen), self.feed.spread(at_most))
            parts = [{"loss": (batch["objective"], batch["weight"])} | batch["metrics"] for batch in batches]
            for name in parts[0]:
                self.each[name] = [(part[name][0] / part[name][1], part[name][1]) for part in parts if part[name][1]]
                total, weight = (sum(part[name][i] for part in parts) for i in (0, 1))
                metrics |= {name: total / weight} if weight else {}
        return metrics


class HeldOut(Event):
    """Writes the measures of each held-out task or batch before the first step and at the end, which the report compares."""

    def __init__(self, validation: Validation):
        self._validation = validation

    def before(self, run: Run, step: int) -> None:
        if step == 1:
            self._write(run, {"before": self._validation.each})

    def end(self, run: Run) -> None:
        self._write(
            run,
            (kept_json(run.workdir / HELD_OUT, lambda value: isinstance(value, dict)) or {}) | {"after": self._validation.each},
        )

    def _write(self, run: Run, values: dict[str, Any]) -> None:
        if is_first():
            write_json(run.workdir / HELD_OUT, values)


def evaluate(
    sampler: Sampler, params, tasks: Sequence[dict], rewards: Rewards, rows: int
) -> tuple[dict[str, float], list[float]]:
    """Return mean rewards and mean length of greedy rollouts, sampled `rows` at a time, and the reward of each task."""
    rollouts: list[Rollout] = []
    quiet = {"soon": False, "enabled": is_first(), "leave": False}
    for begin in shown(range(0, len(tasks), rows), "batches of held-out tasks", -(-len(tasks) // rows), **quiet):
        rollouts += sampler(params, tasks[begin : begin + rows], seed=0, temperature=0.0)
    total, each = score_rollouts(rewards, tasks, rollouts)
    metrics = {"reward": float(total.mean())}
    metrics |= {f"rewards/{name}": float(np.nanmean(values)) for name, values in each.items() if not np.isnan(values).all()}
    return metrics | {"mean_length": float(np.mean([rollout.length for rollout in rollouts]))}, total.tolist()


class Samples:
    """A function of (step, params) that adds one line per task to samples.jsonl and returns new alarms as text."""

    def __init__(self, config, workdir: Path, sampler: Sampler, tasks: Sequence[dict], rewards: Rewards | None):
        self.config, self.sampler, self.rewards = config, sampler, rewards
        self.workdir, self.tasks = workdir, list(tasks[: config.num_samples])
        self._reported: set[str] = set()

    def __call__(self, step: int, params) -> list[str]:
        rollouts = self.sampler(params, self.tasks, seed=self.config.seed)
        total, each = None, {}
        if self.rewards is not None and self.tasks:
            total, each = score_rollouts(self.rewards, self.tasks, rollouts)
        if not is_first():
            return []
        path = self.workdir / "samples.jsonl"
        lines = [line for line in _lines(path) if line["step"] < step]  # a killed run may have left this and later ones
        records = answer_records(self.tasks, rollouts, total, each)
        for task, rollout, record in zip(self.tasks, rollouts, records):
            lines.append({"step": step, "prompt": task["prompt"], "completion": rollout.completion, **record})
        write_lines(path, lines)
        found = alarms(_lines(self.workdir / "metrics.jsonl"))
        new = [alarm for alarm in found if alarm.kind not in self._reported]
        self._reported |= {alarm.kind for alarm in new}
        return [f"step {alarm.step}: {alarm.kind}: {alarm.text}" for alarm in new]


def first_validation(workdir: Path) -> dict[str, float] | None:
    """Return the validation metrics of step 0 by name, or None if there was no such validation."""
    for line in _lines(workdir / "metrics.jsonl"):
        if line["step"] == 0:
            return {name.removeprefix("valid_"): value for name, value in line.items() if name != "step"}
    return None


def _lines(path: Path) -> list[dict]:
    return json_lines(path) if path.exists() else []
