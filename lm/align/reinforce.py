"""Reinforcement learning on rewards of the model's own answers; lm/align/rl has its objectives, rollouts and rewards."""

from flax import nnx
from jax.sharding import Mesh

from lm.align.data import RunData, Setup, from_tasks
from lm.align.reference import starting_point
from lm.align.rl.objective import iteration, objective
from lm.train.step import Trainer, make_trainer


def data(setup: Setup) -> RunData:
    """Return tasks, and the rewards of answers to them."""
    return from_tasks(setup)


def trainer(config, tokenizer, mesh: Mesh) -> tuple[Trainer, nnx.State | None]:
    """Return the trainer, whose step may make several updates, and the parameters of the reference if rl.beta > 0."""
    frozen = starting_point(config, mesh) if config.rl.beta > 0 else None
    updates = config.rl.epochs * config.rl.minibatches
    one_update = make_trainer(config, objective(config), updates)
    if updates == 1:
        return one_update, frozen
    return one_update._replace(step=iteration(one_update, config.rl.epochs, config.rl.minibatches)), frozen
