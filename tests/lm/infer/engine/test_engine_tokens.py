"""Requests that share steps, pages and prefixes get the tokens that each would get alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.config import LatentAttention, MixtureOfExperts, ModelConfig, Rope
from lm.errors import UserError
from lm.infer.engine import drafts as drafting
from lm.infer.engine.engine import Engine
from lm.infer.engine.open import open_engine
from lm.infer.engine.request import Request
from lm.infer.engine.room import Capacity
from lm.model import pages
from lm.model.inputs import Inputs
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.evals.tiny_models import published
from tests.lm.infer import plain
from tests.lm.weights import drawn as parameters
from tests.slow import all_but

BASE = dict(vocab_size=96, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, max_positions=256)
KINDS = {
    "plain": dict(tie_embeddings=True),
    "local": dict(attention_pattern=("local", "global"), window=7, attention_sinks=True, attention_softcap=5.0),
    "chunks": dict(attention_pattern=("chunk", "global"), window=7, rotary_pattern=("rotary", "none"), qk_norm="unit"),
    "latent": dict(num_kv_heads=4, mla=LatentAttention(kv_rank=16, rope_head_dim=8, value_head_dim=8)),
    "chosen keys": dict(
        num_kv_heads=4,
        mla=LatentAttention(
            kv_rank=16, query_rank=16, rope_head_dim=8, value_head_dim=8, index_topk=9, index_heads=8, index_head_dim=8
        ),
    ),
    "experts": dict(mlp_pattern=("moe",), moe=MixtureOfExperts(num_experts=4), positions="learned"),
    "values of tokens": dict(value_embeddings=1),
    "shared keys, streams": dict(
        num_layers=6,
        attention_pattern=("local", "global"),
        window=7,
        value_norm=True,
        shared_kv_layers=3,
        altup_streams=2,
        laurel_rank=4,
        layer_embed_dim=8,
        gate_sparsity=(0.5, 0.0),
    ),
    "ntk": dict(rope=Rope(scaling="ntk", factor=4.0, original_positions=24)),
    "longrope": dict(
        rope=Rope(
            scaling="longrope", factor=4.0, original_positions=24, short_factor=(1.0,) * 4, long_factor=(1.0, 2.0, 3.0, 4.0)
        )
    ),
}
COUNT = 12


def model_of(kind: str):
    config = ModelConfig(**BASE | KINDS[kind], dtype="float32")
    return nnx.merge(skeleton(config)[0], parameters(config, scale=4.0))


def prompts() -> list[list[int]]:
    """Some shorter and some longer than the original context, some with the same beginning."""
    rng = np.random.default_rng(0)
    some = [rng.integers(0, 96, n).tolist() for n in (3, 30, 1, 17, 22)]
    return [*some, some[1][:21] + [5, 6], some[1]]


@pytest.fixture(scope="module", params=all_but([kind for kind in KINDS if kind not in ("ntk", "plain")], KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return model_of(kind)


@pytest.fixture(scope="module")
def alone(kind, model):
    if kind == "ntk":
        return plain.greedy_with_cache(model, prompts(), COUNT)
    return plain.greedy(model, prompts(), COUNT)[0]


def greedy(engine) -> list[list[int]]:
    try:
        return engine.generate_all([Request(tuple(prompt), COUNT, temperature=0) for prompt in prompts()])
    finally:
        engine.close()


def test_requests_together_get_what_each_gets_alone(kind, model, alone):
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=100, page=4))
    assert greedy(engine) == alone
    stats = engine.stats()
    # Of prompts beyond the original context, dynamic NTK's keys depend on their length.
    assert stats.prefix_hits >= (0 if kind == "ntk" else 20)
    assert stats.blocks_used == stats.running == stats.waiting == 0
    assert stats.steps < sum(map(len, alone))
    assert stats.finished == {"length": len(alone)}


@pytest.mark.parametrize("packed", all_but(["float32"], ["float32", ""]))
@pytest.mark.parametrize("kind", ["chosen keys"], indirect=True)
def test_chosen_keys_have_the_log_probabilities_of_a_whole_pass(model, packed):
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=100, page=4), packed=packed)
    answers = engine.answers([Request(tuple(prompt), COUNT, temperature=0, logprobs=0) for prompt in prompts()])
    engine.close()
    tokens, logps = plain.greedy(model, prompts(), COUNT)
    assert [list(answer.tokens) for answer in answers] == tokens
    np.testing.assert_allclose([[x.chosen for x in answer.likely] for answer in answers], logps, atol=1e-5)


@pytest.mark.parametrize("packed", all_but(["int8"], ["float32", "bfloat16", "int8", "int4"]))
@pytest.mark.parametrize("kind", ["shared keys, streams"], indirect=True)
def test_packed_matrices_beside_the_layers_give_the_same_bits_alone(model, packed):
    engine = Engine(model, None, Capacity(rows=8, budget=16, pages=200, page=4), packed=packed)
    requests = [Request(tuple(prompt), 8, temperature=0.0, logprobs=0) for prompt in prompts()]
    together = engine.answers(requests)
    for request, answer in zip(requests, together, strict=True):
        engine.forget()
        assert engine.answers([request]) == [answer]
    engine.close()


@pytest.mark.parametrize("kind", all_but(["plain"], ["plain", "longrope"]), indirect=True)
def test_64_ragged_requests_at_a_time(model):
    rng, lengths = np.random.default_rng(1), (1, 4, 9, 18, 23, 31, 50)
    asked = [rng.integers(0, 96, lengths[n % len(lengths)]).tolist() for n in range(64)]
    counts = [1 + n % 10 for n in range(64)]
    engine = Engine(model, None, Capacity(rows=64, budget=64, pages=1200, page=4))
    found = engine.generate_all([Request(tuple(ids), n, temperature=0) for ids, n in zip(asked, counts, strict=True)])
    engine.close()
    alone, _ = plain.greedy(model, asked, max(counts))
    assert found == [tokens[:n] for tokens, n in zip(alone, counts, strict=True)]
    assert engine.stats().preemptions == 0


@pytest.mark.parametrize("kind", all_but(["plain", "longrope"], KINDS), indirect=True)
def test_guesses_and_preemption_change_nothing(kind, model, alone):
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=13, page=4, drafts=3))
    assert greedy(engine) == alone
    stats = engine.stats()
    assert stats.preemptions > 0 and stats.drafted > stats.accepted >= (kind == "plain")
    assert sum(stats.accepted_at.values()) == stats.accepted and stats.drafts <= stats.drafted


@pytest.mark.parametrize("kind", all_but(["plain", "experts"], KINDS), indirect=True)
def test_packed_weights_give_the_same_tokens(model, alone):
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=100, page=4), packed="float32")
    assert greedy(engine) == alone


@pytest.mark.slow
def test_samples_depend_on_the_request_alone():
    model = model_of("plain")
    requests = [
        Request((5, 6, 7), COUNT, temperature=1.0, seed=3),
        Request((5, 6, 7), COUNT, temperature=1.0, seed=4),
        Request((8, 9), COUNT, temperature=0.7, top_p=0.9, seed=3),
        Request((8, 9), COUNT, temperature=1.3, top_k=5, seed=2**40),
        Request((1,), COUNT, temperature=1.0, min_p=0.1, frequency_penalty=0.5),
    ]
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=100, page=4))
    together = engine.generate_all(requests)
    assert [engine.generate(request) for request in requests] == together
    engine.close()
    assert len({tuple(row) for row in together}) == len(requests)
    guessing = Engine(model, None, Capacity(rows=4, budget=16, pages=100, page=4, drafts=2))
    assert guessing.generate_all(requests) == together
    guessing.close()


@pytest.mark.parametrize("kind", all_but(["plain"], ["plain", "longrope"]), indirect=True)
def test_guesses_of_a_draft_model_change_nothing(alone, kind, model):
    same = dataclasses.replace(model.config, rope=Rope())  # without LongRoPE, it guesses the same as the model at first
    draft = nnx.merge(skeleton(same)[0], nnx.split(model)[1])
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=24, page=4, drafts=3), draft_model=draft)
    assert greedy(engine) == alone
    stats = engine.stats()
    assert stats.accepted > (0.8 if kind == "plain" else 0.1) * stats.drafted > 0
    sampling = [Request((5, 6, 7), COUNT, temperature=1.0, seed=seed) for seed in range(6)]
    engine, plain = (
        Engine(model, None, Capacity(rows=4, budget=16, pages=64, page=4, drafts=drafts), draft_model=other)
        for drafts, other in ((3, draft), (0, None))
    )
    assert engine.generate_all(sampling) == plain.generate_all(sampling)
    engine.close()
    plain.close()
    stats = engine.stats()
    assert stats.accepted > (0.8 if kind == "plain" else 0.1) * stats.drafted > 0


def ahead_of(model, ids: list[int], prompt: int) -> tuple[int, int]:
    """Return how many of the tokens after the prompt are guessed right, of how many, one at a time, by the pass of training."""
    tokens = np.zeros((1, plain.WIDTH), np.int32)
    tokens[0, : len(ids)] = ids
    guesses = guessed_two_on(model, tokens, (np.arange(plain.WIDTH) < len(ids)).astype(np.int32)[None])
    right = guessed = 0
    known = prompt + 1
    while known < len(ids) - 1:
        is_right = guesses[known - 2] == ids[known]
        right, guessed, known = right + int(is_right), guessed + 1, known + 1 + int(is_right)
    return right, guessed


@jax.jit
def guessed_two_on(model, tokens_1T, segments_1T):
    """Return for each token the guess of the one two places on."""
    positions_1T = jnp.arange(tokens_1T.shape[1])[None]
    hidden = model.hidden(Inputs(tokens_1T, segments_1T, positions_1T))
    (ahead,) = model.ahead(hidden.x_BTD, jnp.roll(tokens_1T, -1, axis=1), segments_1T, positions_1T)
    return jnp.argmax(model.logits(ahead.x_BTD)[0], axis=-1)


AHEAD = ["plain", "local", "latent", "experts"]  # kinds, with a module that looks ahead


def looking_ahead(kind: str):
    """Return a model with such a module, and requests to it."""
    config = ModelConfig(**BASE | KINDS[kind] | {"vocab_size": 8, "mtp_depth": 1}, dtype="float32")
    asked = [tuple(id % 8 for id in prompt) for prompt in prompts()]
    requests = [Request(prompt, COUNT, temperature=0) for prompt in asked]
    return nnx.merge(skeleton(config)[0], parameters(config, scale=4.0)), requests


@pytest.mark.parametrize("kind", all_but(["latent"], AHEAD), indirect=True)
def test_the_module_that_looks_ahead_guesses_as_in_training(kind, monkeypatch):
    forward = drafting.forward

    def checked(program, arrays, pages, tokens_B, table, *rest, **how):
        is_token_B = table.row_B >= 0
        assert not is_token_B[is_token_B.sum() :].any()  # attention to pages wants padding last
        return forward(program, arrays, pages, tokens_B, table, *rest, **how)

    monkeypatch.setattr(drafting, "forward", checked)
    model, requests = looking_ahead(kind)
    asked = [list(request.prompt) for request in requests]
    # Prompts are read in one step each, so that nothing is guessed before their last token is read.
    engine = Engine(model, None, Capacity(rows=4, budget=128, pages=100, page=4, drafts=1), draft_model=model)
    found = engine.generate_all(requests)
    engine.close()
    assert found == plain.greedy(model, asked, COUNT)[0]
    expected = [ahead_of(model, prompt + tokens, len(prompt)) for prompt, tokens in zip(asked, found, strict=True)]
    right, guessed = map(sum, zip(*expected, strict=True))
    assert (engine.stats().accepted, engine.stats().drafted) == (right, guessed)
    assert guessed > right > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", AHEAD)
def test_several_guesses_of_the_module_that_looks_ahead_change_nothing(kind):
    """Packed weights, draws, and so few pages that sequences are preempted."""
    model, requests = looking_ahead(kind)
    requests = [dataclasses.replace(one, temperature=n % 2, seed=n) for n, one in enumerate(requests)]
    tight, usual = (
        Engine(
            model, None, Capacity(rows=4, budget=16, pages=pages, page=4, drafts=drafts), draft_model=draft, packed="float32"
        )
        for pages, drafts, draft in ((13, 3, model), (100, 0, None))
    )
    assert tight.generate_all(requests) == usual.generate_all(requests)
    tight.close()
    usual.close()
    assert tight.stats().preemptions > 0 and tight.stats().accepted > 0


def test_guesses_go_on_after_a_step_that_failed(monkeypatch):
    config = ModelConfig(**BASE, mtp_depth=1, dtype="float32")
    model = nnx.merge(skeleton(config)[0], parameters(config, scale=4.0))
    engine = Engine(model, None, Capacity(rows=2, budget=16, pages=50, page=4, drafts=1), draft_model=model)
    request = Request((5, 6, 7), COUNT, temperature=0)
    expected = engine.generate(request)

    def failing(program, arrays, pages, *step, **how):
        for x in pages:
            x.delete()
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(drafting, "forward", failing)
        assert engine.answers([request])[0].finish == "error"
    assert engine.generate(request) == expected
    engine.close()


@pytest.mark.parametrize("indexer", all_but([{}], [{}, dict(query_rank=8, index_topk=5, index_heads=6, index_head_dim=8)]))
def test_speculate_names_how_tokens_are_guessed(tmp_path, indexer):
    """A workdir's module that looks ahead; a smaller model by its path; a model without such a module is refused."""
    (tmp_path / "ahead").mkdir()
    latent = LatentAttention(kv_rank=16, rope_head_dim=8, value_head_dim=8, **indexer)
    ahead, _ = published(tmp_path / "ahead", mtp_depth=1, num_kv_heads=4, mla=latent, rope=Rope(interleaved=True))
    usual, _ = published(tmp_path)
    request = Request((5, 6, 7), COUNT, temperature=0)
    for path, ways in ((ahead, ("", "mtp", str(usual))), (usual, ("", "ngram", str(usual)))):
        engines = [open_engine(path, Capacity(rows=2, context=64), speculate=way) for way in ways]
        first, *others = [engine.generate(request) for engine in engines]
        assert all(other == first for other in others)
        assert all(engine.stats().drafted > 0 for engine in engines[1:])
        for engine in engines:
            engine.close()
    with pytest.raises(UserError, match="speculate=mtp takes a model with model.mtp_depth"):
        open_engine(usual, speculate="mtp")


SIZES = {
    "data, fsdp, tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "data": {"data": 8},
    "stage, tensor": {"stage": 2, "tensor": 2, "fsdp": 2},
    "expert": {"expert": 2, "fsdp": 2, "tensor": 2},
}


def on_mesh(model, mesh):
    graph, params = nnx.split(model)
    with jax.set_mesh(mesh):
        return nnx.merge(graph, jax.device_put(params, shardings(skeleton(model.config)[1], mesh)))


@pytest.mark.parametrize("kind", all_but(["values of tokens"], ["plain", "values of tokens", "longrope"]), indirect=True)
@pytest.mark.parametrize("sizes", [{}, SIZES["data, fsdp, tensor"]], ids=("one device", "mesh"))
def test_one_pool_of_keys_and_values_changes_nothing(model, alone, sizes, monkeypatch):
    monkeypatch.setattr(pages, "combined_size", lambda *_: 128)  # as on a TPU; the plain twin takes the pool apart
    mesh = make_mesh(sizes) if sizes else None
    model = on_mesh(model, mesh) if mesh else model
    assert greedy(Engine(model, None, Capacity(rows=8, budget=32, pages=96, page=4), mesh=mesh)) == alone
    jax.clear_caches()  # what was traced with that size


MESHES = [(kind, name) for kind in KINDS for name in SIZES if name != "expert" or kind == "experts"]
FAST = [("local", "data"), ("latent", "stage, tensor"), ("experts", "expert")]


@pytest.mark.parametrize(("kind", "sizes"), all_but(FAST, MESHES), indirect=["kind"])
def test_models_on_meshes_give_the_same_tokens_and_log_probabilities(kind, model, alone, sizes):
    """Some requests are greedy and some draw. The model's own arrays are used, or a copy of them that is split into layers."""
    asked = [
        Request(tuple(prompt), COUNT, temperature=n % 2, top_p=1 - 0.05 * n, seed=n, logprobs=0)
        for n, prompt in enumerate(prompts())
    ]
    engine = Engine(model, None, Capacity(rows=8, budget=16, pages=100, page=4))
    expected = engine.answers(asked)
    engine.close()
    assert [list(answer.tokens) for answer in expected[::2]] == alone[::2]
    mesh = make_mesh(SIZES[sizes])
    split, in_place = on_mesh(model, mesh), sizes != "data"
    # Pages are so few that sequences are preempted.
    engine = Engine(split, None, Capacity(rows=8, budget=32, pages=96, page=4, drafts=2), mesh=mesh, in_place=in_place)
    found = engine.answers(asked)
    engine.close()
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose([x.chosen for x in one.likely], [x.chosen for x in other.likely], atol=1e-5)
