"""Log-probabilities in chunks against whole logits, and the sampler's against the trainer's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.align.logprobs import reference_model
from lm.align.preference import answers_under
from lm.config import Adapter, ModelConfig
from lm.infer.engine.local import LocalEngine
from lm.infer.engine.request import Sampling
from lm.kernels import head
from lm.kernels.logprobs import target_logprobs
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.align.batches import token_logprobs
from tests.lm.examples import parameters
from tests.lm.kernels.twins import logprobs_reference

MIXED = dict(data=2, fsdp=2, tensor=2)

CONFIG = ModelConfig(
    vocab_size=400, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, dtype="float32", logit_softcap=20.0
)
PROMPTS = [[5], [30, 40, 50], list(range(60, 83)), [2, 300], [7]]
DRAW = Sampling(stop_ids=(17, 20, 33), max_new_tokens=12, temperature=0.7, seed=3)


@pytest.fixture(scope="module")
def params():
    return parameters(CONFIG, scale=4.0)


@pytest.fixture(scope="module")
def model(params):
    return nnx.merge(skeleton(CONFIG)[0], params)


def draw(model, sampling):
    engine = LocalEngine(None)
    try:
        return engine.draw(model, PROMPTS, sampling)
    finally:
        engine.close()


@pytest.fixture(scope="module")
def drawn(model):
    return draw(model, DRAW)


def batch_of(rows, T=40):
    tokens, segments = np.zeros((2, len(rows), T + 1), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], segments[i, : len(row)] = row, 1
    positions = np.tile(np.arange(T, dtype=np.int32), (len(rows), 1))
    return dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], segment_ids=segments[:, :-1], positions=positions)


def test_chunks_give_what_whole_logits_give(params, monkeypatch):
    graph, _ = skeleton(CONFIG)
    batch = batch_of([(prompt * 2)[:40] for prompt in PROMPTS])
    weights = np.random.default_rng(0).normal(size=batch["tokens"].shape)
    monkeypatch.setattr(head, "CHUNK_TOKENS", 50)
    assert head.chunk_of(*weights.shape) == 10

    def both(function):
        def loss(params):
            logp, entropy = function(nnx.merge(graph, params), batch, 0.7)
            return jnp.sum(weights * logp), (logp, entropy)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (_, ours), gradient = both(token_logprobs)
    (_, twins), twin_gradient = both(logprobs_reference)
    for one, twin in zip(ours, twins, strict=True):
        np.testing.assert_allclose(one, twin, atol=1e-5)
    for one, twin in zip(jax.tree.leaves(gradient), jax.tree.leaves(twin_gradient), strict=True):
        np.testing.assert_allclose(one, twin, atol=1e-4 * float(jnp.abs(twin).max()))


def test_positions_that_are_not_used_change_nothing_and_are_not_computed():
    """Chunks without a used position: NaN there does not spread, and x and head get the gradients of the others."""
    x, head = (
        jnp.asarray(np.random.default_rng(n).normal(size=shape), jnp.float32) for n, shape in enumerate(((2, 12, 8), (30, 8)))
    )
    targets = jnp.asarray(np.random.default_rng(2).integers(0, 30, (2, 12)))
    used = jnp.zeros((2, 12), bool).at[0, 5:9].set(True).at[1, 4:6].set(True)
    broken = jnp.where(jnp.arange(12)[None, :, None] < 4, jnp.nan, x)

    def loss(x, head, **how):
        logp, entropy = target_logprobs(x, head, targets, dtype="float32", temperature=0.7, chunk=4, **how)
        return jnp.sum(jnp.where(used, logp, 0.0)), jnp.where(used, entropy, 0.0)

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    for ours, twin in zip(jax.tree.leaves(grad(broken, head, used_BT=used)), jax.tree.leaves(grad(x, head)), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-6, atol=1e-7)
    assert np.isnan(jax.tree.leaves(grad(broken, head))[2]).any()


def test_a_frozen_head_gets_no_gradient():
    x, head, targets = jnp.ones((1, 4, 8)), jnp.ones((30, 8)), jnp.zeros((1, 4), jnp.int32)

    def products(argnums):
        loss = lambda x, head: target_logprobs(x, head, targets, dtype="float32")[0].sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss, argnums))(x, head)).count("dot_general")

    assert products(0) + 1 == products((0, 1))


def test_sampler_and_trainer_agree(model, drawn):
    rows = [prompt + tokens for prompt, tokens in zip(PROMPTS, drawn.tokens, strict=True)]
    logp, _ = jax.jit(token_logprobs, static_argnums=2)(model, batch_of(rows), DRAW.temperature)
    for row, prompt, logps in zip(np.asarray(logp), PROMPTS, drawn.logps, strict=True):
        assert len(logps) > 0
        np.testing.assert_allclose(row[len(prompt) - 1 : len(prompt) - 1 + len(logps)], logps, atol=1e-4)


def test_a_row_says_whether_it_ended(model, drawn):
    plain = draw(model, dataclasses.replace(DRAW, stop_ids=(drawn.tokens[1][4],)))
    assert plain.ended[1] and plain.tokens[1] == drawn.tokens[1][: drawn.tokens[1].index(drawn.tokens[1][4]) + 1]
    assert all(ended == (row[-1] == drawn.tokens[1][4]) for row, ended in zip(plain.tokens, plain.ended, strict=True))
    assert all(len(row) == len(logps) for row, logps in zip(plain.tokens, plain.logps, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [MIXED, dict(data=8)])
def test_a_mesh_draws_what_one_device_draws(params, drawn, sizes):
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, shardings(params, mesh))
        many = draw(nnx.merge(skeleton(CONFIG)[0], spread), DRAW)
    assert many.tokens == drawn.tokens
    for one, other in zip(many.logps, drawn.logps, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_of_pairs_only_the_answers_count(model):
    flat = batch_of([[1, 2, 3, 4, 5], [1, 2, 6, 7], [9, 8, 7, 6], [9, 8, 5]], T=6)
    weights = np.zeros((4, 6), np.float32)
    weights[:, 1:3] = 1
    pair = {name: x.reshape(2, 2, 6) for name, x in (flat | {"weights": weights}).items()}
    both = jax.jit(lambda model: (answers_under(model, pair)[:2], token_logprobs(model, flat)))
    (logp, lengths), (token_logp, _) = both(model)
    np.testing.assert_allclose(logp, (token_logp * weights).sum(1).reshape(2, 2), rtol=1e-5)
    np.testing.assert_array_equal(lengths, 2)


def test_a_reference_beside_adapters_is_the_base_and_costs_only_them():
    config = ModelConfig(**{**CONFIG.to_dict(), "adapter": Adapter(rank=2, targets=".*")})
    graph, _ = skeleton(config)
    start = parameters(config, scale=1.0)
    frozen = nnx.filter_state(start, trainable(config))
    assert sum(x.size for x in jax.tree.leaves(frozen)) < 0.2 * sum(x.size for x in jax.tree.leaves(start))
    moved = jax.tree.map(lambda x: x, start)
    adapters, rest = nnx.split_state(moved, trainable(config), ...)
    moved = nnx.merge_state(jax.tree.map(lambda x: x + 0.1, adapters), rest)
    tokens = np.arange(8)[None]
    logits = jax.jit(lambda params: nnx.merge(graph, params)(tokens))
    found = jax.jit(lambda params, frozen: reference_model(nnx.merge(graph, params), frozen)(tokens))(moved, frozen)
    np.testing.assert_array_equal(found, logits(start))
    assert np.abs(logits(moved) - logits(start)).max() > 1e-2
