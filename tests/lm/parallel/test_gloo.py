"""Sums by an exchange are those of a reduce-scatter."""

import jax
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from lm.parallel.gloo import exchanged_and_summed


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("axis, size, groups", [("fsdp", 4, None), ("fsdp", 2, [[0, 2], [1, 3]]), (("data", "fsdp"), 8, None)])
def test_parts_of_the_sum(axis, size, groups, dimension, tiled, dtype):
    how = dict(scatter_dimension=dimension, axis_index_groups=groups, tiled=tiled)
    shape = [3, 3]
    shape[dimension] = size * 2 if tiled else size
    x = np.random.default_rng(0).integers(-9, 9, (8, *shape)).astype(dtype)

    def both(x):
        mine = exchanged_and_summed(x[0], axis_name=axis, axis_size=size, **how)
        return lax.psum_scatter(x[0], axis, **how)[None], mine[None]

    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    split = PartitionSpec(("data", "fsdp"))
    expected, found = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))(x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(expected, found)
