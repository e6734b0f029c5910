"""Loops over chunks of time steps: any length will do, and no device waits for another in them."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm.align.logprobs import logprobs_of
from lm.config import ModelConfig
from lm.kernels.divergence import Distillation, divergence
from lm.kernels.head import CrossEntropy
from lm.kernels.ops import cross_entropy
from lm.kernels.reference import cross_entropy as cross_entropy_reference
from lm.parallel.mesh import make_mesh, spec
from tests.lm.kernels.draws import integers, normal, uniform
from tests.lm.kernels.programs import collectives_in_loops, scan_lengths
from tests.lm.kernels.twins import divergence_reference
from tests.slow import all_but
from tests.tpu import needs_libtpu, printed_by

D, V = 16, 64
CONFIG = ModelConfig(vocab_size=V, num_layers=1, embed_dim=D, num_heads=2, num_kv_heads=2, mlp_dim=16, dtype="float32")
MIXED = Distillation(kind="jsd", mix=0.5)


def by_cross_entropy(x, head, targets, weights):
    return cross_entropy(x, head, targets, weights, CrossEntropy(z_loss=0.01), dtype="float32")[0]


def by_divergence(x, head, targets, weights):
    return divergence(x, head, *teacher(x, head), targets, weights, MIXED, dtype="float32")[0]


def plain_divergence(x, head, targets, weights):
    return divergence_reference(x, head, *teacher(x, head), targets, weights, MIXED)[0]


def teacher(x, head):
    return jax.lax.stop_gradient((x[:, ::-1], 2 * head))


def by_logprobs(x, head, targets, weights):
    model = types.SimpleNamespace(config=CONFIG, head_VD=head, to_head=lambda x: x)
    logp, entropy = logprobs_of(model, x, targets)
    return -jnp.sum(weights * (logp + jax.lax.stop_gradient(entropy)))


def plain_logprobs(x, head, targets, weights):
    logp = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", x, head))
    entropy = jax.lax.stop_gradient(-jnp.sum(jnp.exp(logp) * logp, axis=-1))
    return -jnp.sum(weights * (jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0] + entropy))


LOSSES = {
    "cross-entropy": (by_cross_entropy, lambda *a: cross_entropy_reference(*a, CrossEntropy(0.01))[0]),
    "divergence": (by_divergence, plain_divergence),
    "logprobs": (by_logprobs, plain_logprobs),
}


def example(B, T):
    """x, head, targets, weights: more positions than a device's logits may be of."""
    weights = uniform(3, (B, T)) * (np.arange(T) % 3 > 0)
    return (normal(0, (B, T, D)), normal(1, (V, D)), integers(2, (B, T), V), weights)


def slopes(name, which=0):
    return jax.value_and_grad(LOSSES[name][which], argnums=(0, 1))


@pytest.mark.parametrize("name", LOSSES)
def test_a_prime_length_takes_no_more_chunks_than_its_neighbour(name):
    prime, neighbour = (jax.eval_shape(lambda T=T: example(64, T)) for T in (1021, 1024))
    assert scan_lengths(slopes(name), *prime) == scan_lengths(slopes(name), *neighbour)


@pytest.mark.parametrize("name", LOSSES)
def test_a_prime_length_gives_what_the_reference_gives(name):
    inputs = example(32, 131)  # three chunks of 44, the last filled up
    value, gradients = jax.jit(slopes(name))(*inputs)
    twin, twin_gradients = jax.jit(slopes(name, 1))(*inputs)
    np.testing.assert_allclose(value, twin, rtol=1e-5)
    for ours, theirs in zip(gradients, twin_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


SPREAD = list(itertools.product(LOSSES, (dict(data=2, fsdp=4), dict(fsdp=4, expert=2))))


@pytest.mark.parametrize("name, sizes", all_but([SPREAD[0], SPREAD[3]], SPREAD), ids=str)
def test_rows_on_several_devices_meet_after_the_loop(name, sizes):
    """131 time steps on each of eight devices in two chunks or more; the head's gradient is added up once."""
    inputs = example(256, 131)
    twin, twin_gradients = jax.jit(slopes(name, 1))(*inputs)
    mesh = make_mesh(sizes)
    axes = (("batch", None, None), ("vocab", "embed"), ("batch", None), ("batch", None))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, spec(*names))) for x, names in zip(inputs, axes, strict=True)]
        compiled = jax.jit(slopes(name)).lower(*placed).compile()
        value, gradients = compiled(*placed)
        assert " while(" in compiled.as_text()
        assert collectives_in_loops(compiled) == []
        assert gradients[-1].sharding.is_equivalent_to(placed[1].sharding, 2)
    np.testing.assert_allclose(value, twin, rtol=1e-5)
    for ours, theirs in zip(gradients, twin_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", all_but(["cross-entropy"], LOSSES))
def test_parts_of_sequences_on_several_devices_meet_after_the_loop(name):
    """136 time steps of a row on each of four devices; a loss does not depend on their order."""
    inputs, mesh = example(64, 544), make_mesh(dict(data=2, context=4))
    twin, twin_gradients = jax.jit(slopes(name, 1))(*inputs)
    axes = (("batch", "length", None), ("vocab", "embed"), ("batch", "length"), ("batch", "length"))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, spec(*names))) for x, names in zip(inputs, axes, strict=True)]
        compiled = jax.jit(slopes(name)).lower(*placed).compile()
        value, gradients = compiled(*placed)
        assert " while(" in compiled.as_text()
        assert collectives_in_loops(compiled) == []
        assert gradients[0].sharding.is_equivalent_to(placed[0].sharding, 3)
    np.testing.assert_allclose(value, twin, rtol=1e-5)
    for ours, theirs in zip(gradients, twin_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_with_a_split_vocabulary_the_gradient_of_the_head_stays_out_of_the_loop():
    """What the softmax sums over the tensor axis, [B, c], is all that is sent."""
    mesh, inputs = make_mesh(dict(data=2, fsdp=2, tensor=2)), example(256, 131)
    twin = jax.jit(slopes("cross-entropy", 1))(*inputs)
    axes = (("batch", None, None), ("vocab", "embed"), ("batch", None), ("batch", None))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, spec(*names))) for x, names in zip(inputs, axes, strict=True)]
        compiled = jax.jit(slopes("cross-entropy")).lower(*placed).compile()
        value, gradients = compiled(*placed)
        sent = collectives_in_loops(compiled)
        assert sent and not any(f"f32[{V // 2},{D}]" in line or f"f32[{V // 2},{D // 2}]" in line for line in sent)
    np.testing.assert_allclose(value, twin[0], rtol=1e-5)
    for ours, theirs in zip(gradients, twin[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


FOR_TPU = """
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from lm.kernels.head import CrossEntropy
from lm.kernels.ops import cross_entropy
from lm.parallel.mesh import make_mesh, spec
from lm.train.plan.program import Program, bytes_of

def array(shape, dtype, *axes):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec(*axes)))

mesh = make_mesh(dict(fsdp=-1), topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices)
with jax.set_mesh(mesh):
    gradient = jax.grad(lambda *a: cross_entropy(*a, CrossEntropy(), dtype="bfloat16")[0], argnums=(0, 1))
    states, rows = ("batch", None, None), ("batch", None)
    inputs = (array((64, 2048, 2048), jnp.bfloat16, *states), array((32768, 2048), jnp.float32, "vocab", "embed"),
              array((64, 2048), jnp.int32, *rows), array((64, 2048), jnp.float32, *rows))
    program = Program(jax.jit(gradient).lower(*inputs).compile().as_text())
    for times, _, instructions in program.schedule():
        for one in instructions:
            if one.kind == "reduce-scatter":
                print(times * bytes_of(one.shape))
"""


@pytest.mark.slow
@needs_libtpu
def test_a_tpu_program_adds_the_gradient_of_the_head_up_once():
    """Along one ring of the 4 x 4 chips, then along the other. The loop over blocks of the vocabulary adds up one at a time."""
    whole = 32768 * 2048 * 4
    assert sorted(map(int, printed_by(FOR_TPU).split())) == [whole // 16, whole // 4]
