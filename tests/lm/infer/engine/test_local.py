"""The engine of a model of this process: tokens and log-probabilities of forward passes, and samples of the row alone."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from lm.adapt import lora
from lm.config import Adapter, LatentAttention, ModelConfig, Quantization
from lm.errors import UserError
from lm.infer.engine.local import Layout, LocalEngine, packs
from lm.infer.engine.request import Sampling
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.infer import plain
from tests.lm.weights import drawn as parameters
from tests.slow import all_but

CONFIG = ModelConfig(
    vocab_size=96, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, max_positions=256, dtype="float32"
)
LATENT = dataclasses.replace(CONFIG, num_kv_heads=4, mla=LatentAttention(kv_rank=16, rope_head_dim=8, value_head_dim=8))
HEADS = dataclasses.replace(CONFIG, tie_embeddings=True, score_head="value")
ADAPTERS = {"lora": Adapter(rank=3, alpha=8.0, targets=".*"), "dora": Adapter(rank=2, targets=".*", dora=True)}
PROMPTS = [list(range(5, 5 + n)) for n in (1, 20, 37, 21)]
STOPS = (11, 12, 13, 14)


def model_of(config=CONFIG, adapter: Adapter | None = None, bits: int = 0):
    params = parameters(config, scale=4.0)
    if adapter is None:
        return nnx.merge(skeleton(config)[0], params)
    if bits:
        from lm.adapt.quantize import quantize

        config, params = quantize(config, params, Quantization(bits=bits))
    config, params = lora.with_adapter(config, params, adapter, seed=1)

    def waved(x) -> jax.Array:
        return jax.device_put(np.asarray(x) + 0.1 * np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape))

    learnt = nnx.map_state(  # B and the magnitudes start at 0
        lambda path, x: x.replace(waved(x.get_value())) if path[-1] in ("lora_b", "magnitude") else x, params
    )
    return nnx.merge(skeleton(config)[0], learnt)


MODELS = {
    "plain": lambda: model_of(),
    "score head": lambda: model_of(HEADS),
    "lora": lambda: model_of(adapter=ADAPTERS["lora"]),
    "dora": lambda: model_of(adapter=ADAPTERS["dora"]),
    "latent lora": lambda: model_of(LATENT, ADAPTERS["lora"]),
    "lora on integers": lambda: model_of(adapter=ADAPTERS["lora"], bits=8),
}


ROOM = 1 << 30  # for a packed copy


@pytest.fixture
def engine():
    one = LocalEngine(None, ROOM, rows=4)
    yield one
    one.close()


@pytest.fixture
def in_place():
    one = LocalEngine(None, rows=4)
    yield one
    one.close()


@pytest.mark.parametrize("name", all_but(["plain", "lora on integers"], MODELS))
def test_greedy_tokens_and_log_probabilities_are_those_of_forward_passes(engine, in_place, name):
    model, sampling = MODELS[name](), Sampling(12, temperature=0.0, stop_ids=STOPS)
    tokens, logps = plain.greedy(model, PROMPTS, 12, STOPS)
    for one in (engine, in_place):
        drawn = one.draw(model, PROMPTS, sampling, Layout(2))
        assert drawn.tokens[::2] == drawn.tokens[1::2] == tokens
        assert drawn.ended[::2] == [row[-1] in STOPS for row in tokens]
        np.testing.assert_allclose(sum(drawn.logps[::2], []), sum(logps, []), atol=1e-4)
    assert len({tuple(row) for row in tokens}) > 1


@pytest.mark.parametrize("settings", all_but([{}, {"top_p": 0.8}], [{}, {"top_p": 0.8}, {"top_k": 5}]))
def test_log_probabilities_are_at_the_temperature_and_of_all_tokens(engine, settings):
    model = model_of()
    drawn = engine.draw(model, PROMPTS, Sampling(12, temperature=0.7, stop_ids=STOPS, seed=3, **settings), Layout(3))
    rows = np.zeros((len(drawn.tokens), 50), np.int32)  # what follows a sample has no effect on its logits
    for number, tokens in enumerate(drawn.tokens):
        row = PROMPTS[number // 3] + tokens
        rows[number, : len(row)] = row
    every = np.asarray(jax.jit(lambda rows: jax.nn.log_softmax(model(rows) / 0.7))(rows))
    for number, (tokens, logps) in enumerate(zip(drawn.tokens, drawn.logps, strict=True)):
        begin = len(PROMPTS[number // 3]) - 1
        expected = every[number, begin + np.arange(len(tokens)), np.asarray(tokens)]
        np.testing.assert_allclose(logps, expected, atol=1e-4)
    assert len({tuple(tokens) for tokens in drawn.tokens}) > len(PROMPTS)


def test_a_sample_depends_on_its_prompt_and_row_alone(engine):
    model, sampling = model_of(), Sampling(12, temperature=1.0, seed=5)
    drawn = engine.draw(model, PROMPTS, sampling, Layout(3))
    assert engine.draw(model, PROMPTS, sampling, Layout(3)) == drawn
    for number in (11, 0, 4):
        [tokens], [logps], _ = engine.draw(model, [PROMPTS[number // 3]], sampling, Layout(rows=[number]))
        assert tokens == drawn.tokens[number]
        np.testing.assert_allclose(logps, drawn.logps[number], atol=1e-5)
    assert engine.draw(model, PROMPTS, dataclasses.replace(sampling, seed=6), Layout(3)).tokens != drawn.tokens


def test_new_weights_take_the_place_of_the_old_ones(engine):
    first, second = model_of(), model_of()
    graph, params = nnx.split(second)
    second = nnx.merge(graph, jax.tree.map(lambda x: jax.device_put(np.float32(1.1) * np.asarray(x)), params))
    sampling = Sampling(12, temperature=1.0)
    before = engine.draw(first, PROMPTS, sampling, Layout(2))
    other = engine.draw(second, PROMPTS, sampling, Layout(2))
    assert other.tokens != before.tokens and engine.draw(first, PROMPTS, sampling, Layout(2)) == before
    alone = LocalEngine(None, ROOM, rows=4)
    assert alone.draw(second, PROMPTS, sampling, Layout(2)) == other
    alone.close()
    engine.close()  # it starts again
    assert engine.draw(first, PROMPTS, sampling, Layout(2)) == before


def test_copies_share_the_pages_of_their_prompt(engine):
    prompts = [[n, *range(1, 65)] for n in range(3)]
    model, sampling = model_of(), Sampling(4, temperature=1.0)
    engine.draw(model, prompts, sampling, Layout(8))
    stats = engine.using(model, 4, 69).stats()
    # The first copy may start in the step that reads the end of the last prompt.
    assert stats.prefix_hits >= (3 * 7 - 1) * 64 and stats.prompt_tokens <= 3 * (65 + 7) + 64


@pytest.mark.parametrize("room", [ROOM, 0], ids=["packed", "in place"])
@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one", "eight"])
def test_a_model_on_a_mesh(engine, room, sizes):
    model, sampling = model_of(adapter=ADAPTERS["lora"]), Sampling(8, temperature=1.0)
    expected = engine.draw(model, PROMPTS, sampling)
    graph, params = nnx.split(model)
    params = jax.tree.map(lambda x: jax.device_put(np.array(x)), params)  # other tests share them
    mesh, one = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))]), LocalEngine(None, room)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, shardings(params, mesh))
        for _ in range(2):
            found = one.draw(nnx.merge(graph, split), PROMPTS, sampling)
            assert found.tokens == expected.tokens
            split = jax.jit(lambda params: jax.tree.map(lambda x: x + 0, params), donate_argnums=0)(split)  # as a step does
    one.close()


def test_a_sequence_may_be_longer_than_the_model_was_trained_on(in_place):
    model = model_of(dataclasses.replace(CONFIG, max_positions=16))
    assert in_place.draw(model, PROMPTS, Sampling(12, temperature=0.0)).tokens == plain.greedy(model, PROMPTS, 12)[0]
    learned = dataclasses.replace(CONFIG, max_positions=16, positions="learned")
    with pytest.raises(UserError, match="49 tokens, the model has 16 positions"):
        in_place.draw(model_of(learned), PROMPTS, Sampling(12))


def test_logits_that_are_not_finite_are_named(engine, in_place):
    graph, params = nnx.split(model_of())
    faulty = nnx.merge(graph, jax.tree.map(lambda x: jax.device_put(np.full(x.shape, np.nan, np.float32)), params))
    for one in (engine, in_place):
        for model, sampling in ((faulty, Sampling(4)), (model_of(), Sampling(4, temperature=1e-38))):
            with pytest.raises(UserError, match="the logits of prompt 0"):
                one.draw(model, PROMPTS, sampling)


def test_a_copy_is_packed_where_it_fits():
    size = sum(x.size for x in jax.tree.leaves(skeleton(CONFIG)[1]))
    assert packs(CONFIG, 4 * size + 1) and not packs(CONFIG, 4 * size)
