"""Supervised fine-tuning: the loss is that of a plain twin, what is masked has no say, and noise is for training only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from lm.align import settings, sft
from lm.kernels.head import CrossEntropy
from lm.kernels.ops import cross_entropy
from lm.model.inputs import inputs_of
from lm.model.transformer import skeleton
from lm.parallel.mesh import RULES, make_mesh, spec
from lm.train.step import model_config_of
from tests.lm.align.batches import align_config, measured
from tests.lm.examples import packed_batch, parameters

KEY = jax.random.key(3)


@functools.cache
def prepared(loss: str = "nll", neftune_alpha: float = 0.0):
    """(objective, ModelConfig, parameters)."""
    config = align_config(sft=dict(loss=loss, neftune_alpha=neftune_alpha))
    model_config = model_config_of(config)
    return sft.objective(config), model_config, parameters(model_config, 0, 4.0)


@functools.cache
def conversations(seed: int = 0):
    """Packed rows of which every other stretch of a few targets is an assistant's."""
    batch = packed_batch(align_config(batch_size=6), seed)
    batch["weights"] = batch["weights"] * (np.arange(batch["weights"].shape[1]) // 3 % 2).astype(np.float32)
    return batch


def plain(config, params, batch, dft: bool):
    """(mean loss, {metric: value}), from whole logits."""
    targets, weights = jnp.asarray(batch["targets"]), batch["weights"]
    logits = nnx.merge(skeleton(config)[0], params)(inputs_of(batch))
    p_BTV = jax.nn.softmax(logits)
    p_BT = jnp.take_along_axis(p_BTV, targets[..., None], -1)[..., 0]
    each = {
        "entropy": -jnp.sum(p_BTV * jnp.log(p_BTV), -1),
        "mean_token_accuracy": jnp.argmax(logits, -1) == targets,
        "loss": -jnp.log(p_BT) * (jax.lax.stop_gradient(p_BT) if dft else 1.0),
    }
    if dft:
        each["nll"] = -jnp.log(p_BT)
    metrics = {name: jnp.sum(x * weights) / weights.sum() for name, x in each.items()}
    return metrics["loss"], metrics


@pytest.mark.parametrize("loss", ["nll", pytest.param("dft", marks=pytest.mark.slow)])
def test_as_a_plain_twin(loss):
    objective, config, params = prepared(loss)
    value, metrics, gradient = measured(objective, config, params, conversations(), key=KEY)
    twin = jax.value_and_grad(lambda params: plain(config, params, conversations(), loss == "dft"), has_aux=True)
    (wanted, wanted_metrics), wanted_gradient = jax.jit(twin)(params)
    assert value == pytest.approx(float(wanted), rel=1e-5)
    assert metrics == pytest.approx({name: float(x) for name, x in wanted_metrics.items()}, rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.max(jnp.abs(theirs))) + 1e-9)


@pytest.mark.parametrize("loss", settings.CHOICES["sft.loss"])
def test_evaluation_as_a_plain_twin(loss):
    objective, config, params = prepared(loss)
    value, metrics, _ = measured(objective, config, params, conversations(), gradient=False)
    twin = jax.jit(lambda params: plain(config, params, conversations(), loss == "dft")[1])
    assert metrics == pytest.approx({name: float(x) for name, x in twin(params).items()}, rel=1e-5)
    assert value == pytest.approx(metrics["loss"], rel=1e-6)


def test_the_head_with_dft():
    """The loss that dft takes of hidden states, and its gradient, in chunks and with the z-loss, which p does not weigh."""
    rng = np.random.default_rng(0)
    x, head, targets = rng.normal(size=(2, 6, 8)), rng.normal(size=(20, 8)), rng.integers(0, 20, (2, 6))
    x, head, weights = np.float32(x), np.float32(head), np.float32([[0, 1, 1, 0, 1, 1], [1, 0, 1, 1, 0, 1]])

    def plain(x, head):
        logits = 2 * jnp.tanh(x @ head.T / 2)
        logz = jax.nn.logsumexp(logits, -1)
        p = jnp.exp(jnp.take_along_axis(logits, targets[..., None], -1)[..., 0] - logz)
        objective = jnp.sum(weights * (-jax.lax.stop_gradient(p) * jnp.log(p) + 0.01 * logz**2))
        return objective, (-jnp.sum(weights * jnp.log(p)),)

    def ours(x, head):
        options = CrossEntropy(z_loss=0.01, softcap=2.0, chunk=2, dft=True, measured=True)
        objective, *sums = cross_entropy(x, head, targets, weights, options, dtype="float32")
        return objective, tuple(sums[:1])

    found, wanted = (jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(x, head) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


def test_what_is_masked_has_no_say():
    batch = conversations()
    other = batch | {"targets": np.where(batch["weights"] > 0, batch["targets"], 63 - batch["targets"])}
    assert (other["targets"] != batch["targets"]).sum() > 20
    one, two = (measured(*prepared(), given, key=KEY) for given in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_token_counts_the_same_in_any_slice():
    """The sums of the halves are those of the whole, what only fills up the batch adds nothing, and noise is the row's own."""
    batch = conversations()
    halves = [{name: np.where((np.arange(6) % 2 == part)[:, None], x, 0) for name, x in batch.items()} for part in (0, 1)]
    shares = [half["weights"].sum() / batch["weights"].sum() for half in halves]
    assert min(shares) > 0.1 and abs(shares[0] - 0.5) > 0.02
    for alpha in (0.0, 5.0):
        gradient = not alpha
        whole, *parts = (
            measured(*prepared("nll", alpha), given, key=KEY, gradient=gradient)[::2] for given in (batch, *halves)
        )
        summed = jax.tree.map(lambda *x: sum(share * y for share, y in zip(shares, x)), *parts)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), summed, whole)


def test_noise_is_for_training_only():
    batch = conversations()
    quiet = measured(*prepared(), batch, key=KEY)[0]
    noisy, again = (measured(*prepared("nll", 5.0), batch, key=jax.random.key(k), gradient=False)[0] for k in (3, 4))
    assert abs(quiet - noisy) > 1e-3 and again not in (quiet, noisy)
    evaluated = measured(*prepared("nll", 5.0), batch, gradient=False)[0]
    assert evaluated == measured(*prepared("nll", 0.0), batch, gradient=False)[0] == pytest.approx(quiet, rel=1e-6)


def test_the_size_of_noise():
    batch = conversations()
    lengths = np.asarray(jax.jit(sft.segment_lengths)(batch["segment_ids"]))
    for row, segments in enumerate(batch["segment_ids"]):
        np.testing.assert_array_equal(lengths[row], [np.sum(segments == segment) for segment in segments])
    make = jax.jit(lambda batch: sft.embedding_noise(KEY, batch, 32, 5.0))
    noise = np.asarray(make(batch))
    unit = noise / (5 / np.sqrt(lengths * 32))[..., None]
    assert np.abs(unit).max() <= 1 and unit.std() == pytest.approx(3**-0.5, rel=0.02)
    assert np.abs(unit.mean()) < 0.02
    # A row's noise is its own, wherever it stands.
    np.testing.assert_array_equal(make({name: x[::-1] for name, x in batch.items()}), noise[::-1])
    assert len({n.tobytes() for n in noise}) == len({r.tobytes() for r in batch["tokens"]})
    mesh = make_mesh({"fsdp": 2}, jax.devices()[:2])
    with jax.set_mesh(mesh):
        spread = {name: jax.device_put(x, NamedSharding(mesh, spec("batch", None))) for name, x in batch.items()}
        shared = make(spread)
        assert shared.sharding.spec[0] == RULES["batch"]
    np.testing.assert_array_equal(shared, noise)
