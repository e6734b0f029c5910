"""Layers with a state: packed rows, pieces of a text, single tokens and devices give what a whole text alone gives."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.errors import UserError
from lm.evals.engine.likelihood import Request, work
from lm.model.cache import empty_state, fork
from lm.model.inputs import Inputs
from lm.model.states import state_bytes
from lm.model.transformer import skeleton
from lm.parallel.mesh import check_fit, make_mesh, place_rows, shardings
from tests.lm.model.recurrent_models import KINDS, config_of, model_of
from tests.slow import all_but

T = 40


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def texts(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 96, n, np.int32) for n in lengths]


def packed(rows: list[list[np.ndarray]], width: int) -> Inputs:
    """Return rows of texts one after the other, with segments, and positions that begin again in each."""
    arrays = np.zeros((3, len(rows), width), np.int32)
    for b, row in enumerate(rows):
        begin = 0
        for n, text in enumerate(row):
            arrays[:, b, begin : begin + len(text)] = text, np.full(len(text), n + 1), np.arange(len(text))
            begin += len(text)
    return Inputs(*arrays)


def objective(graph, params, inputs: Inputs):
    logits = nnx.merge(graph, params)(inputs)
    return jnp.sum(jnp.where(inputs.segments_BT[..., None] > 0, jnp.sin(logits), 0.0)), logits


@functools.partial(jax.jit, static_argnames="prefill")
def apply(model, *arguments, prefill=False):
    return model(*arguments, prefill=prefill)


def alone(model, text: np.ndarray) -> np.ndarray:
    """Return the logits of a text, in a row as long as all others, so that one program computes them."""
    return np.asarray(apply(model, packed([[text]], T)))[0, : len(text)]


value_and_grad = jax.jit(jax.value_and_grad(objective, argnums=1, has_aux=True), static_argnums=0)


def test_packed_texts_have_logits_and_gradients_that_they_have_alone(kind):
    graph, params = nnx.split(model_of(kind))
    some = texts(17, 1, 2, 20, 9)
    (whole, together), gradient = value_and_grad(graph, params, packed([some[:4], some[4:]], T))
    (apart, alone), expected = value_and_grad(graph, params, packed([[text] for text in some], T))
    assert float(whole) == pytest.approx(float(apart), rel=1e-5)
    assert np.std(alone) > 0.2
    flat = np.concatenate([together[0, :40], together[1, :9]])
    np.testing.assert_allclose(flat, np.concatenate([x[: len(text)] for x, text in zip(alone, some)]), atol=3e-5)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=3e-5 * max(1.0, np.abs(y).max()))


@pytest.mark.parametrize("scan", all_but([True], [True, False]))
def test_pieces_and_single_tokens_give_what_the_whole_text_gives(kind, scan):
    """The prompts are padded on the right, and then on the left; what follows is read three tokens and one token at a time."""
    model = model_of(kind, scan_layers=scan)
    rows = texts(26, 19, 24)
    expected = [np.asarray(apply(model, Inputs(text[None])))[0] for text in rows]
    for left in (False, True):
        prompts = [text[: n - 10] for text, n in zip(rows, map(len, rows))]
        inputs, begins = packed([[prompt] for prompt in prompts], 16), [16 - len(p) if left else 0 for p in prompts]
        inputs = Inputs(*[np.stack([np.roll(x, n) for x, n in zip(array, begins)]) for array in inputs[:3]])
        logits, state = apply(model, inputs, empty_state(model.config, 3, 16 + 10), prefill=True)
        found = [[x[n : n + len(p)]] for x, n, p in zip(np.asarray(logits), begins, prompts)]
        for begin, end in [(0, 3), (3, 6), *((n, n + 1) for n in range(6, 10))]:
            more = np.stack([text[len(text) - 10 :][begin:end] for text in rows])
            places = np.stack([len(text) - 10 + np.arange(begin, end, dtype=np.int32) for text in rows])
            logits, state = apply(model, Inputs(more, np.ones_like(more), places), state)
            for b, x in enumerate(np.asarray(logits)):
                found[b].append(x)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.concatenate(x), y, atol=2e-5)


def test_answers_continue_the_state_of_their_prompt(kind):
    model, (prompt, *answers) = model_of(kind), texts(11, 6, 6)
    _, state = apply(model, Inputs(prompt[None]), empty_state(model.config, 1, 11), prefill=True)
    after = np.stack(answers)
    places = np.broadcast_to(np.arange(11, 17, dtype=np.int32), after.shape)
    logits, _ = apply(model, Inputs(after, np.ones_like(after), places), fork(state, model.config, 2, 6))
    for answer, x in zip(answers, np.asarray(logits), strict=True):
        np.testing.assert_allclose(x, alone(model, np.concatenate((prompt, answer)))[11:], atol=2e-5)


def test_likelihoods_read_each_text_from_its_beginning(kind):
    model, (context, *endings) = model_of(kind), texts(9, 3, 3, 1, 5)
    requests = [Request(context, ending) for ending in [*endings, endings[0][:2], np.append(endings[0][:2], 5)]]
    found = {}
    for batch in work(model, requests, max_length=64):
        batch.run(set(batch.numbers), found.update)
    for n, (context, ending) in enumerate(requests):
        logps = jax.nn.log_softmax(alone(model, np.concatenate((context, ending))))
        expected = [logps[len(context) + i - 1, token] for i, token in enumerate(ending)]
        np.testing.assert_allclose(found[n].logps, expected, atol=1e-4)


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1}], ids=["eight", "one"])
@pytest.mark.parametrize("kind", all_but(["delta", "mamba"], KINDS), indirect=True)
def test_devices_change_nothing(kind, sizes):
    """Rows and heads are split; between blocks the tokens are."""
    graph, params = nnx.split(model_of(kind))
    some = texts(17, 2, 21, 40, 9, 30, 31)
    inputs = packed([some[:3], *([text] for text in some[3:])][:4], T)
    (value, logits), gradient = value_and_grad(graph, params, inputs)
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    config = config_of(kind)
    with jax.set_mesh(mesh):
        graph, abstract = skeleton(config)
        split = jax.device_put(params, shardings(abstract, mesh))
        (other, on_mesh), gradients = value_and_grad(graph, split, Inputs(*place_rows(*inputs[:3])))
    assert float(other) == pytest.approx(float(value), rel=1e-4)
    np.testing.assert_allclose(on_mesh, logits, atol=1e-4)
    for x, y in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * max(1.0, np.abs(y).max()))


@pytest.mark.parametrize("remat", all_but(["full"], ["none", "full"]))
@pytest.mark.parametrize("kind", all_but(["mamba"], KINDS), indirect=True)
def test_rematerialisation_changes_nothing(kind, remat):
    graph, params = nnx.split(model_of(kind))
    inputs = packed([texts(17, 12)], T)
    _, expected = value_and_grad(graph, params, inputs)
    config = dataclasses.replace(config_of(kind), remat=remat, scan_layers=remat == "full")
    _, gradient = value_and_grad(skeleton(config)[0], params, inputs)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(1.0, np.abs(y).max()))


def test_a_state_has_the_same_size_after_any_number_of_tokens(kind):
    config = config_of(kind, attention_pattern=(kind,))
    sizes = [
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(lambda n=n: empty_state(config, 1, n)).layers))
        for n in (1, 32_768)
    ]
    assert sizes[0] == sizes[1] == state_bytes(config) > 0


@pytest.mark.parametrize("axis", ["stage", "context"])
def test_meshes_that_split_sequences_or_layers_are_refused(kind, axis):
    with pytest.raises(UserError, match=f"mesh.{axis}=2 must be 1.*{kind}"):
        check_fit(make_mesh({axis: 2, "data": 4}), config_of(kind), 8, 1, 64)
