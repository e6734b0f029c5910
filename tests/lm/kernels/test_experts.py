"""Experts on the devices of an expert axis, in as many rounds as the routing needs, against the loop over experts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm.kernels.experts import WEIGHT_AXES, experts, experts_reference
from lm.parallel.mesh import make_mesh, spec
from tests.slow import all_but

B, T, D, E, F, K = 8, 64, 8, 8, 4, 2


def skewed():
    """Most tokens choose among the first experts; the fullest pair of devices needs two rounds and others one."""
    scores_BTE = jax.random.gumbel(jax.random.key(1), (B, T, E)) - 0.5 * jnp.arange(E)
    return jax.lax.top_k(scores_BTE, K)[1]


EVEN = (jnp.arange(B * T * K) % E).reshape(B, T, K)
ROUTINGS = {
    "even": EVEN,
    "skewed": skewed(),
    "all to one device": jnp.broadcast_to(jnp.asarray([7, 6]), (B, T, K)),
    "all of one device to another": EVEN.at[:1].set(jnp.asarray([2, 3])),
    "none": jnp.full((B, T, K), E),
    "some skipped": jnp.where(jnp.arange(T)[:, None] % 3 == 0, -1, skewed()).at[..., 1:, 1].set(E + 5),
}
MESHES = [{"data": 2, "expert": 4}, {"expert": 2, "fsdp": 2, "tensor": 2}, {"expert": 4, "context": 2}, {"expert": 8}]


def gradients(f, choice, x, weight, weights, r):
    def loss(x, weight, weights):
        y = f(x, choice, weight, weights)
        return jnp.sum(y * r), y

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, weight, weights)


def arrays(rows=B, length=T):
    shapes = (rows, length, D), (rows, length, K), (E, D, F), (E, D, F), (E, F, D), (rows, length, D)
    x, weight, gate, up, down, r = (jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(shapes))
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


def test_few_tokens_need_one_round():
    """As in decoding, where a device may hold one token."""
    x, weight, weights, r = arrays(length=1)
    choice, mesh = ROUTINGS["all to one device"][:, :1], make_mesh({"data": 2, "expert": 4})
    with jax.set_mesh(mesh):
        lowered = jax.jit(ours).lower(*placed(mesh, choice, x, weight, weights, r))
        found = lowered.compile()(*placed(mesh, choice, x, weight, weights, r))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(compiled_twin()(choice, x, weight, weights, r)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_no_array_has_room_for_the_worst_case():
    """The worst case is all tokens of 8 devices on one of them: 8 · 256 rows. Each pair has 80 places, 1.25 even shares."""
    mesh = make_mesh({"expert": 8})
    with jax.set_mesh(mesh):
        program = jax.jit(ours).lower(*placed(mesh, jnp.tile(EVEN, (1, 4, 1)), *arrays(length=4 * T))).compile().as_text()
    rows = [int(n) for n in re.findall(rf"f32\[(\d+),(?:{D}|{F})\]", program)]
    assert 8 * 80 <= max(rows) <= 8 * 80 + 128  # the product of a CPU adds a block of at most 128 rows
