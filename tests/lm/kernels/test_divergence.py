"""Chunked divergence against its plain twin, value and gradients; and against TRL's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lm.kernels.divergence import Distillation, divergence
from lm.parallel.mesh import make_mesh, reshard
from tests.lm.kernels.draws import integers, normal, uniform
from tests.lm.kernels.twins import divergence_reference
from tests.slow import all_but

B, T, D, E, V = 4, 12, 8, 8, 50


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def example(weights="mixed"):
    """(x, head, teacher's x, its head, targets, weights): students and teachers that disagree."""
    weights_BT = {"zeros": jnp.zeros((B, T)), "mixed": uniform(5, (B, T)) * (np.arange(T) % 3 > 0)}[weights]
    shapes = ((B, T, D), (V, D), (B, T, E), (V, E))
    return (*(normal(n, shape) for n, shape in enumerate(shapes)), integers(4, (B, T), V), weights_BT)


@functools.cache
def slopes(function):
    """function(*args) -> the sums, and the gradients of the objective by x and head, scaled so that a lost cotangent shows."""

    def loss(x, head, *rest):
        sums = function(x, head, *rest)
        return 0.3 * sums.objective, sums

    found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    def both(*args):
        (_, sums), gradients = found(*args)
        return sums, gradients

    return both


@functools.cache
def chunked(settings, dtype="float32"):
    return functools.partial(divergence, d=dataclasses.replace(settings, chunk=4), dtype=dtype)


SETTINGS = [
    Distillation(kind="forward"),
    Distillation(kind="reverse"),
    Distillation(kind="jsd", beta=0.1),
    Distillation(kind="forward", mix=0.3, temperature=2.0),
    Distillation(kind="reverse", softcap=3.0, teacher_softcap=2.0, mix=0.5, temperature=0.7),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_float32_equals_the_plain_twin(settings):
    sums, gradients = slopes(chunked(settings))(*example())
    twin, twin_gradients = slopes(functools.partial(divergence_reference, d=settings))(*example())
    np.testing.assert_allclose(sums, twin, rtol=1e-5)
    for ours, theirs in zip(gradients, twin_gradients, strict=True):
        assert np.abs(theirs).max() > 1e-3
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, None])
def test_chunks_of_any_length_and_without_a_gradient(chunk):
    sums = jax.jit(functools.partial(divergence, d=dataclasses.replace(SETTINGS[2], chunk=chunk or 0), dtype="float32"))(
        *example()
    )
    np.testing.assert_allclose(sums, slopes(chunked(SETTINGS[2]))(*example())[0], rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=lambda d: d.kind)
def test_of_two_equals_there_is_nothing_to_learn(settings):
    x, head, _, _, targets, weights = example()
    sums, gradients = slopes(chunked(settings))(x, head, x, head, targets, weights)
    np.testing.assert_allclose([sums.objective, sums.divergence, sums.kl], 0.0, atol=1e-5)
    assert sums.agreement == pytest.approx(float(weights.sum()), rel=1e-6)
    assert all(np.abs(gradient).max() < 1e-6 for gradient in gradients)
    if settings.kind == "forward":  # to the bit
        assert sums.objective == 0 and not any(gradient.any() for gradient in gradients)


def test_positions_without_weight_count_for_nothing():
    sums, gradients = slopes(chunked(SETTINGS[3]))(*example("zeros"))
    assert not np.any(sums) and not any(gradient.any() for gradient in gradients)


def test_bfloat16_stays_near_the_twin_and_gives_float32_sums():
    *arrays, targets, weights = example()
    rounded = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in arrays]
    settings = SETTINGS[3]
    sums, gradients = slopes(chunked(settings, "bfloat16"))(*arrays, targets, weights)
    twin, twin_gradients = slopes(functools.partial(divergence_reference, d=settings))(*rounded, targets, weights)
    assert all(one.dtype == jnp.float32 for one in (*sums, *gradients))
    np.testing.assert_allclose(sums, twin, rtol=1e-4)
    for ours, theirs in zip(gradients, twin_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("settings", all_but(SETTINGS[2:3], SETTINGS[:3]), ids=["forward", "reverse", "jsd"])
def test_extreme_logits_stay_finite(settings):
    x, head, teacher, *rest = example()
    sums, gradients = slopes(chunked(settings))(1e3 * x, head, -1e3 * teacher, *rest)
    assert np.isfinite(sums).all() and all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.slow
def test_the_same_on_a_mesh():
    *arrays, targets, weights = example()
    arrays[1], arrays[3] = arrays[1][:48], arrays[3][:48]  # so that it can be split
    args = (*arrays, jnp.minimum(targets, 47), weights)

    loss = functools.partial(divergence, d=Distillation("jsd", mix=0.6, temperature=1.5), dtype="float32")
    alone, gradients = slopes(loss)(*args)
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        states, head, rows = ("batch", None, None), ("vocab", "embed"), ("batch", None)
        axes = (states, head, states, head, rows, rows)
        placed = [reshard(a, *logical) for a, logical in zip(args, axes, strict=True)]
        sums, on_mesh = slopes(loss)(*placed)
        assert jax.typeof(on_mesh[1]).sharding.spec == P("tensor", "fsdp")
    np.testing.assert_allclose(sums, alone, rtol=1e-5)
    for ours, theirs in zip(on_mesh, gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("jsd", 0.3)])
def test_as_trl_has_it(kind, beta):
    torch = pytest.importorskip("torch")
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    x, head, teacher, teacher_head, targets, _ = example()
    ones = jnp.ones((B, T))
    d = Distillation(kind, beta, temperature=1.7)
    sums = divergence(x, head, teacher, teacher_head, targets, ones, d, dtype="float32")
    logits = [torch.from_numpy(np.array(jnp.einsum("btd,vd->btv", *a))) for a in ((x, head), (teacher, teacher_head))]
    labels = torch.zeros((B, T), dtype=torch.long)
    expected = gkd.GKDTrainer.generalized_jsd_loss(*logits, labels=labels, beta=beta, temperature=1.7)
    np.testing.assert_allclose(sums.divergence / (B * T), expected, rtol=1e-5)
