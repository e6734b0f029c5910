"""Experts on the devices of an expert axis, in as many rounds as the routing needs, against the loop over experts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm.kernels.experts import WEIGHT_AXES
from lm.kernels.ops import experts
from lm.kernels.reference import experts as experts_reference
from lm.parallel.mesh import make_mesh, spec
from tests.lm.kernels.draws import normal
from tests.slow import all_but

B, T, D, E, F, K = 8, 64, 8, 8, 4, 2


def skewed():
    """Most tokens choose among the first experts; the fullest pair of devices needs two rounds and others one."""
    scores_BTE = np.random.default_rng(1).gumbel(size=(B, T, E)) - 0.5 * np.arange(E)
    return np.argsort(-scores_BTE, axis=-1)[..., :K].astype(np.int32)


def replaced(choice_BTK, at, by):
    choice_BTK = choice_BTK.copy()
    choice_BTK[at] = by
    return choice_BTK


EVEN = (np.arange(B * T * K, dtype=np.int32) % E).reshape(B, T, K)
SKIPPED = np.where(np.arange(T)[:, None] % 3 == 0, np.int32(-1), skewed())
ROUTINGS = {
    "even": EVEN,
    "skewed": skewed(),
    "all to one device": np.broadcast_to(np.asarray([7, 6], np.int32), (B, T, K)),
    "all of one device to another": replaced(EVEN, slice(1), [2, 3]),
    "none": np.full((B, T, K), E, np.int32),
    "some skipped": replaced(SKIPPED, (..., slice(1, None), 1), E + 5),
}
MESHES = [{"data": 2, "expert": 4}, {"expert": 2, "fsdp": 2, "tensor": 2}, {"expert": 4, "context": 2}, {"expert": 8}]


def gradients(f, choice, x, weight, weights, r):
    def loss(x, weight, weights):
        y = f(x, choice, weight, weights)
        return jnp.sum(y * r), y

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, weight, weights)


def arrays(rows=B, length=T):
    shapes = (rows, length, D), (rows, length, K), (E, D, F), (E, D, F), (E, F, D), (rows, length, D)
    x, weight, gate, up, down, r = (normal(n, shape) for n, shape in enumerate(shapes))
    return x, weight, {"gate": gate, "up": up, "down": down}, r


def placed(mesh, choice, x, weight, weights, r):
    rows = NamedSharding(mesh, spec("batch", "length"))
    there = {name: jax.device_put(w, NamedSharding(mesh, spec(*WEIGHT_AXES[name]))) for name, w in weights.items()}
    return *(jax.device_put(a, rows) for a in (choice, x, weight)), there, jax.device_put(r, rows)


def ours(choice, *arrays, dtype="float32"):
    return gradients(functools.partial(experts, activation=jax.nn.silu, dtype=dtype), choice, *arrays)


@functools.cache
def compiled_twin():
    return jax.jit(functools.partial(gradients, functools.partial(experts_reference, activation=jax.nn.silu)))


@pytest.mark.parametrize("sizes", all_but(MESHES[:1], MESHES))
def test_any_routing_gives_what_the_loop_over_experts_gives(sizes):
    mesh, compiled = make_mesh(sizes), jax.jit(ours)
    with jax.set_mesh(mesh):
        found = {name: compiled(*placed(mesh, choice, *arrays())) for name, choice in ROUTINGS.items()}
    for name, choice in ROUTINGS.items():
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(compiled_twin()(choice, *arrays())), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("sizes", all_but([{}], [{}, *MESHES[:2]]))
def test_biases_and_a_limit_give_what_the_loop_over_experts_gives(sizes):
    x, weight, weights, r = arrays()
    weights |= {"gate_bias": normal(7, (E, F)), "up_bias": normal(8, (E, F))}
    mesh = make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    how = {"activation": jax.nn.silu, "limit": 0.7}
    twin = functools.partial(gradients, functools.partial(experts_reference, **how))
    compute = functools.partial(gradients, functools.partial(experts, dtype="float32", **how))
    for name in ("skewed", "some skipped"):
        with jax.set_mesh(mesh):
            found = jax.jit(compute)(*placed(mesh, ROUTINGS[name], x, weight, weights, r))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(twin)(ROUTINGS[name], x, weight, weights, r))):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("sizes", all_but([{}], [{}, *MESHES[:2]]))
def test_weights_of_inputs_give_what_the_loop_over_experts_gives(sizes):
    x, weight, weights, r = arrays()
    mesh = make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    how = {"activation": jax.nn.silu, "weigh_inputs": True}
    twin = jax.jit(functools.partial(gradients, functools.partial(experts_reference, **how)))
    compute = functools.partial(gradients, functools.partial(experts, dtype="float32", **how))
    expected = twin(ROUTINGS["some skipped"], x, weight, weights, r)
    with jax.set_mesh(mesh):
        found = jax.jit(compute)(*placed(mesh, ROUTINGS["some skipped"], x, weight, weights, r))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_few_tokens_need_one_round():
    """As in decoding, where a device may hold one token."""
    x, weight, weights, r = arrays(length=1)
    choice, mesh = ROUTINGS["all to one device"][:, :1], make_mesh({"data": 2, "expert": 4})
    with jax.set_mesh(mesh):
        lowered = jax.jit(ours).lower(*placed(mesh, choice, x, weight, weights, r))
        found = lowered.compile()(*placed(mesh, choice, x, weight, weights, r))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(compiled_twin()(choice, x, weight, weights, r)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_no_array_has_room_for_the_worst_case():
    """The worst case is all tokens of 8 devices on one of them: 8 · 256 rows. Each pair has 80 places, 1.25 even shares."""
    mesh = make_mesh({"expert": 8})
    with jax.set_mesh(mesh):
        program = jax.jit(ours).lower(*placed(mesh, np.tile(EVEN, (1, 4, 1)), *arrays(length=4 * T))).compile().as_text()
    rows = [int(n) for n in re.findall(rf"f32\[(\d+),(?:{D}|{F})\]", program)]
    assert 8 * 80 <= max(rows) <= 8 * 80 + 128  # the product of a CPU adds a block of at most 128 rows
