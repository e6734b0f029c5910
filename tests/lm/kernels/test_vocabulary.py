"""A head in blocks of its vocabulary, against the whole head."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels import vocabulary
from lm.kernels.head import CrossEntropy
from lm.kernels.logprobs import target_logprobs
from lm.kernels.ops import cross_entropy
from lm.parallel.mesh import make_mesh, reshard
from tests.lm.kernels.draws import integers, normal, uniform
from tests.lm.kernels.programs import collectives
from tests.slow import all_but

V, D, B, T = 1000, 16, 8, 6  # no multiple of a block of 128 rows
MESHES = [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(fsdp=2, expert=2, tensor=2)]


def example():
    return (normal(0, (B, T, D)), normal(1, (V, D)), integers(2, (B, T), V), uniform(3, (B, T)))


def placed(x, head, targets, weights):
    rows = (reshard(one, "batch", *[None] * (one.ndim - 1)) for one in (x, targets, weights))
    x, targets, weights = rows
    return x, reshard(head, "vocab", "embed"), targets, weights


def nll(x, head, targets, weights, **options):
    found = cross_entropy(x, head, targets, weights, CrossEntropy(**options), dtype="float32")
    return found[0], found


def logprob(x, head, targets, weights, **options):
    found = target_logprobs(x, head, targets, dtype="float32", **options)
    return jnp.sum(weights * found[0]), found


LOSSES = {
    "cross-entropy": (nll, dict(z_loss=0.01)),
    "cross-entropy, all options": (nll, dict(z_loss=0.01, softcap=3.0, dft=True, measured=True)),
    "log-probabilities": (logprob, dict(softcap=3.0, temperature=0.7)),
}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(vocabulary, "BLOCK_BYTES", 128 * D * 4)


CASES = list(itertools.product(LOSSES, MESHES))


@pytest.mark.parametrize("name, sizes", all_but([CASES[0], CASES[4], CASES[8]], CASES), ids=str)
def test_values_and_gradients_equal_those_of_the_whole_head(name, sizes, small_blocks):
    loss, options = LOSSES[name]
    gradient = jax.grad(lambda *a: loss(*a, **options), argnums=(0, 1), has_aux=True)
    (dx, dhead), found = jax.jit(gradient)(*example())
    with jax.set_mesh(make_mesh(sizes)):
        inputs = placed(*example())
        assert vocabulary.block_rows(inputs[1], "float32") == 128
        compiled = jax.jit(gradient).lower(*inputs).compile()
        (dx_split, dhead_split), found_split = compiled(*inputs)
        assert dhead_split.sharding.is_equivalent_to(inputs[1].sharding, 2)
        sent = "\n".join(collectives(compiled))
        assert f"[{V // sizes.get('tensor', 1)},{D}]" not in sent, "a head or its gradient is whole on a device"
    for one, other in zip(jax.tree.leaves(found_split), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx_split, dx, atol=1e-5)
    np.testing.assert_allclose(dhead_split, dhead, atol=1e-5)


def test_a_frozen_head_and_values_alone(small_blocks):
    x, head, targets, weights = example()
    expected, wanted = jax.jit(jax.value_and_grad(lambda x: nll(x, head, targets, weights)[0]))(x)
    with jax.set_mesh(make_mesh(dict(fsdp=8))):
        x, head, targets, weights = placed(x, head, targets, weights)
        found = jax.jit(jax.grad(lambda x: nll(x, head, targets, weights)[0]))(x)
        value = jax.jit(lambda x: nll(x, head, targets, weights)[0])(x)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_small_head_is_gathered_whole():
    with jax.set_mesh(make_mesh(dict(fsdp=8))):
        assert vocabulary.block_rows(placed(*example())[1], "float32") is None
