"""Scores of shared and packed requests are those of one request at a time, whatever they are asked with."""

import random

import jax
import numpy as np
import pytest

from lm.evals.engine import likelihood
from lm.evals.engine import prefix_plan as trie
from lm.evals.engine.likelihood import Request, cut
from lm.parallel.mesh import make_mesh
from tests.lm.evals import tiny_models
from tests.lm.evals.engine.full_logits import reference

LENGTH = 96


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """There is more to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def scores(model, requests, **options):
    """The score of each request, None for one that is too long or empty."""
    scored = {}
    for part in likelihood.work(model, requests, **options):
        part.run(set(part.numbers), scored.update)
    return [scored.get(number) for number in range(len(requests))]


def some(rng: random.Random, low: int, high: int) -> tuple[int, ...]:
    return tuple(rng.randrange(16, 300) for _ in range(rng.randint(low, high)))


def questions(seed: int, contexts: int, shared: int = 0, choices=(1, 6)) -> list[Request]:
    """Contexts with four choices each, behind tokens that all have in common."""
    rng = random.Random(seed)
    begin = (2, *some(rng, shared, shared))
    asked = []
    for _ in range(contexts):
        context = (*begin, *some(rng, 1, 20))
        asked += [Request(context, some(rng, *choices)) for _ in range(4)]
    return asked


def awkward() -> list[Request]:
    """Choices that begin alike or are equal, a context that is another's begin, requests that do not fit."""
    a = (2, 40, 41, 42)
    long = some(random.Random(9), 300, 300)
    return [
        Request(a, (50, 51, 52)),
        Request(a, (50, 51)),
        Request(a, (50,)),
        Request(a, (50, 51, 53)),
        Request(a, (50, 51, 52)),
        Request((*a, 50), (51, 52)),
        Request((2,), (40,)),
        Request(long, (60, 61)),
        Request(long[:50], long[50:145]),
        Request(a, long[:LENGTH]),
        Request([2, 7], [8, 9]),
    ]


def assert_right(model, requests, found, every: int = 1) -> None:
    for request, scored in list(zip(requests, found, strict=True))[::every]:
        expected = reference(model, request, LENGTH)
        assert len(scored.logps) == len(request.continuation)
        np.testing.assert_allclose(scored.logps, expected.logps, atol=1e-5)
        np.testing.assert_array_equal(scored.greedy, expected.greedy)


def test_one_request_at_a_time_gives_the_same():
    model = tiny_models.model()
    requests = awkward() + questions(0, 6) + questions(1, 3, choices=(1, 1))
    assert_right(model, requests, scores(model, requests, max_length=LENGTH))


def test_logits_come_some_slots_at_a_time(monkeypatch):
    """However many slots are asked for: the last chunk is filled up."""
    monkeypatch.setattr(likelihood, "LOGITS", 20_000)
    model = tiny_models.model()
    requests = awkward() + questions(0, 2)
    assert_right(model, requests, scores(model, requests, max_length=LENGTH))


def test_prefixes_are_read_once(monkeypatch):
    """Two groups of questions with long beginnings of their own, of different lengths."""
    monkeypatch.setattr(trie, "GROUP", 16)
    model = tiny_models.model()
    requests = questions(2, 12, shared=40) + questions(3, 12, shared=55) + questions(4, 5)
    batches = trie.plan([r.context for r in requests], [r.continuation for r in requests], trie.Costs(32, shape=0, batch=512))
    waves = {id(batch.prefixes): batch.prefixes for batch in batches}
    assert sorted(len(prefix) for wave in waves.values() for prefix in wave) == [41, 56]
    read = sum(len(t.tokens) for batch in batches for row in batch.rows for t in row.tries)
    assert read < sum(len(r.context) for r in requests) / 4
    monkeypatch.setattr(likelihood, "Costs", lambda *a, **k: trie.Costs(*a, **k | {"shape": 0}))
    parts = list(likelihood.work(model, requests, max_length=LENGTH, batch_tokens=512))
    assert sum(part.tokens for part in parts) == read
    found = scores(model, requests, max_length=LENGTH, batch_tokens=512)
    assert_right(model, requests, found, every=5)
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        spread = scores(model, requests, max_length=LENGTH, batch_tokens=512)
    for one, other in zip(found, spread, strict=True):
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        dict(attention_pattern=("local", "global"), window=8, positions="learned", tie_embeddings=True, logit_softcap=5.0),
        dict(mlp_pattern=("dense", "moe"), moe=dict(num_experts=4, top_k=2, capacity_factor=0.5), scan_layers=False),
        dict(rope=dict(scaling="ntk", factor=4.0, original_positions=24)),
        dict(attention_pattern=("chunk", "global"), window=10),
    ],
    ids=["windows", "experts", "ntk", "chunks"],
)
def test_other_models(config, monkeypatch):
    monkeypatch.setattr(trie, "GROUP", 8)
    monkeypatch.setattr(likelihood, "Costs", lambda *a, **k: trie.Costs(*a, **k | {"shape": 0}))
    model = tiny_models.model(**config)
    requests = questions(5, 4) + (questions(6, 8, shared=24) if "rope" not in config else [])
    assert_right(model, requests, scores(model, requests, max_length=LENGTH, batch_tokens=256), every=3)


def test_order_batches_and_devices_change_nothing():
    model = tiny_models.model()
    requests = questions(7, 9) + awkward()
    expected = scores(model, requests, max_length=LENGTH)
    shuffled = list(range(len(requests)))
    random.Random(1).shuffle(shuffled)
    again = scores(model, [requests[i] for i in shuffled], max_length=LENGTH)
    for place, i in enumerate(shuffled):
        np.testing.assert_array_equal(again[place].logps, expected[i].logps)
    found = {"small batches": scores(model, requests, max_length=LENGTH, batch_tokens=128)}
    with jax.set_mesh(make_mesh({"data": 4, "fsdp": 2})):
        found["devices"] = scores(model, requests, max_length=LENGTH)
    for how, other in found.items():
        for a, b in zip(expected, other, strict=True):
            np.testing.assert_allclose(a.logps, b.logps, atol=1e-5, err_msg=how)
            np.testing.assert_array_equal(a.greedy, b.greedy, err_msg=how)


def test_what_does_not_fit_is_cut_from_the_left():
    assert cut(Request((1, 2, 3), (4, 5)), 4) == Request((1, 2, 3), (4, 5))
    assert cut(Request((1, 2, 3), (4, 5)), 3) == Request((2, 3), (4, 5))
    assert cut(Request((1, 2, 3), (4, 5)), 2) == Request((3,), (4, 5))
    assert cut(Request((1, 2, 3), (4, 5)), 1) is None
    assert cut(Request((1, 2), ()), 9) is None and cut(Request((), (1,)), 9) is None
    model = tiny_models.model()
    found = scores(model, [Request((2, 3), ()), Request((2, 30), (31,)), Request((2,), (9,) * 5)], max_length=4)
    assert found[0] is None and found[2] is None and len(found[1].logps) == 1


def test_rows_are_nearly_full():
    requests = questions(8, 300)
    batches = trie.plan([r.context for r in requests], [r.continuation for r in requests], trie.Costs(384, 10_000, 2048))
    read = sum(len(t.tokens) for batch in batches for row in batch.rows for t in row.tries)
    assert read > 0.9 * sum(batch.B * batch.T for batch in batches)
    assert len({batch[:5] for batch in batches}) == 1
    answered = sorted(n for batch in batches for row in batch.rows for t in row.tries for n in t.answers)
    assert answered == list(range(len(requests)))
