"""The methods of lm/align/run.py: what each minimises, and which frozen parameters it needs for that."""

from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh

from data.text.tokenizer import Tokenizer
from lm.align import distill, preference, reward, sft
from lm.align.losses import WITHOUT_REFERENCE
from lm.align.rl import objective as rl
from lm.model.linear import trainable
from lm.train.start import initial_params
from lm.train.step import Objective, Trainer, make_trainer, model_config_of


class Method(NamedTuple):
    """The objective of a method and what it needs.

    frozen: parameters of the reference or teacher, on the mesh, or None. epochs, minibatches: of a step, each an update.
    """

    objective: Objective
    frozen: nnx.State | None
    epochs: int = 1
    minibatches: int = 1

    def trainer(self, config) -> Trainer:
        updates = self.epochs * self.minibatches
        trainer = make_trainer(config, self.objective, updates)
        return trainer._replace(step=rl.iteration(trainer, self.epochs, self.minibatches)) if updates > 1 else trainer


def method_of(config, tokenizer: Tokenizer, mesh: Mesh) -> Method:
    """Return the method's objective, and its reference or teacher on the current mesh."""
    if config.method == "sft":
        return Method(sft.objective(config), None)
    if config.method == "preference":
        has_reference = config.preference.loss not in WITHOUT_REFERENCE
        return Method(preference.objective(config), starting_point(config, mesh) if has_reference else None)
    if config.method == "reward":
        return Method(reward.objective(config), None)
    if config.method == "distill":
        graph, params = distill.open_teacher(config, tokenizer, mesh)
        return Method(distill.objective(config, graph), params)
    frozen = starting_point(config, mesh) if rl.needs_reference(config) else None
    return Method(rl.objective(config), frozen, config.rl.epochs, config.rl.minibatches)


def starting_point(config, mesh: Mesh) -> nnx.State:
    """Return the trainable parameters before the first step (for lm.align.logprobs.reference_model)."""
    return nnx.filter_state(initial_params(config, mesh), trainable(model_config_of(config)))


def title(config) -> str:
    """Return the usual name of the method, such as dpo or grpo."""
    if config.method == "preference":
        return config.preference.loss
    if config.method == "rl":
        return config.rl.algorithm
    return config.method


def score_head(config) -> str:
    """Return the score head that the method needs: "reward", "value" or "none"."""
    if config.method == "reward":
        return "reward"
    return "value" if config.method == "rl" and config.rl.algorithm == "ppo" else "none"
