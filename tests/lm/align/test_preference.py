"""Preferences: every loss's objective against a plain twin, the reference, what has no say, and slices of a batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.align import losses, preference
from lm.config import Adapter
from lm.model.inputs import Inputs
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.train.step import model_config_of
from tests.lm.align.batches import T, align_config, joined, labelled_batch, measured, pair_batch, reference
from tests.lm.examples import parameters
from tests.slow import all_but

KEY = jax.random.key(0)
PAIRED = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "entropy",
}
UNPAIRED = (PAIRED | {"kl"}) - {"rewards/accuracies"}


BETA = 0.3
SETTINGS = {
    "dpo": dict(loss="dpo", beta=BETA),
    "kto": dict(loss="kto", beta=BETA, desirable_weight=2.0, undesirable_weight=0.5),
    "ipo": dict(loss="ipo", beta=BETA, nll_weight=0.5),
    "orpo": dict(loss="orpo", beta=BETA, nll_weight=0.5),
    "simpo": dict(loss="simpo", beta=BETA, gamma=0.2),
}
# A batch is the same throughout, so that an objective is compiled once: three examples, and a row that only fills up.
BATCHES = {"dpo": pair_batch(3, filler=1), "kto": labelled_batch(3, filler=1)}


@functools.cache
def prepared(loss: str):
    """(objective, ModelConfig, parameters)."""
    config = align_config(preference=SETTINGS[loss])
    model_config = model_config_of(config)
    return preference.objective(config), model_config, parameters(model_config, 0, 3.0)


def plain_logps(config, params, batch):
    """[B, 2] summed over the answers, from whole logits; and the mean of their entropy."""
    model = nnx.merge(skeleton(config)[0], params)
    tokens, targets, segments, weights = (
        batch[name].reshape(-1, T) for name in ("tokens", "targets", "segment_ids", "weights")
    )
    logp_RTV = jax.nn.log_softmax(model(Inputs(tokens, segments)))
    logp_R = jnp.sum(jnp.take_along_axis(logp_RTV, targets[..., None], -1)[..., 0] * weights, axis=1)
    entropy = -jnp.sum(jnp.exp(logp_RTV) * logp_RTV * weights[..., None])
    return logp_R.reshape(-1, 2), entropy / weights.sum()


def plain_dpo(config, params, frozen, batch):
    """(mean loss, metrics) by the definitions; frozen holds every parameter of the reference."""
    logp, entropy = plain_logps(config, params, batch)
    ref, _ = plain_logps(config, frozen, batch)
    reward = BETA * (logp - ref)
    margin = reward[:, 0] - reward[:, 1]
    metrics = {
        "rewards/chosen": reward[:, 0].mean(),
        "rewards/rejected": reward[:, 1].mean(),
        "rewards/margins": margin.mean(),
        "rewards/accuracies": (margin > 0).mean(),
        "logps/chosen": logp[:, 0].mean(),
        "logps/rejected": logp[:, 1].mean(),
        "entropy": entropy,
    }
    return jnp.log(1 + jnp.exp(-margin)).mean(), metrics


def plain_kto(config, params, frozen, batch):
    logp, _ = plain_logps(config, params, batch)
    ref, _ = plain_logps(config, frozen, batch)
    kl = jax.lax.stop_gradient(jnp.maximum((logp - ref)[:, 1].mean(), 0.0))
    x, loss, rewards = (logp - ref)[:, 0], 0.0, {1.0: [], 0.0: []}
    for b, desirable in enumerate(batch["desirable"]):
        loss += 2.0 * (1 - jax.nn.sigmoid(BETA * (x[b] - kl))) if desirable else 0.5 * (1 - jax.nn.sigmoid(BETA * (kl - x[b])))
        rewards[float(desirable)].append(BETA * x[b])
    good, bad = (jnp.mean(jnp.stack(rewards[kind])) for kind in (1.0, 0.0))
    metrics = {"kl": kl, "rewards/chosen": good, "rewards/rejected": bad, "rewards/margins": good - bad}
    return loss / len(x), metrics


@pytest.mark.parametrize(("loss", "with_gradient"), all_but([("dpo", True)], [("dpo", True), ("kto", False), ("kto", True)]))
def test_as_a_plain_twin(loss, with_gradient):
    objective, config, params = prepared(loss)
    value, metrics, gradient = measured(objective, config, params, BATCHES[loss], reference(config), KEY, with_gradient)
    examples = {name: x[:3] for name, x in BATCHES[loss].items()}

    @jax.jit
    def plain(params, frozen):
        twin = {"dpo": plain_dpo, "kto": plain_kto}[loss]
        if not with_gradient:
            return twin(config, params, frozen, examples), None
        return jax.value_and_grad(lambda params: twin(config, params, frozen, examples), has_aux=True)(params)

    (wanted, wanted_metrics), wanted_gradient = plain(params, reference(config))
    assert value == pytest.approx(float(wanted), rel=1e-5)
    assert metrics.keys() == (UNPAIRED if loss == "kto" else PAIRED)
    assert loss == "dpo" or metrics["kl"] > 0.1  # or clamping would hide it
    for name, found in wanted_metrics.items():
        assert metrics[name] == pytest.approx(float(found), rel=1e-4, abs=1e-6), name
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.max(jnp.abs(theirs))) + 1e-9)


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_a_prompt_computed_once_gives_the_same(loss):
    """Joined pairs as pairs of two rows: value, metrics and gradient."""
    objective, config, params = prepared(loss)
    plain, once = (
        measured(objective, config, params, batch, reference(config), KEY) for batch in (BATCHES["dpo"], joined(BATCHES["dpo"]))
    )
    assert once[0] == pytest.approx(plain[0], rel=1e-5)
    assert once[1] == pytest.approx(plain[1], rel=1e-4, abs=1e-6)
    for ours, theirs in zip(jax.tree.leaves(once[2]), jax.tree.leaves(plain[2]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.max(jnp.abs(theirs))) + 1e-9)


@pytest.mark.parametrize("loss", ["ipo", "orpo", "simpo"])
def test_lengths_and_the_likelihood_of_the_chosen_answer(loss):
    """On the sums that the twin above has proven."""
    objective, config, params = prepared(loss)
    value, metrics, _ = measured(objective, config, params, BATCHES["dpo"], reference(config), gradient=False)
    logp, ref = (np.asarray(logps(config, p)) for p in (params, reference(config)))
    lengths = BATCHES["dpo"]["weights"][:3].sum(-1)
    given = type("Settings", (), SETTINGS[loss])
    wanted = np.mean(losses.LOSSES[loss](losses.Pairs(*logp.T, *ref.T, *lengths.T), given))
    nll = np.mean(-logp[:, 0] / lengths[:, 0])
    wanted += {"ipo": 0.5, "orpo": 1.5, "simpo": 0.0}[loss] * nll  # ORPO has it once by itself
    assert value == pytest.approx(float(wanted), rel=1e-4)
    assert loss == "simpo" or metrics["nll"] == pytest.approx(float(nll), rel=1e-4)
    rewards = BETA * (logp - ref if loss == "ipo" else logp / lengths)
    assert metrics["rewards/chosen"] == pytest.approx(float(rewards[:, 0].mean()), rel=1e-4, abs=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def logps(config, params):
    return plain_logps(config, params, {name: x[:3] for name, x in BATCHES["dpo"].items()})[0]


@pytest.mark.parametrize("adapter", [Adapter(), Adapter(rank=2, alpha=4.0)])
def test_at_first_the_policy_is_the_reference(adapter):
    """The loss is ln 2 and there is no margin; beside adapters the reference is no more than they are."""
    objective, config, _ = prepared("dpo")
    config = dataclasses.replace(config, adapter=adapter)
    params = jax.tree.map(lambda p: p + 0.05, parameters(config, 0, 3.0))  # adapters that do something
    frozen = nnx.filter_state(params, trainable(config))
    value, metrics, _ = measured(objective, config, params, BATCHES["dpo"], frozen, KEY, gradient=not adapter.rank)
    assert value == pytest.approx(np.log(2), abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert abs(metrics[name]) < 1e-6
    names = {path[-1] for path, _ in nnx.to_flat_state(frozen)}
    assert names == {"lora_a", "lora_b"} if adapter.rank else "embedding" in names


@pytest.mark.parametrize("loss", BATCHES)
def test_what_does_not_count_has_no_say(loss):
    """Neither labels that are masked nor rows that only fill up, of whatever ids."""
    batch = BATCHES[loss]
    other = {name: x.copy() for name, x in batch.items()}
    other["targets"] = np.where(batch["weights"] > 0, batch["targets"], 63 - batch["targets"])
    other["tokens"][-1], other["segment_ids"][-1] = 5, 1
    for name in {"margin", "desirable"} & other.keys():
        other[name][-1] = 1.0
    objective, config, params = prepared(loss)
    gradient = loss == "dpo"
    one, two = (measured(objective, config, params, given, reference(config), KEY, gradient) for given in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_pair_counts_the_same_in_any_slice():
    """What the halves add up to is what the whole does."""
    objective, config, params = prepared("dpo")
    batch = pair_batch(4)
    halves = [{name: (x.T * (np.arange(4) % 2 == part)).T.astype(x.dtype) for name, x in batch.items()} for part in (0, 1)]
    whole, *parts = (measured(objective, config, params, given, reference(config), KEY) for given in (batch, *halves))
    for found in (whole, *parts):
        del found[1]["entropy"]  # a mean over tokens, of which the halves have different numbers
    summed = jax.tree.map(lambda x, y: (x + y) / 2, *parts)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6), summed, whole)


@pytest.mark.slow
def test_routers_are_balanced_as_in_pretraining():
    """In training their losses come on top, a mean over the batch's tokens; in evaluation they do not."""
    moe = dict(num_experts=4, expert_dim=16, balance_loss=0.5)
    config = align_config(model=dict(mlp_pattern=("moe",), moe=moe), preference=SETTINGS["dpo"])
    objective, model_config = preference.objective(config), model_config_of(config)
    params, batch = parameters(model_config, 0, 3.0), BATCHES["dpo"]
    with_routers, without = (
        measured(objective, model_config, params, batch, reference(model_config), key, gradient=False)[0] for key in (KEY, None)
    )
    rows = [jnp.asarray(batch[name].reshape(-1, T)) for name in ("tokens", "segment_ids", "positions")]
    router = nnx.merge(skeleton(model_config)[0], params).hidden(Inputs(*rows)).router
    assert with_routers - without == pytest.approx(0.5 * float(router.balance) / batch["segment_ids"].sum(), rel=1e-3)
    assert with_routers - without > 0.1


def long_batch(B: int, length: int, vocab_size: int) -> dict[str, np.ndarray]:
    """B examples of two rows [length] without padding; the last two thirds of each are the answer."""
    tokens = np.random.default_rng(0).integers(1, vocab_size, (B, 2, length)).astype(np.int32)
    weights = np.zeros(tokens.shape, np.float32)
    weights[..., length // 3 : -1] = 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    batch = {"tokens": tokens, "targets": np.roll(tokens, -1, axis=2), "segment_ids": np.ones_like(tokens)}
    return batch | {"positions": positions, "weights": weights, "desirable": np.arange(B) % 2 * np.float32(1)}


@pytest.mark.slow
@pytest.mark.parametrize("loss, scan_layers, rank", [("dpo", False, 0), ("dpo", True, 8), ("kto", False, 8)])
def test_a_policy_that_is_its_reference_has_no_margin_in_bfloat16(loss, scan_layers, rank):
    """Nor has it where the compiler rounds otherwise in a pass whose gradient is taken, as at this width."""
    sizes = dict(embed_dim=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536, vocab_size=64)
    config = align_config(model=dict(sizes, scan_layers=scan_layers, remat="matmuls"), preference=dict(loss=loss))
    config.dtype, config.model.adapter.rank = "bfloat16", rank
    model_config = model_config_of(config)
    graph, params, objective = skeleton(model_config)[0], parameters(model_config), preference.objective(config)
    learns, rest = nnx.split_state(params, trainable(model_config), ...)

    @jax.jit
    def step(learns, frozen, batch):
        def of(learns):
            return objective.loss(nnx.merge(graph, nnx.merge_state(learns, rest)), batch, frozen, train=True, key=KEY)

        return jax.value_and_grad(of, has_aux=True)(learns)

    (total, sums), gradient = step(learns, learns, long_batch(2, 64, 64))
    values = {name: float(value) for name, (value, _) in sums.metrics.items()}
    assert values["rewards/chosen"] == values["rewards/rejected"] == values["rewards/margins"] == values.get("kl", 0.0) == 0.0
    assert np.isclose(float(total) / 2, np.log(2) if loss == "dpo" else 0.5, rtol=1e-6)
    assert any(np.asarray(x).any() for x in jax.tree.leaves(gradient))
