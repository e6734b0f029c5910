"""Reward models: score an answer, trained on pairs (kind "pair"), or each step of an answer (kind "steps")."""

import functools

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from lm.align.logprobs import examples, routers, rows
from lm.align.losses import bradley_terry
from lm.align.preference import counted, number_of_examples
from lm.align.reward_model import at_last_token
from lm.model.inputs import inputs_of
from lm.model.transformer import Transformer
from lm.train.step import Objective, Sums, Trainer, make_trainer


def trainer(config, tokenizer, mesh) -> tuple[Trainer, None]:
    """Return the trainer; there is no reference."""
    return make_trainer(config, objective(config)), None


def objective(config) -> Objective:
    """Return the objective of `config.reward` for a model with a score head (model.score_head="reward").

    kind "outcome": Bradley-Terry loss of a pair's two scores, each read at the last token of its sequence, with the pair's
    margin; `centering` keeps scores near 0. Mean over pairs. Metrics: accuracy (chosen above rejected), margin
    (chosen − rejected), mean_reward, min_reward and max_reward of a batch (with config.accumulate: mean over slices).
    kind "process": binary cross-entropy of the score at each step's last token and the step's label (Lightman et al. 2023,
    §2.6, with one logit for "good"). Mean over steps. Metrics: accuracy (a score above 0 means good), mean_reward.
    """
    if config.reward.kind == "process":
        return Objective(process_loss, lambda batch: jnp.sum(batch["weights"]))
    return Objective(functools.partial(outcome_loss, config.reward.centering), number_of_examples)


def outcome_loss(centering: float, model: Transformer, batch: dict, frozen, *, train: bool, key=None) -> tuple[jax.Array, Sums]:
    """Return the loss summed over pairs, and metrics."""
    flat = rows(batch)
    hidden = model.hidden(inputs_of(flat))
    score_B2 = examples(at_last_token(model.scores(hidden.x_BTD), flat["segment_ids"]), 2)
    chosen_B, rejected_B = score_B2[:, 0], score_B2[:, 1]
    real_B, n = counted(batch) > 0, number_of_examples(batch)

    def over_pairs(x_B):
        return jnp.sum(jnp.where(real_B, x_B, 0.0)), n

    total, _ = over_pairs(bradley_terry(chosen_B, rejected_B, batch["margin"], centering))
    some = (n > 0).astype(jnp.float32)
    lowest, highest = jnp.min(score_B2, axis=1), jnp.max(score_B2, axis=1)
    metrics = {
        "accuracy": over_pairs((chosen_B > rejected_B).astype(jnp.float32)),
        "margin": over_pairs(chosen_B - rejected_B),
        "mean_reward": over_pairs((chosen_B + rejected_B) / 2),
        "min_reward": (some * jnp.min(jnp.where(real_B, lowest, jnp.finfo(jnp.float32).max)), some),
        "max_reward": (some * jnp.max(jnp.where(real_B, highest, jnp.finfo(jnp.float32).min)), some),
    }
    auxiliary, loads = routers(model, hidden, batch, n, train)
    return total + auxiliary, Sums(metrics, loads)


def process_loss(model: Transformer, batch: dict, frozen, *, train: bool, key=None) -> tuple[jax.Array, Sums]:
    """Return the loss summed over steps, and metrics."""
    hidden = model.hidden(inputs_of(batch))
    score_BT, good_BT, weights_BT = model.scores(hidden.x_BTD), batch["labels"], batch["weights"]
    loss_BT = -good_BT * log_sigmoid(score_BT) - (1 - good_BT) * log_sigmoid(-score_BT)
    n = jnp.sum(weights_BT)
    right_BT = (score_BT > 0) == (good_BT > 0.5)
    metrics = {"accuracy": (jnp.sum(weights_BT * right_BT), n), "mean_reward": (jnp.sum(weights_BT * score_BT), n)}
    auxiliary, loads = routers(model, hidden, batch, n, train)
    return jnp.sum(weights_BT * loss_BT) + auxiliary, Sums(metrics, loads)
