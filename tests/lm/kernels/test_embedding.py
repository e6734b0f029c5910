"""Rows of an embedding table that is split over columns, rows or both, against the whole table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.ops import embedding
from lm.parallel.mesh import make_mesh, reshard
from tests.lm.kernels.draws import integers, normal
from tests.lm.kernels.programs import collectives
from tests.slow import all_but

V, D, B, T = 32, 16, 8, 6


MESHES = [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(data=8), dict(fsdp=2, tensor=2, expert=2)]


@pytest.mark.parametrize("sizes", all_but(MESHES[:2], MESHES), ids=str)
def test_values_and_gradient_equal_those_of_the_whole_table(sizes):
    table, weights, tokens = normal(0, (V, D)), normal(1, (B, T, D)), integers(2, (B, T), V)

    def loss(table, tokens, weights):
        x = embedding(table, tokens, jnp.float32)
        return jnp.sum(x * weights), x

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    wanted, expected = gradient(table, tokens, weights)
    np.testing.assert_array_equal(expected, np.asarray(table)[tokens])
    with jax.set_mesh(make_mesh(sizes)):
        placed = reshard(table, "vocab", "embed"), reshard(tokens, "batch", None), reshard(weights, "batch", None, None)
        found, x = gradient(*placed)
        assert found.sharding == placed[0].sharding
        program = gradient.lower(*placed).compile()
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    if sizes.get("fsdp"):
        gathered = [line for line in collectives(program) if " all-gather" in line]
        assert not any(f"[{V},{D}]" in line for line in gathered), "the table is gathered"


def test_the_gradient_is_added_up_in_float32():
    """A thousand rows of 1e-3: in bfloat16 the sum would stop growing."""
    tokens = jnp.zeros((1, 1000), jnp.int32)
    gradient = jax.grad(lambda table: jnp.sum(embedding(table, tokens, jnp.bfloat16).astype(jnp.float32) * 1e-3))(
        jnp.zeros((2, 4))
    )
    np.testing.assert_allclose(gradient[0], 1.0, rtol=5e-3)
