"""The blueprint refuses what cannot be built, and counts its FLOPs as one does by hand."""

import jax
import pytest

from lm.config import ModelConfig, flops_per_token
from lm.errors import UserError
from lm.model.transformer import skeleton

SIZES = dict(vocab_size=64, num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48)


def num_params(config):
    return sum(x.size for x in jax.tree.leaves(skeleton(config)[1]))


def test_head_dim_defaults_to_an_equal_share():
    assert ModelConfig(**SIZES).head_dim == 8
    assert ModelConfig(**SIZES, head_dim=16).head_dim == 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_heads": 5, "num_kv_heads": 5}, "model.num_heads=5"),
        ({"num_kv_heads": 3}, "model.num_kv_heads=3"),
        ({"num_kv_heads": 0}, "model.num_kv_heads=0"),
        ({"num_layers": 0}, "model.num_layers=0"),
        ({"vocab_size": -1}, "model.vocab_size=-1"),
        ({"head_dim": 7}, "model.head_dim=7"),
        ({"num_heads": 0}, "model.num_heads=0"),
        ({"remat": "some"}, "model.remat='some'"),
        ({"dtype": "float16"}, "dtype='float16'"),
    ],
)
def test_what_cannot_be_built_is_named(change, named):
    with pytest.raises(UserError, match=named):
        ModelConfig(**SIZES | change)


def test_parameters_by_hand():
    # embedding and head 2·64·32; a layer: query and output 2·32·4·8, key and value 2·32·2·8, SwiGLU 3·32·48, norms 2·32
    assert num_params(ModelConfig(**SIZES)) == 4096 + 3 * (2048 + 1024 + 4608 + 64) + 32
    assert num_params(ModelConfig(**SIZES, tie_embeddings=True)) == 2048 + 3 * (2048 + 1024 + 4608 + 64) + 32


def test_flops_by_hand():
    # forward and backward: 6 FLOPs a parameter without the look-up table, and 6·L·T·H·K of causal attention
    untied, tied = ModelConfig(**SIZES), ModelConfig(**SIZES, tie_embeddings=True)
    weights = 2048 + 3 * (2048 + 1024 + 4608 + 64) + 32
    expected = 6 * weights + 6 * 3 * 100 * 32
    assert flops_per_token(untied, num_params(untied), 100) == expected
    assert flops_per_token(tied, num_params(tied), 100) == expected  # the same products are made
