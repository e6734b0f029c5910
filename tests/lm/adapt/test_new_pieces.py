"""New rows of embedding and head: means of old rows, on any mesh; all old logits stay."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.adapt.rebuild import arrays_of, with_pieces
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.adapt.models import TINY, TOKENS, logits
from tests.lm.examples import parameters

PARTS = [[3, 5], [7], [1, 2, 9]]


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_means_and_old_logits_stay(tied):
    config = dataclasses.replace(TINY, tie_embeddings=tied)
    params = parameters(config)
    new, grown = with_pieces(config, params, PARTS, first=62, rows=70)
    before, after = arrays_of(params), arrays_of(grown)
    for name in ["embedding"] if tied else ["embedding", "head"]:
        old_VD, new_VD = np.asarray(before[name]), np.asarray(after[name])
        np.testing.assert_array_equal(new_VD[:62], old_VD[:62])
        np.testing.assert_allclose(new_VD[62:65], [old_VD[ids].mean(0) for ids in PARTS], rtol=1e-6, atol=1e-7)
        assert new_VD.shape == (70, 32) and not new_VD[65:].any()
    tokens = np.minimum(TOKENS, 61)
    np.testing.assert_allclose(logits(new, grown, tokens)[..., :62], logits(config, params, tokens)[..., :62], atol=1e-6)


def test_eight_devices_give_the_same_rows():
    params = parameters(TINY)
    expected = arrays_of(with_pieces(TINY, params, PARTS, first=64, rows=72)[1])
    mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2, "expert": 1, "context": 1, "stage": 1})
    with jax.set_mesh(mesh):
        from lm.model.transformer import skeleton

        placed = jax.device_put(params, shardings(skeleton(TINY)[1], mesh))
        new, grown = with_pieces(TINY, placed, PARTS, first=64, rows=72)
        where = arrays_of(shardings(skeleton(new)[1], mesh))
        for name, array in arrays_of(grown).items():
            assert array.sharding.is_equivalent_to(where[name], array.ndim), name
            np.testing.assert_allclose(np.asarray(array), np.asarray(expected[name]), rtol=1e-6, atol=1e-7)
