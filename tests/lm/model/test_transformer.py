"""What a decoder must do whatever its weights: look back only, stay in its segment, and be compiled in any way."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.train import default, tiny
from lm.config import ModelConfig
from lm.model.transformer import build, empty_state, skeleton
from lm.train.step import token_loss
from tests.lm.examples import packed_batch, plain_batch, tiny_config, trainer_and_state

SIZES = dict(vocab_size=50, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, dtype="float32")


def model_of(config, seed=0, scale=5.0):
    """A model with matrices large enough that every part of it shows in the logits."""
    params = jax.tree.map(lambda p: p * scale if p.ndim > 1 else p, build(config, seed))
    return nnx.merge(skeleton(config)[0], params)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request):
    return model_of(ModelConfig(**SIZES | {"dtype": request.param}))


@pytest.fixture(scope="module")
def exact():
    return model_of(ModelConfig(**SIZES))


def tokens_of(seed, *shape):
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], shape)


def first_loss(config, rows=2):
    trainer, state = trainer_and_state(config)
    V = config.model.vocab_size
    batch = plain_batch(np.random.default_rng(0).integers(0, V, (rows, config.sequence_length + 1)))
    sums = jax.jit(trainer.evaluate)(state.params, batch, jnp.zeros(V))
    return float(sums["nll"] / sums["weight"])


@pytest.mark.parametrize("name", ["default", "tiny"])
@pytest.mark.parametrize("tied", [False, True])
def test_first_loss_of_the_configs_is_ln_v(name, tied):
    config = {"default": default, "tiny": tiny}[name].get_config()
    config.model.tie_embeddings = tied
    assert first_loss(config) == pytest.approx(math.log(config.model.vocab_size), rel=0.02)


@pytest.mark.parametrize("width", [32, 256, 1024])
@pytest.mark.parametrize("tied", [False, True])
def test_first_loss_is_ln_v_at_every_width(width, tied):
    config = tiny_config(vocab_size=2048, embed_dim=width, tie_embeddings=tied, num_layers=2)
    config.model.update(head_dim=width // 4, mlp_dim=2 * width)
    assert first_loss(config, rows=4) == pytest.approx(math.log(2048), rel=0.02)


def test_the_future_changes_nothing_before_it(model):
    tokens = tokens_of(0, 2, 24)
    changed = tokens.copy()
    changed[:, 15:] = (changed[:, 15:] + 1) % SIZES["vocab_size"]
    run = jax.jit(lambda tokens: model(tokens))
    before, after = np.asarray(run(tokens)), np.asarray(run(changed))
    np.testing.assert_array_equal(before[:, :15], after[:, :15])
    assert (before[:, 15:] != after[:, 15:]).any(axis=(0, 2)).all()


def test_the_past_changes_everything_after_it(exact):
    tokens = tokens_of(0, 2, 24)
    changed = tokens.copy()
    changed[:, 3] = (changed[:, 3] + 1) % SIZES["vocab_size"]
    assert (exact(tokens) != exact(changed)).any(axis=(0, 2))[3:].all()


def test_another_segment_changes_nothing(model):
    tokens = tokens_of(1, 1, 24)
    segments = np.repeat([[1, 2, 3, 0]], 6, axis=1)
    positions = np.tile(np.arange(6), 4)[None]
    run = jax.jit(lambda tokens: model(tokens, segments, positions))
    whole = np.asarray(run(tokens))
    for segment in (1, 2, 3, 0):  # 0 is padding
        changed = np.where(segments == segment, (tokens + 7) % SIZES["vocab_size"], tokens)
        differs = (np.asarray(run(changed)) != whole).any(axis=2)
        assert differs[segments == segment].all()
        assert not differs[segments != segment].any()


def test_packed_documents_have_the_logits_they_have_alone(exact):
    documents = [tokens_of(2 + n, n) for n in (5, 1, 9, 6)]
    packed = np.zeros((3, 1, 24), np.int32)
    start, places = 0, []
    for segment, document in enumerate(documents, start=1):
        place = slice(start, start + len(document))
        packed[:, 0, place] = document, np.full(len(document), segment), np.arange(len(document))
        places.append(place)
        start = place.stop
    logits = exact(*packed)
    for document, place in zip(documents, places, strict=True):
        np.testing.assert_allclose(logits[0, place], exact(document[None])[0], atol=1e-5, rtol=1e-5)


def test_packed_loss_is_the_sum_of_the_losses_alone():
    config = tiny_config()
    trainer, state = trainer_and_state(config)
    evaluate = jax.jit(trainer.evaluate)
    bytes_V = jnp.arange(config.model.vocab_size, dtype=jnp.float32)
    batch = packed_batch(config, seed=0)
    together = evaluate(state.params, batch, bytes_V)

    # Every document in a row of its own: the same function, nothing else in sight.
    alone = {name: [] for name in batch}
    for row in range(config.batch_size):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            own = batch["segment_ids"][row] == segment
            width = config.sequence_length - own.sum()
            for name, array in batch.items():
                alone[name].append(np.pad(array[row][own], (0, width)))
    apart = evaluate(state.params, {name: np.stack(rows) for name, rows in alone.items()}, bytes_V)
    assert len(alone["tokens"]) > config.batch_size
    for name, value in together.items():
        np.testing.assert_allclose(value, apart[name], rtol=1e-5)
    assert together["weight"] == batch["weights"].sum()
    assert together["bytes"] == (batch["weights"] * batch["targets"]).sum()  # token i stands for i bytes here


def test_padding_has_no_effect(exact):
    tokens = tokens_of(3, 2, 10)
    padded = np.pad(tokens, ((0, 0), (0, 14)), constant_values=9)
    segments = np.pad(np.ones_like(tokens), ((0, 0), (0, 14)))
    np.testing.assert_allclose(exact(padded, segments)[:, :10], exact(tokens), atol=1e-5, rtol=1e-5)
    assert np.isfinite(exact(padded, segments)).all()


def test_shifted_positions_keep_the_logits(exact):
    # Rotary positions are relative (Su et al. 2021): only differences count.
    tokens = tokens_of(4, 1, 12)
    shifted = exact(tokens, None, 100 + np.arange(12)[None])
    np.testing.assert_allclose(shifted, exact(tokens), atol=1e-3)
    stretched = exact(tokens, None, 2 * np.arange(12)[None])
    assert np.abs(stretched - exact(tokens)).max() > 1e-2


def test_grouped_queries_are_repeated_keys_and_values():
    config = ModelConfig(**SIZES)
    full = ModelConfig(**SIZES | {"num_kv_heads": config.num_heads})
    grouped = build(config, 0)
    grouped = jax.tree.map(lambda p: p * 5 if p.ndim > 1 else p, grouped)
    repeated = jax.tree.map(lambda p: p, grouped)
    for name in ("key", "value"):  # [L, D, G, K]: query heads 0…R−1 share the first
        weight = repeated["layers"]["attention"][name]
        weight.set_value(jnp.repeat(weight.get_value(), 2, axis=2))
    tokens = tokens_of(5, 2, 16)
    segments = np.repeat([[1] * 10 + [2] * 6], 2, axis=0)
    a = nnx.merge(skeleton(config)[0], grouped)(tokens, segments)
    b = nnx.merge(skeleton(full)[0], repeated)(tokens, segments)
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def compiled_plainly():
    return loss_and_gradient(scan_layers=True, remat="none")


def loss_and_gradient(**how):
    config = tiny_config(num_layers=3, **how)
    trainer, state = trainer_and_state(config)
    graph, _ = skeleton(ModelConfig(**config.model, dtype=config.dtype))
    batch = packed_batch(config, seed=1)

    def mean(params):
        return token_loss(graph, params, batch, z_loss=1e-3)[0] / batch["weights"].sum()

    loss, gradient = jax.jit(jax.value_and_grad(mean))(state.params)
    return [loss, *jax.tree.leaves(gradient)]


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ["none", "matmuls", "full"])
def test_how_it_is_compiled_changes_nothing(compiled_plainly, scan, remat):
    for a, b in zip(loss_and_gradient(scan_layers=scan, remat=remat), compiled_plainly, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


def test_cached_decoding_is_the_whole_forward(exact):
    """Prefill of rows with left padding, then token by token: the logits are those of one pass (law 8)."""
    lengths, total, width = (7, 3), 14, 8
    rows = tokens_of(6, 2, total)
    tokens, segments, positions = np.zeros((3, 2, width), np.int32)
    for row, n in enumerate(lengths):
        tokens[row, width - n :], segments[row, width - n :] = rows[row, :n], 1
        positions[row, width - n :] = np.arange(n)
    logits, state = exact(tokens, segments, positions, empty_state(exact.config, 2, 16))
    seen = [[logits[row, -1]] for row in range(2)]
    step = jax.jit(lambda *args: exact(*args))
    for i in range(5):
        at = [n + i for n in lengths]
        fed = np.stack([rows[row, n] for row, n in enumerate(at)])[:, None]
        logits, state = step(fed, np.ones((2, 1), np.int32), np.asarray(at, np.int32)[:, None], state)
        for row in range(2):
            seen[row].append(logits[row, 0])
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(np.stack(seen[row]), exact(rows[row : row + 1])[0, n - 1 : n + 5], atol=1e-4)
