"""Models with layers that have a state get the same tokens in an engine as alone, however requests share its steps."""

import jax
import numpy as np
import pytest
from flax import nnx

from lm.errors import UserError
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import Request
from lm.infer.engine.room import Capacity
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.infer import plain
from tests.lm.model.recurrent_models import KINDS, model_of
from tests.slow import all_but

COUNT = 32


@pytest.fixture(scope="module", params=all_but(["mamba"], KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return model_of(kind)


def prompts() -> list[list[int]]:
    """Of unlike length, some with the same beginning."""
    rng = np.random.default_rng(0)
    some = [rng.integers(0, 96, n).tolist() for n in (3, 30, 1, 17, 22)]
    return [*some, some[1][:21] + [5, 6], some[1]]


@pytest.fixture(scope="module")
def alone(model):
    return plain.greedy(model, prompts(), COUNT)[0]


def greedy(engine: Engine, asked: list[list[int]]) -> list[list[int]]:
    try:
        return engine.generate_all([Request(tuple(prompt), COUNT, temperature=0) for prompt in asked])
    finally:
        engine.close()


def test_requests_together_get_what_each_gets_alone(model, alone):
    """Prompts are read in pieces; some have the same beginning; a second round comes to rows and blocks that were used."""
    assert len({token for row in alone for token in row}) > 8
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=100, page=4))
    again = engine.generate_all([Request(tuple(prompt), COUNT, temperature=0) for prompt in prompts()[::-1]])
    assert again[::-1] == alone
    assert greedy(engine, prompts()) == alone
    assert engine.stats().blocks_used == 0


def test_engines_of_one_model_may_differ_in_their_pages(model, alone):
    for capacity in (Capacity(pages=100), Capacity(pages=120), Capacity(pages=100, cache_dtype="bfloat16")):
        engine = Engine(model, None, capacity._replace(rows=4, budget=16, page=4))
        (found,) = greedy(engine, prompts()[:1])
        assert len(found) == COUNT and (capacity.cache_dtype or found == alone[0])


def test_preemption_and_packed_weights_change_nothing(model, alone):
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=24, page=4), packed="float32")
    assert greedy(engine, prompts()) == alone
    assert engine.stats().preemptions > 0


def test_a_request_has_the_same_bits_whoever_shares_its_steps(model):
    asked = [Request(tuple(prompt), 8, temperature=1.0, seed=n, logprobs=0) for n, prompt in enumerate(prompts())]
    engine = Engine(model, None, Capacity(rows=8, budget=16, pages=100, page=4), packed="float32")
    together = engine.answers(asked)
    apart = [engine.answers([one])[0] for one in asked]
    engine.close()
    assert together == apart


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}])
def test_meshes_give_the_same_tokens(model, alone, sizes):
    mesh = make_mesh(sizes)
    graph, params = nnx.split(model)
    with jax.set_mesh(mesh):
        split = nnx.merge(graph, jax.device_put(params, shardings(skeleton(model.config)[1], mesh)))
    engine = Engine(split, None, Capacity(rows=8, budget=32, pages=96, page=4), mesh=mesh)
    assert greedy(engine, prompts()) == alone


def test_guesses_are_refused(kind, model):
    with pytest.raises(UserError, match=f"speculate: .*{kind}"):
        Engine(model, None, Capacity(rows=4, budget=16, pages=100, page=4, drafts=2))
