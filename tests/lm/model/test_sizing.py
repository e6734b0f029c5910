"""What the skeleton says of a model, against published totals and sums by hand."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from configs.train import ladder
from lm.adapt.rebuild import arrays_of
from lm.config import ModelConfig
from lm.model import sizing
from lm.model.transformer import build, skeleton
from lm.train.step import model_config_of

SIZES = dict(vocab_size=64, num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48)
EXPERTS = dict(num_experts=8, top_k=2, expert_dim=16, shared_dim=24, balance_bias=True)
MOE = dict(mlp_pattern=("dense", "moe", "moe"), moe=EXPERTS)
MLA = dict(num_kv_heads=4, mla=dict(kv_rank=16, query_rank=24, rope_head_dim=8, value_head_dim=12))


def total(config, kind="total", mtp=True):
    return sum(count for part, count in sizing.parameters(config)[kind].items() if mtp or part != "mtp")


def published(name):
    config = importlib.import_module(f"configs.train.{name}").get_config()
    config.dtype = "bfloat16"  # whatever the processor
    return model_config_of(config)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2_124m", 124_439_808),
        ("gemma3_1b", 999_885_952),
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("mixtral_8x7b", 46_702_792_704),
        ("deepseek_v3", 671_026_404_352),
    ],
)
def test_published_sizes(name, count):
    assert total(published(name), mtp=False) == count


def test_parameters_that_a_token_uses():
    assert total(published("mixtral_8x7b"), "active") == 12_879_925_248  # "13 B"
    assert total(published("deepseek_v3"), "active", mtp=False) == pytest.approx(37e9, rel=0.02)  # "37 B"
    assert total(published("llama3_8b"), "active") == total(published("llama3_8b"))


@pytest.mark.parametrize("size", ladder.SIZES)
def test_the_ladder_is_named_by_its_sizes_and_trains_on_twenty_tokens_a_parameter(size):
    config = ladder.get_config(size)
    parameters = total(model_config_of(config))
    assert parameters == pytest.approx(1e6 * int(size[:-1]), rel=0.12)
    assert config.steps * config.batch_size * config.sequence_length == pytest.approx(20 * parameters, rel=0.05)


@pytest.mark.slow
def test_the_skeleton_is_that_of_what_is_built():
    """Though it draws no random numbers."""
    config = ModelConfig(**SIZES | MOE | MLA | dict(mtp_depth=1, score_head="reward", adapter={"rank": 2, "dora": True}))
    shapes, built = arrays_of(skeleton(config)[1]), arrays_of(jax.eval_shape(lambda: build(config, 0)))
    assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == {name: (x.shape, x.dtype) for name, x in built.items()}
    assert np.std(arrays_of(jax.jit(lambda: build(config, 0))())["embedding"]) > 0.01


def test_parameters_by_hand():
    # embedding and head 2·64·32; a layer: query and output 2·32·4·8, key and value 2·32·2·8, SwiGLU 3·32·48, norms 2·32
    assert total(ModelConfig(**SIZES)) == 4096 + 3 * (2048 + 1024 + 4608 + 64) + 32
    assert total(ModelConfig(**SIZES, tie_embeddings=True)) == 2048 + 3 * (2048 + 1024 + 4608 + 64) + 32


def test_parts_of_a_mixture_with_latent_attention_by_hand():
    counts = sizing.parameters(ModelConfig(**SIZES | MOE | MLA | dict(mtp_depth=1)))
    attention = 32 * 24 + 24 * 4 * 16 + 32 * 24 + 16 * 4 * 8 + 16 * 4 * 12 + 4 * 12 * 32
    norms = 2 * 32 + 24 + 16
    expert, shared, router = 3 * 32 * 16, 3 * 32 * 24, 32 * 8
    module = 64 * 32 + 3 * 32 + attention + norms
    assert counts["total"] == {
        "embedding": 2048,
        "attention": 3 * attention,
        "feed_forward": 4608,
        "experts": 2 * 8 * expert,
        "shared_expert": 2 * shared,
        "router": 2 * router,
        "norms": 3 * norms + 32,
        "streams": 0,
        "head": 2048,
        "score": 0,
        "mtp": module + 8 * expert + shared + router,
        "vision": 0,
        "audio": 0,
        "adapters": 0,
    }
    used = counts["total"] | {"experts": 2 * 2 * expert, "mtp": module + 2 * expert + shared + router}
    assert counts["active"] == used
    assert counts["trained"] == counts["total"]


def test_biases_and_the_gate_of_experts_are_theirs():
    moe = MOE["moe"] | dict(biases=True, shared_gate=True)
    plain, more = (sizing.parameters(ModelConfig(**SIZES | MOE | dict(moe=of))) for of in (MOE["moe"], moe))
    biases = 16 + 16 + 32  # of an expert
    added = {"experts": 2 * 8 * biases, "router": 2 * 8, "shared_expert": 2 * 32}
    assert more["total"] == plain["total"] | {name: plain["total"][name] + n for name, n in added.items()}
    used = added | {"experts": 2 * 2 * biases}
    assert more["active"] == plain["active"] | {name: plain["active"][name] + n for name, n in used.items()}


def test_flops_by_hand():
    # forward and backward: 6 FLOPs a parameter without the look-up table and the norms, and 6·L·T·H·K of causal attention
    untied, tied = ModelConfig(**SIZES), ModelConfig(**SIZES, tie_embeddings=True)
    weights = 2048 + 3 * (2048 + 1024 + 4608)
    expected = 6 * weights + 6 * 3 * 100 * 32
    assert sizing.flops_per_token(untied, 100) == expected
    assert sizing.flops_per_token(tied, 100) == expected  # the same products are made


def test_flops_of_a_mixture_with_latent_attention_by_hand():
    config = ModelConfig(**SIZES | MOE | MLA | dict(mtp_depth=2))
    costs, counts = sizing.flops(config, 100), sizing.parameters(config)["active"]
    for part in ("attention", "feed_forward", "experts", "shared_expert", "router", "head"):
        assert costs[part] == (2 * counts[part], 4 * counts[part]), part
    assert costs["attention_products"].forward == 5 * 100 * 4 * (16 + 12)  # two more layers; keys of 16, values of 12
    norms = 2 * (5 * 32 + 24 + 16)
    assert costs["mtp"].forward == 2 * (counts["mtp"] - norms) + 2 * 2 * counts["head"]  # the head is used by both modules too


def test_frozen_matrices_have_no_gradient_of_their_own():
    plain = ModelConfig(**SIZES)
    adapted = ModelConfig(**SIZES, adapter=dict(rank=4, targets=r"attention\..*"), quantization=dict(bits=4))
    costs, counts = sizing.flops(adapted, 100), sizing.parameters(adapted)
    adapters = 3 * 4 * 2 * ((32 + 32) + (32 + 16))  # A and B at query and output, and at key and value, of three layers
    assert counts["total"]["adapters"] == sum(counts["trained"].values()) == adapters
    assert counts["total"] == sizing.parameters(plain)["total"] | {"adapters": adapters}  # whatever they are stored as
    assert costs["adapters"] == (2 * adapters, 4 * adapters)
    for part in ("attention", "feed_forward", "head"):
        assert costs[part] == (2 * counts["total"][part], 2 * counts["total"][part]), part


def test_a_local_layer_is_charged_for_the_keys_it_sees():
    config = ModelConfig(**SIZES | dict(num_layers=2, attention_pattern=("local", "global"), window=16))
    seen = sum(min(t, 16) for t in range(100)) / 100  # as T/2 is to a global layer, where the key at hand counts half
    products = sizing.flops(config, 100)["attention_products"].forward
    assert products == pytest.approx(2 * 4 * 16 * (seen + 50), rel=0.01)
    chunks = dataclasses.replace(config, attention_pattern=("chunk", "global"))
    assert sizing.flops(chunks, 96)["attention_products"].forward == 2 * 4 * 16 * (8 + 48)
    wide = ModelConfig(**SIZES | dict(num_layers=2, attention_pattern=("local",), window=1000))
    assert sizing.flops_per_token(wide, 100) == sizing.flops_per_token(ModelConfig(**SIZES | dict(num_layers=2)), 100)


def test_cache_by_hand():
    # keys and values of 8 heads of 128 numbers in 32 layers; in int8 each head's vector has a bfloat16 scale
    assert sizing.cache_bytes_per_token(published("llama3_8b")) == {"global": 2 * 8 * 128 * 32 * 2, "local": 0}
    assert sizing.cache_bytes_per_token(published("llama3_8b"), "int8") == {"global": 2 * 8 * (128 + 2) * 32, "local": 0}
    # the latent and the key that turns, whatever the number of heads
    assert sizing.cache_bytes_per_token(published("deepseek_v3"))["global"] == (512 + 64) * 61 * 2
    # four global layers in 26
    assert sizing.cache_bytes_per_token(published("gemma3_1b")) == {"global": 4 * 1024, "local": 22 * 1024}
