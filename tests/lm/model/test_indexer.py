"""An indexer chooses the keys of latent attention: by a plain loop, in packed rows, from a cache, on devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.config import LatentAttention, ModelConfig, Rope
from lm.convert.families import family_for
from lm.errors import UserError
from lm.kernels import ops
from lm.kernels.cpu.pages import Pages, Places
from lm.model import sizing
from lm.model.cache import empty_state, fork
from lm.model.indexer import Sought, chosen_slots, index_scores, largest
from lm.model.inputs import Inputs
from lm.model.linear import trainable
from lm.model.pages import empty_layers
from lm.model.transformer import skeleton
from lm.parallel.mesh import check_fit, make_mesh, place_rows, shardings
from tests.lm.model.test_recurrent import packed, texts
from tests.lm.train.test_meshes import run
from tests.lm.weights import drawn
from tests.slow import all_but

T, TOPK = 40, 6
MLA = LatentAttention(
    kv_rank=16, query_rank=24, rope_head_dim=8, value_head_dim=8, index_topk=TOPK, index_heads=6, index_head_dim=12
)
CONFIG = ModelConfig(
    vocab_size=96, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=4, mlp_dim=48, mla=MLA, dtype="float32", remat="none"
)
MODEL = nnx.merge(skeleton(CONFIG)[0], drawn(CONFIG, scale=8.0))


def changed(**of_mla) -> ModelConfig:
    return dataclasses.replace(CONFIG, mla=dataclasses.replace(MLA, **of_mla))


@jax.jit
def apply(model, *arguments):
    return model(*arguments)


@jax.jit
def begun(model, *arguments):
    return model(*arguments, prefill=True)


def alone(text: np.ndarray, model=MODEL) -> np.ndarray:
    return np.asarray(apply(model, packed([[text]], T)))[0, : len(text)]


def objective(graph, params, inputs: Inputs):
    logits = nnx.merge(graph, params)(inputs)
    return jnp.sum(jnp.where(inputs.segments_BT[..., None] > 0, jnp.sin(logits), 0.0)), logits


value_and_grad = jax.jit(jax.value_and_grad(objective, argnums=1, has_aux=True), static_argnums=0)


def test_the_keys_of_the_largest_scores_and_of_equal_ones_the_earlier():
    rng = np.random.default_rng(0)
    q, key = rng.standard_normal((2, 9, 3, 5), np.float32), rng.standard_normal((2, 9, 5), np.float32)
    weight, mask = (
        rng.standard_normal((2, 9, 3)).astype(np.float32),
        np.tril(np.ones((9, 9), bool)) & (rng.random((2, 9, 9)) < 0.8),
    )
    scores = np.asarray(index_scores(Sought(q, weight, 4), key))
    np.testing.assert_allclose(
        scores, np.einsum("bth,bths->bts", weight, np.maximum(np.einsum("bthk,bsk->bths", q, key), 0)), atol=1e-5
    )
    scores = np.round(scores)  # which makes many of them equal
    chosen = np.asarray(largest(jnp.asarray(scores), jnp.asarray(mask), 4))
    for b, t in np.ndindex(2, 9):
        seen = np.flatnonzero(mask[b, t])
        expected = sorted(seen, key=lambda s: (-scores[b, t, s], s))[:4]
        assert set(np.flatnonzero(chosen[b, t])) == set(expected)


def test_pages_give_the_chosen_keys_in_the_order_of_a_text():
    """Whole numbers, whose scores are exact and often equal. Two sequences in pages that lie in any order; padding between."""
    rng = np.random.default_rng(1)
    key, q = rng.integers(-2, 3, (2, 12, 5)).astype(np.float32), rng.integers(-2, 3, (2, 12, 3, 5)).astype(np.float32)
    weight, tables = rng.integers(-2, 3, (2, 12, 3)).astype(np.float32), rng.permutation(9)[:6].reshape(2, 3)
    pool = np.full((9, 4, 1, 5), np.nan, np.float32)
    pool[tables] = key.reshape(2, 3, 4, 1, 5)
    rows, places = np.array([0, 0, 1, -1, 1]), np.array([11, 2, 7, 0, 4])
    sought = Sought(q[rows, places][:, None], weight[rows, places][:, None], 4)
    found = chosen_slots(sought, Pages(jnp.asarray(pool)), Places(tables, rows, places))
    mask = np.broadcast_to(np.tril(np.ones((12, 12), bool)), (2, 12, 12))
    chosen = np.asarray(largest(index_scores(Sought(q, weight, 4), key), jnp.asarray(mask), 4))
    for b, (row, place) in enumerate(zip(rows, places)):
        assert found.rows_T[b] == (b if row >= 0 else -1)
        if row >= 0:
            slots = (tables[row][:, None] * 4 + np.arange(4)).reshape(-1)[np.flatnonzero(chosen[row, place])]
            np.testing.assert_array_equal(found.tables_RP[b][: found.places_T[b] + 1], slots)


def test_as_many_keys_as_there_are_is_the_attention_without_an_indexer():
    """To the bit where no key can be left out; within rounding where a mask of all keys is built."""
    dense, params = skeleton(changed(index_topk=0))[0], nnx.to_flat_state(nnx.split(MODEL)[1])
    without = nnx.merge(dense, nnx.from_flat_state([(path, x) for path, x in params if "indexer" not in path]))
    inputs = Inputs(np.stack(texts(T, T)))
    expected = apply(without, inputs)
    all_keys = nnx.merge(skeleton(changed(index_topk=T))[0], nnx.split(MODEL)[1])
    np.testing.assert_array_equal(apply(all_keys, inputs), expected)
    halves = packed([texts(T // 2, T // 2)], T)
    half = nnx.merge(skeleton(changed(index_topk=T // 2))[0], nnx.split(MODEL)[1])
    np.testing.assert_allclose(apply(half, halves), apply(without, halves), atol=2e-5)
    assert np.abs(apply(MODEL, inputs) - expected).max() > 0.1


@pytest.mark.parametrize("remat", all_but(["matmuls"], ["matmuls", "attention", "full"]))
def test_packed_texts_have_the_logits_and_gradients_that_they_have_alone(remat):
    (graph, params), some = nnx.split(MODEL), texts(17, 1, 2, 20, 9)
    (_, together), gradient = value_and_grad(
        skeleton(dataclasses.replace(CONFIG, remat=remat))[0], params, packed([some[:4], some[4:]], T)
    )
    (_, apart), expected = value_and_grad(graph, params, packed([[text] for text in some], T))
    assert np.std(apart) > 0.2
    flat = np.concatenate([together[0, :40], together[1, :9]])
    np.testing.assert_allclose(flat, np.concatenate([x[: len(text)] for x, text in zip(apart, some)]), atol=3e-5)
    of_all = zip(nnx.to_flat_state(gradient), nnx.to_flat_state(expected), strict=True)
    for (path, x), (_, y) in of_all:
        x, y = x.get_value(), y.get_value()
        assert np.any(y) == ("indexer" not in path)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * max(1.0, np.abs(y).max()))


def test_an_indexer_is_not_trained_and_costs_what_it_computes():
    taken = nnx.filterlib.to_predicate(trainable(CONFIG))
    flat = nnx.to_flat_state(skeleton(CONFIG)[1])
    assert {path for path, x in flat if not taken(path, x)} == {path for path, x in flat if "indexer" in path}
    few, all_keys = (sizing.flops(changed(index_topk=topk), T)["attention_products"] for topk in (TOPK, T))
    index = 2 * 6 * 12 * T  # of two layers
    products = 2 * 4 * (8 + 8 + 8) * 2
    assert all_keys.forward == products * T / 2 + index and all_keys.backward == 2 * products * T / 2
    assert few.forward == products * (TOPK - TOPK**2 / (2 * T)) + index


@pytest.mark.parametrize("scan", all_but([True], [True, False]))
def test_pieces_of_a_text_from_a_cache(scan):
    """Prompts of unlike length, padded on the left; what follows is read at once, and a token at a time."""
    model = nnx.merge(skeleton(dataclasses.replace(CONFIG, scan_layers=scan))[0], nnx.split(MODEL)[1])
    rows = texts(26, 19, 24)
    inputs, begins = packed([[text[:-10]] for text in rows], 16), [26 - len(text) for text in rows]
    inputs = Inputs(*[np.stack([np.roll(x, n) for x, n in zip(array, begins)]) for array in inputs[:3]])
    _, state = begun(model, inputs, empty_state(model.config, 3, 26))
    for begin, end in [(0, 4), *((n, n + 1) for n in range(4, 10))]:
        more = np.stack([text[len(text) - 10 :][begin:end] for text in rows])
        places = np.stack([len(text) - 10 + np.arange(begin, end, dtype=np.int32) for text in rows])
        logits, state = apply(model, Inputs(more, np.ones_like(more), places), state)
        for x, text in zip(np.asarray(logits), rows):
            np.testing.assert_allclose(x, alone(text)[len(text) - 10 :][begin:end], atol=5e-5)


def test_a_long_answer_and_answers_that_share_their_prompt():
    """More queries than a block of the cached attention, whose keys are chosen among those of the prompt too."""
    prompt, *answers = texts(11, 300, 300)
    _, state = begun(MODEL, Inputs(prompt[None]), empty_state(CONFIG, 1, 11))
    after = np.stack(answers)
    places = np.broadcast_to(np.arange(11, 311, dtype=np.int32), after.shape)
    logits, _ = apply(MODEL, Inputs(after, np.ones_like(after), places), fork(state, CONFIG, 2, 300))
    for answer, x in zip(answers, np.asarray(logits), strict=True):
        whole = apply(MODEL, Inputs(np.concatenate((prompt, answer))[None]))
        np.testing.assert_allclose(x, whole[0, 11:], atol=1e-4)


@pytest.mark.parametrize(
    "sizes", all_but([{"fsdp": 2, "tensor": 2, "data": 2}], [{"fsdp": 2, "tensor": 2, "data": 2}, {"tensor": 4, "data": 2}])
)
def test_devices_and_the_plain_twins_change_nothing(sizes, monkeypatch):
    (graph, params), some = nnx.split(MODEL), [[text] for text in texts(40, 31, 17, 40, 23, 40, 9, 12)]
    inputs = packed(some, T)
    (_, expected), gradient = value_and_grad(graph, params, inputs)
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, shardings(skeleton(CONFIG)[1], mesh))
        (_, logits), found = jax.jit(value_and_grad, static_argnums=0)(graph, split, Inputs(*place_rows(*inputs[:3])))
    real = inputs.segments_BT > 0
    np.testing.assert_allclose(np.asarray(logits)[real], np.asarray(expected)[real], atol=1e-4)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-3 * max(1.0, np.abs(y).max()))
    monkeypatch.setenv(ops.VARIABLE, "reference")
    (_, logits), _ = jax.jit(jax.value_and_grad(objective, argnums=1, has_aux=True), static_argnums=0)(graph, params, inputs)
    np.testing.assert_allclose(np.asarray(logits)[real], np.asarray(expected)[real], atol=1e-4)


def test_what_does_not_go_with_an_indexer_is_refused():
    with pytest.raises(UserError, match="mesh.context=2 must be 1: model.mla.index_topk"):
        check_fit(make_mesh({"context": 2, "data": 4}), CONFIG, 8, 1, T)
    with pytest.raises(UserError, match="cache_dtype=int8 would change which keys model.mla.index_topk=6"):
        empty_layers(CONFIG, 4, 4, "int8")
    assert not family_for(dataclasses.replace(CONFIG, rope=Rope(interleaved=True))).gguf


def test_training_on_devices_leaves_the_indexer_as_it_was():
    """Of four steps whose optimizer decays weights, on one device and split by stages and rows."""
    mla = dict(kv_rank=16, query_rank=8, rope_head_dim=4, value_head_dim=8, index_topk=6, index_heads=5, index_head_dim=8)
    model = dict(num_kv_heads=4, mla=mla)
    curves, states, _ = zip(*(run(sizes, 1, steps=4, **model) for sizes in ({}, {"stage": 2, "fsdp": 2, "tensor": 2})))
    np.testing.assert_allclose(*curves, rtol=1e-5)
    first = run({}, 1, steps=0, **model)[1]
    for state in states:
        for (path, x), (_, y) in zip(nnx.to_flat_state(state.params), nnx.to_flat_state(first.params), strict=True):
            assert np.array_equal(x.get_value(), y.get_value()) == ("indexer" in path), path
