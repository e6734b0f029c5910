"""The validation of an alignment run, and its first one read back from the log."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax

from lm.align.rl.held_out import evaluate
from lm.align.rl.rewards import Rewards
from lm.align.rl.rollouts import Sampler
from lm.parallel.context import sequences_whole
from lm.train.feed import Feed, summed
from lm.train.step import Trainer


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

    def __call__(self, params, at_most: int | None = None) -> dict[str, float]:
        metrics = {}  # the most important metric comes first
        if self.samples:
            rows = self.config.batch_size
            tasks = self.tasks if at_most is None else self.tasks[: at_most * rows]
            with sequences_whole(params) as whole:
                metrics |= evaluate(self.sampler, whole, tasks, self.rewards, rows)
        if self.feed is not None:
            sums = summed(lambda batch: self.step(params, batch, self.frozen), self.feed.spread(at_most))
            metrics["loss"] = sums["objective"] / max(1e-9, sums["weight"])
            metrics |= {name: x / w for name, (x, w) in sums["metrics"].items() if w}
        return metrics


def first_validation(workdir: Path) -> dict[str, float] | None:
    """Return the validation metrics of step 0 by name, or None if there was no such validation."""
    path = workdir / "metrics.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        values = json.loads(line)
        if values["step"] == 0:
            return {name.removeprefix("valid_"): value for name, value in values.items() if name != "step"}
    return None
