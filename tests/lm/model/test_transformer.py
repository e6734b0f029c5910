"""What a decoder must do whatever its weights: look back only, stay in its segment, and be compiled in any way."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.train import default, tiny
from lm.config import LatentAttention, ModelConfig
from lm.model.cache import empty_state
from lm.model.inputs import Inputs
from lm.model.transformer import skeleton
from lm.train.step import model_config_of, token_loss
from tests.lm.examples import packed_batch, parameters, plain_batch, tiny_config, trainer_and_state
from tests.slow import all_but

SIZES = dict(vocab_size=50, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, dtype="float32")


T = 300  # more than two blocks of queries of the attention kernel


def model_of(config):
    """The forward as a compiled function, of matrices so large that every part of it shows in the logits."""
    graph = skeleton(config)[0]
    forward = jax.jit(lambda params, *args: nnx.merge(graph, params)(Inputs(*args[:3]), *args[3:]))
    return functools.partial(forward, parameters(config, scale=4.0))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request):
    return model_of(ModelConfig(**SIZES | {"dtype": request.param}))


@pytest.fixture(scope="module")
def exact():
    return model_of(ModelConfig(**SIZES))


def tokens_of(seed, *shape):
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], shape)


def other(tokens):
    return (tokens + 7) % SIZES["vocab_size"]


def first_loss(config, rows=2):
    trainer, state = trainer_and_state(config)
    V = config.model.vocab_size
    batch = plain_batch(np.random.default_rng(0).integers(0, V, (rows, config.sequence_length + 1)))
    sums = jax.jit(trainer.evaluate)(state.params, batch)
    return float(sums["objective"] / sums["weight"])


# Not default.py with a tied head: its layers write nothing at first, so that each token predicts itself.
@pytest.mark.parametrize("name, tied", all_but([("tiny", False)], [("tiny", False), ("tiny", True), ("default", False)]))
def test_first_loss_of_the_configs_is_ln_v(name, tied):
    config = {"default": default, "tiny": tiny}[name].get_config()
    config.model.tie_embeddings = tied
    assert first_loss(config) == pytest.approx(math.log(config.model.vocab_size), rel=0.02)


@pytest.mark.parametrize("width, tied", all_but([(64, True)], itertools.product((64, 1024), (False, True))))
def test_first_loss_is_ln_v_at_every_width(width, tied):
    config = tiny_config(vocab_size=2048, embed_dim=width, tie_embeddings=tied, head_dim=16, mlp_dim=2 * width)
    assert first_loss(config, rows=32) == pytest.approx(math.log(2048), rel=0.02)


def test_the_future_changes_nothing_before_it(model):
    tokens = tokens_of(0, 2, T)
    whole = np.asarray(model(tokens))
    for cut in (1, 100, 128, 170, T - 1):
        changed = tokens.copy()
        changed[:, cut:] = other(changed[:, cut:])
        logits = np.asarray(model(changed))
        np.testing.assert_array_equal(logits[:, :cut], whole[:, :cut])
        assert (logits[:, cut:] != whole[:, cut:]).any(axis=(0, 2)).all()


def test_the_past_reaches_everything_after_it(exact):
    tokens = tokens_of(0, 1, T)
    changed = tokens.copy()
    changed[:, 3] = other(changed[:, 3])
    assert (np.asarray(exact(tokens)) != np.asarray(exact(changed))).any(axis=2)[0, 3:].all()


def test_another_segment_changes_nothing(model):
    tokens = tokens_of(1, 1, T)
    segments = np.repeat([[1, 2, 3, 0]], T // 4, axis=1)
    positions = np.tile(np.arange(T // 4), 4)[None]
    whole = np.asarray(model(tokens, segments, positions))
    for segment in (1, 2, 3, 0):  # 0 is padding
        changed = np.where(segments == segment, other(tokens), tokens)
        differs = (np.asarray(model(changed, segments, positions)) != whole).any(axis=2)
        assert differs[segments == segment].all()
        assert not differs[segments != segment].any()


def test_packed_documents_have_the_logits_they_have_alone(exact):
    lengths = (100, 1, 150, 40)
    packed = np.zeros((3, 1, T), np.int32)
    alone = np.zeros((3, len(lengths), T), np.int32)
    places, start = [], 0
    for i, n in enumerate(lengths):
        place = slice(start, start + n)
        packed[:, 0, place] = tokens_of(2 + i, n), np.full(n, i + 1), np.arange(n)
        alone[:, i, :n] = packed[:, 0, place]
        places.append(place)
        start = place.stop
    together, apart = np.asarray(exact(*packed)), np.asarray(exact(*alone))
    assert np.abs(together).max() > 1
    for i, (n, place) in enumerate(zip(lengths, places, strict=True)):
        np.testing.assert_allclose(together[0, place], apart[i, :n], atol=1e-5, rtol=1e-5)


def test_packed_loss_is_the_sum_of_the_losses_alone():
    config = tiny_config()
    trainer, state = trainer_and_state(config)
    evaluate = jax.jit(trainer.evaluate)
    batch = packed_batch(config, seed=0)
    together = evaluate(state.params, batch)

    # Every document in a row of its own: the same function, nothing else in sight.
    alone = {name: [] for name in batch}
    for row in range(config.batch_size):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            own = batch["segment_ids"][row] == segment
            for name, array in batch.items():
                alone[name].append(np.pad(array[row][own], (0, config.sequence_length - own.sum())))
    apart = evaluate(state.params, {name: np.stack(rows) for name, rows in alone.items()})
    assert len(alone["tokens"]) > config.batch_size
    for value, one in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(value, one, rtol=1e-5)
    assert together["weight"] == batch["weights"].sum()


def test_padding_has_no_effect(exact):
    tokens = tokens_of(3, 2, 40)
    padded = np.pad(tokens, ((0, 0), (0, T - 40)), constant_values=9)
    logits = np.asarray(exact(padded, np.pad(np.ones_like(tokens), ((0, 0), (0, T - 40)))))
    np.testing.assert_allclose(logits[:, :40], exact(tokens), atol=1e-5, rtol=1e-5)
    assert np.isfinite(logits).all()


def test_only_differences_of_positions_count(exact):
    # Rotary positions are relative (Su et al. 2021).
    tokens, segments, positions = tokens_of(4, 1, 40), np.ones((1, 40), np.int32), np.arange(40)[None]
    whole = np.asarray(exact(tokens, segments, positions))
    np.testing.assert_allclose(exact(tokens, segments, positions + 100), whole, atol=1e-3)
    assert np.abs(exact(tokens, segments, 2 * positions) - whole).max() > 1e-2


def test_grouped_queries_are_repeated_keys_and_values():
    config = ModelConfig(**SIZES)
    full = ModelConfig(**SIZES | {"num_kv_heads": config.num_heads})
    grouped = parameters(config, scale=4.0)
    repeated = jax.tree.map(lambda p: p, grouped)
    for name in ("key", "value"):  # [L, D, G, K]: query heads 0…R−1 share the first
        weight = repeated["stacks"][0][0]["attention"][name]["weight"]
        weight.set_value(jnp.repeat(weight.get_value(), 2, axis=2))
    tokens = tokens_of(5, 2, 40)
    forward = jax.jit(lambda model: model(tokens))
    ours, twin = (forward(nnx.merge(skeleton(one)[0], params)) for one, params in ((config, grouped), (full, repeated)))
    np.testing.assert_allclose(ours, twin, atol=1e-5, rtol=1e-5)


MIXED = dict(  # blocks of two kinds twice and one left over; a router in every second layer
    num_layers=5,
    attention_pattern=("local", "global"),
    window=4,
    mlp_pattern=("dense", "moe"),
    moe=dict(num_experts=4, expert_dim=16),
)


STREAMS = dict(  # two giving layers, and blocks with embeddings of their own before and after them
    num_layers=8,
    attention_pattern=("local", "global"),
    window=4,
    shared_kv_layers=4,
    altup_streams=2,
    laurel_rank=4,
    layer_embed_dim=8,
    gate_sparsity=(0.5, 0.0),
)
LAYERS = {"alike": dict(num_layers=3), "mixed": MIXED, "streams": STREAMS}
WAYS = list(itertools.product(LAYERS, (True, False), ("none", "matmuls", "full")))
OFTEN = [("alike", False, "matmuls"), ("streams", True, "full")]


@functools.cache
def compiled_plainly(layers):
    return loss_and_gradient(LAYERS[layers], scan_layers=True, remat="none")


def loss_and_gradient(model, **how):
    config = tiny_config(**model)
    graph, _ = skeleton(ModelConfig(**{**config.model, **how}, dtype=config.dtype))
    batch = packed_batch(config, seed=1)

    def mean(params):
        return token_loss(nnx.merge(graph, params), batch, z_loss=1e-3)[0] / batch["weights"].sum()

    loss, gradient = jax.jit(jax.value_and_grad(mean))(parameters(model_config_of(config)))
    return [loss, *jax.tree.leaves(gradient)]


@pytest.mark.parametrize("layers, scan, remat", all_but(OFTEN, WAYS))
def test_how_it_is_compiled_changes_nothing(layers, scan, remat):
    found = loss_and_gradient(LAYERS[layers], scan_layers=scan, remat=remat)
    for a, b in zip(found, compiled_plainly(layers), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layers, scan", all_but([("alike", True)], itertools.product(LAYERS, (True, False))))
def test_the_last_layers_may_keep_more(layers, scan):
    found = loss_and_gradient(LAYERS[layers], scan_layers=scan, remat="full", remat_matmuls_last=1)
    for a, b in zip(found, compiled_plainly(layers), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


def test_layers_that_keep_more_are_computed_once():
    def flops(**how):
        config = ModelConfig(**SIZES | dict(scan_layers=False) | how)
        graph, params = skeleton(config)
        gradient = jax.grad(lambda params: nnx.merge(graph, params)(tokens_of(0, 2, 24)).sum())
        return jax.jit(gradient).lower(params).cost_analysis()["flops"]

    full, one, all_ = (flops(remat="full", remat_matmuls_last=layers) for layers in (0, 1, 9))
    matmuls = flops(remat="matmuls")
    assert full > one > all_ == matmuls
    np.testing.assert_allclose(full - one, (full - matmuls) / 2, rtol=1e-6)


@pytest.mark.parametrize("remat", all_but(["full"], ["matmuls", "full"]))
def test_a_loop_over_layers_keeps_bits_where_slices_of_bfloat16_are_converted(remat):
    """On a CPU: no array [layers, …] of activations is bfloat16, and the gradient is that of unrolled layers."""
    config = ModelConfig(**SIZES | dict(num_layers=5, dtype="bfloat16", remat=remat))
    graph, params = skeleton(config)[0], parameters(config)
    tokens = tokens_of(0, 2, 24)
    batch = dict(tokens=tokens, targets=tokens, segment_ids=tokens * 0 + 1, positions=tokens * 0 + jnp.arange(24))
    batch["weights"] = jnp.ones(tokens.shape)

    def loss(params, graph=graph):
        return token_loss(nnx.merge(graph, params), batch, z_loss=0.0)[0]

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    program = compiled.as_text()
    assert re.search(r"\bu16\[5,2,24,", program) and not re.search(r"\bb?f(16|32)\[5,2,24,", program)
    unrolled = skeleton(dataclasses.replace(config, scan_layers=False))[0]
    one_by_one = jax.jit(jax.grad(functools.partial(loss, graph=unrolled)))
    for a, b in zip(jax.tree.leaves(compiled(params)), jax.tree.leaves(one_by_one(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.05, atol=0.02 * float(np.abs(b).max()))


@pytest.mark.parametrize("kind", all_but(["local and global", "latent"], ["global", "local and global", "latent"]))
def test_no_mask_is_larger_than_a_block_of_queries(kind):
    """Of 1,024 tokens in training, in an empty cache and behind 1,024 others: 128 × keys at most, in whatever is traced."""
    length = 1024
    kinds = {
        "global": {},
        "local and global": dict(window=100, attention_pattern=("local", "global")),
        "latent": dict(num_kv_heads=4, mla=LatentAttention(kv_rank=16, rope_head_dim=4)),
    }
    config = ModelConfig(**SIZES | kinds[kind])
    graph, params = skeleton(config)
    tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)

    def train(params, tokens):
        batch = dict(tokens=tokens, targets=tokens, segment_ids=tokens, positions=tokens, weights=tokens.astype(jnp.float32))
        return jax.grad(lambda params: token_loss(nnx.merge(graph, params), batch, z_loss=0.0)[0])(params)

    def generate(params, tokens):
        model = nnx.merge(graph, params)
        first = model.hidden(Inputs(tokens, tokens, tokens), empty_state(config, 2, 2 * length), prefill=True)
        return model.hidden(Inputs(tokens, tokens, tokens), first.memory).x_BTD

    for f, keys in ((train, length), (generate, 2 * length)):
        shapes = re.findall(r"\bbool\[([\d,]+,\d+)\]", str(jax.make_jaxpr(f)(params, tokens)))
        assert shapes and max(math.prod(map(int, shape.split(",")[-2:])) for shape in shapes) <= 128 * keys
