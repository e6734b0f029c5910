"""Preference optimisation: the losses of lm/align/losses.py on batches of kind "pair", and KTO on kind "labelled".

Arrays are [B, 2, T]. In a pair, row 0 is the prompt with the chosen answer and row 1 the prompt with the rejected one; or the
pair is one row [B, T] with the prompt once (data/chat/example_batches.py). In a labelled example, row 0 is the prompt with its
answer and row 1 the same prompt with another example's answer. Examples whose weights are all 0 only pad the batch. The
reference is the policy before training (`frozen`); lm/align/reference.py runs it.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from data.chat.example_batches import ExampleBatches, Sides
from data.chat.example_files import Examples
from lm.align.data import RunData, Setup, batches, from_examples, is_split
from lm.align.logprobs import examples, logprobs_of, routers, rows
from lm.align.losses import LOSSES, WITHOUT_REFERENCE, Pairs, kto
from lm.align.reference import compare_with_reference, starting_point
from lm.config import ModelConfig
from lm.kernels.attention import Branches
from lm.model.inputs import Inputs, inputs_of
from lm.model.transformer import Transformer
from lm.train.step import Objective, Sums, Trainer, make_trainer, model_config_of

PAIRS = 1000  # the first ones of a split tell how long prompts and answers are


def data(setup: Setup) -> RunData:
    """Return pairs, or labelled answers for KTO."""
    return from_examples(setup, batches_of)


def trainer(config, tokenizer, mesh: Mesh) -> tuple[Trainer, nnx.State | None]:
    """Return the trainer, and the parameters of the reference if the loss has one."""
    frozen = None if config.preference.loss in WITHOUT_REFERENCE else starting_point(config, mesh)
    return make_trainer(config, objective(config)), frozen


def batches_of(config, examples: Examples, split: str, batch_size: int, **options) -> ExampleBatches:
    """Return the batches of a split, with one row for a pair where that is less work (`pays`)."""
    two_rows = batches(config, examples, split, batch_size, **options)
    if config.preference.loss != "kto" and config.preference.share_prompts and not is_split(config):
        first_pairs = (two_rows.pair(id) for id in range(min(two_rows.num_rows, PAIRS)))
        if pays(model_config_of(config), first_pairs):
            return batches(config, examples, split, batch_size, joined=True, **options)
    return two_rows


def objective(config) -> Objective:
    """Return the objective of `config.preference`, a mean over examples.

    loss: a key of LOSSES, with its beta, label_smoothing and gamma, or "kto". nll_weight: adds the chosen answer's mean nll per
    token with this weight (RPO, Pang et al. 2024, eq. 1); ORPO always adds it with weight 1 (Hong et al. 2024, eq. 6).
    desirable_weight, undesirable_weight: multiply KTO's loss of examples of that kind.

    Metrics: rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies (margin above 0), logps/chosen and
    logps/rejected (summed over the answer), entropy of the next-token distribution over the answers (nats), nll if it is
    trained, kl with KTO. A reward is β·log π/π₀, or β·mean log π per token if the loss has no reference.
    """
    loss = unpaired_loss if config.preference.loss == "kto" else paired_loss
    return Objective(functools.partial(loss, config.preference), number_of_examples)


def paired_loss(settings, model: Transformer, batch: dict, frozen, *, train: bool, key=None) -> tuple[jax.Array, Sums]:
    """Return the loss summed over pairs, and metrics."""
    counts_B, n = counted(batch), number_of_examples(batch)

    def over_examples(x_B):
        return jnp.sum(jnp.where(counts_B > 0, x_B, 0.0)), n

    def measure(model):
        logp_B2, lengths_B2, entropy, hidden = answers_under(model, batch)
        auxiliary, loads = routers(model, hidden, batch, n, train)
        return (logp_B2, auxiliary), (lengths_B2, entropy, loads)

    def compare(policy, reference=None):
        (logp_B2, auxiliary), (lengths_B2, entropy, loads) = policy
        if reference is not None:
            ref_B2 = reference[0][0]
            reward_B2 = settings.beta * (logp_B2 - ref_B2)
            ref = ref_B2[:, 0], ref_B2[:, 1]
        else:
            reward_B2 = settings.beta * logp_B2 / jnp.maximum(lengths_B2, 1.0)
            ref = None, None
        pairs = Pairs(logp_B2[:, 0], logp_B2[:, 1], *ref, lengths_B2[:, 0], lengths_B2[:, 1])
        loss_B = LOSSES[settings.loss](pairs, settings)
        margin_B = reward_B2[:, 0] - reward_B2[:, 1]
        metrics = {
            "rewards/chosen": over_examples(reward_B2[:, 0]),
            "rewards/rejected": over_examples(reward_B2[:, 1]),
            "rewards/margins": over_examples(margin_B),
            "rewards/accuracies": over_examples((margin_B > 0).astype(jnp.float32)),
            "logps/chosen": over_examples(logp_B2[:, 0]),
            "logps/rejected": over_examples(logp_B2[:, 1]),
            "entropy": entropy,
        }
        nll_weight = settings.nll_weight + (settings.loss == "orpo")
        if nll_weight:
            nll_B = -logp_B2[:, 0] / jnp.maximum(lengths_B2[:, 0], 1.0)
            loss_B = loss_B + nll_weight * nll_B
            metrics["nll"] = over_examples(nll_B)
        return over_examples(loss_B)[0] + auxiliary, Sums(metrics, loads)

    if settings.loss in WITHOUT_REFERENCE:
        return compare(measure(model))
    return compare_with_reference(measure, compare, model, frozen)


def unpaired_loss(settings, model: Transformer, batch: dict, frozen, *, train: bool, key=None) -> tuple[jax.Array, Sums]:
    """Return KTO's loss summed over examples, and metrics.

    The zero point KL(π‖π₀) is the mean of log π/π₀ over answers to other prompts, taken over the current slice of the batch
    (all devices). config.accumulate makes slices smaller, and so the zero point and rewards/margins (a difference of two
    means) noisier.
    """
    own, other = ({name: x[:, i : i + 1] for name, x in batch.items() if x.ndim == 3} for i in (0, 1))
    counts_B, n = counted(batch), number_of_examples(batch)
    good_B = counts_B * batch["desirable"]
    bad_B = counts_B - good_B

    def measure(model):
        logp_B1, _, entropy, hidden = answers_under(model, own)
        other_B1 = lax.stop_gradient(answers_under(model, other)[0])
        auxiliary, loads = routers(model, hidden, own, n, train)
        return (logp_B1[:, 0], auxiliary), (other_B1[:, 0], entropy, loads)

    def compare(policy, reference):
        (logp_B, auxiliary), (other_B, entropy, loads) = policy
        (ref_B, _), (ref_other_B, _, _) = reference
        kl = jnp.maximum(jnp.sum((other_B - ref_other_B) * counts_B) / jnp.maximum(n, 1.0), 0.0)
        weight_B = settings.desirable_weight * good_B + settings.undesirable_weight * bad_B
        total = jnp.sum(weight_B * kto(logp_B, ref_B, batch["desirable"], kl, settings.beta))
        reward_B = settings.beta * (logp_B - ref_B)
        metrics = {"kl": (kl * n, n), "entropy": entropy}
        means = []
        for name, which_B in (("chosen", good_B), ("rejected", bad_B)):
            reward, count = jnp.sum(which_B * reward_B), jnp.sum(which_B)
            metrics[f"rewards/{name}"] = reward, count
            metrics[f"logps/{name}"] = jnp.sum(which_B * logp_B), count
            means.append(reward / jnp.maximum(count, 1.0))
        both = ((jnp.sum(good_B) > 0) & (jnp.sum(bad_B) > 0)).astype(jnp.float32)
        metrics["rewards/margins"] = both * (means[0] - means[1]), both
        return total + auxiliary, Sums(metrics, loads)

    return compare_with_reference(measure, compare, model, frozen)


def pays(model: ModelConfig, pairs: Iterable[Sides]) -> bool:
    """Return whether one row with the prompt once is less work than two rows, summed over these pairs.

    With P shared tokens and answers of C and R tokens, it saves P tokens at about 24·D² FLOPs in each layer. Attention computes
    (P + C + R)²/2 scores instead of (P + C)²/2 + (P + R)²/2, at 4·D FLOPs each, as it masks what one answer would see of the
    other. Models with experts (balanced over the tokens they see), windows (whose blocks skip keys) or layers with
    a state take two rows.
    """
    if any(kind.moe or kind.local or kind.recurrent for kind in model.layer_kinds):
        return False
    saved = more = 0.0
    for pair in pairs:
        P = pair.shared()
        saved += 6 * model.embed_dim * P
        more += (len(pair.chosen) - P) * (len(pair.rejected) - P) - P**2 / 2
    return saved > more


def answers_under(model: Transformer, batch: dict):
    """Return (Σ log p over the targets of weight above 0, their number, (Σ entropy, tokens) of these, Hidden of the layers).

    The first two are float32 [B, N], where N is the number of sequences per example.
    """
    if "ends" in batch:
        return _joined_answers_under(model, batch)
    flat = rows(batch)
    hidden = model.hidden(inputs_of(flat))
    logp_RT, entropy_RT = logprobs_of(model, hidden.x_BTD, flat["targets"], used_BT=flat["weights"] > 0)
    trained = (batch["weights"] > 0).astype(jnp.float32)
    N, lengths = trained.shape[1], jnp.sum(trained, axis=-1)
    entropy = jnp.sum(examples(entropy_RT, N) * trained), jnp.sum(trained)
    return jnp.sum(examples(logp_RT, N) * trained, axis=-1), lengths, entropy, hidden


def _joined_answers_under(model: Transformer, batch: dict):
    """Do the same for pairs of one row each."""
    positions_BT = batch["positions"]
    branches = Branches(batch["ends"], positions_BT, positions_BT)
    hidden = model.hidden(Inputs(batch["tokens"], batch["segment_ids"], positions_BT, branches))
    trained_BT = batch["weights"] > 0
    logp_BT, entropy_BT = logprobs_of(model, hidden.x_BTD, batch["targets"], used_BT=trained_BT)
    sides = [trained_BT & (batch["rejected"] == side) for side in (0, 1)]
    logp_B2, lengths_B2 = (
        jnp.stack([jnp.sum(jnp.where(side_BT, x, 0.0), axis=1) for side_BT in sides], axis=1)
        for x in (logp_BT, jnp.float32(1.0))
    )
    entropy = jnp.sum(jnp.where(trained_BT, entropy_BT, 0.0)), jnp.sum(lengths_B2)
    return logp_B2, lengths_B2, entropy, hidden


def counted(batch: dict) -> jax.Array:
    """Return float32 [B]: 1 for an example, 0 for padding of the batch."""
    return jnp.any(batch["weights"] > 0, axis=tuple(range(1, batch["weights"].ndim))).astype(jnp.float32)


def number_of_examples(batch: dict) -> jax.Array:
    return jnp.sum(counted(batch))
