"""Models with layers that have a state get the same tokens in an engine as alone, however requests share its steps."""

import jax
import numpy as np
import psutil
import pytest
from flax import nnx

from lm.errors import UserError
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import Event, Request
from lm.infer.engine.room import Capacity, empty_pages
from lm.model.pages import page_bytes
from lm.model.states import state_bytes
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.infer import plain
from tests.lm.model.recurrent_models import KINDS, config_of, model_of
from tests.lm.weights import drawn
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
    assert engine.stats().blocks_used == 0 and engine.stats().prefix_hits > 0


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


def answered(engine: Engine, prompt: list[int], count: int = 8) -> tuple[Event, int]:
    """Return the answer with its log-probabilities, and how many tokens were found in the prefix cache."""
    before = engine.stats().prefix_hits
    (answer,) = engine.answers([Request(tuple(prompt), count, temperature=1.0, seed=7, logprobs=0)])
    return answer, engine.stats().prefix_hits - before


@pytest.mark.parametrize("budget", [5, 64])  # pieces of prompts end within blocks, or between them
def test_a_prefix_that_is_known_gives_the_bits_of_a_prompt_that_is_read(model, budget):
    """A system prompt of 22 tokens and three users, copies of a prompt, and the next turn of a chat; blocks of 4 tokens."""
    rng = np.random.default_rng(1)
    system, *users = (rng.integers(0, 96, n).tolist() for n in (22, 9, 10, 11))
    capacity = Capacity(rows=4, budget=budget, pages=200, page=4)
    engine, fresh = (Engine(model, None, capacity, packed="float32") for _ in range(2))

    def same(prompt: list[int]) -> tuple[list[int], int]:
        fresh.forget()
        (alone, none), (found, hits) = answered(fresh, prompt), answered(engine, prompt)
        assert found == alone and none == 0
        return [*prompt, *found.tokens], hits

    first, hits = same(system + users[0])
    assert hits == 0
    assert same(system + users[1])[1] == 0  # reads it all, and keeps the state where the known blocks end
    assert same(system + users[2])[1] == 20
    assert same(system + users[0])[1] == 28  # the last full block that leaves a token to be read
    assert same([*first, *users[1]])[1] == 36  # all but the last token of the answer was computed, 38 tokens
    for one in (engine, fresh):
        one.close()


def test_snapshots_are_bounded_and_the_longest_unused_is_given_away(model):
    rng = np.random.default_rng(2)
    asked = [rng.integers(0, 96, 18).tolist() for _ in range(3)]
    engine = Engine(model, None, Capacity(rows=1, budget=8, pages=100, page=4, snapshots=2))
    found = [answered(engine, asked[n], 1)[1] for n in (0, 1, 0, 2, 0, 1)]
    engine.close()
    assert found == [0, 0, 16, 0, 16, 0]


def test_a_snapshot_goes_with_its_block(model):
    rng = np.random.default_rng(3)
    asked = [rng.integers(0, 96, 18).tolist() for _ in range(3)]
    engine = Engine(model, None, Capacity(rows=1, budget=8, pages=10, page=4, snapshots=9))
    found = [answered(engine, asked[n], 1)[1] for n in (0, 0, 1, 2, 0)]
    engine.close()
    assert found == [0, 16, 0, 0, 0]


def test_copies_of_a_prompt_read_it_once(model):
    prompt = np.random.default_rng(4).integers(0, 96, 41).tolist()
    engine = Engine(model, None, Capacity(rows=2, budget=64, pages=100, page=4))
    requests = [Request(tuple(prompt), 9, temperature=1.0, seed=seed) for seed in range(8)]
    found = engine.answers(requests)
    stats = engine.stats()
    engine.close()
    assert len({one.tokens for one in found}) == 8
    assert stats.prefix_hits == 40 * 6  # two start at once


@pytest.mark.parametrize("pattern", [("{}",), ("{}", "{}", "global")])
def test_only_attention_takes_more_memory_for_a_longer_text(kind, pattern):
    config = config_of(kind, attention_pattern=tuple(name.format(kind) for name in pattern))
    capacity = Capacity(rows=2, page=16, snapshots=3)
    sizes = [sum(x.nbytes for x in empty_pages(config, capacity, tokens // 16)) for tokens in (16, 32_768)]
    page = page_bytes(config, 16)
    assert (page > 0) == ("global" in pattern)
    assert sizes == [5 * state_bytes(config) + count * page for count in (1, 2048)]


@pytest.mark.slow
def test_a_text_of_32768_tokens_is_decoded_in_constant_memory():
    config = config_of("mamba", attention_pattern=("conv", "delta", "mamba"), max_positions=33_000)
    model = nnx.merge(skeleton(config)[0], drawn(config, scale=4.0))
    engine = Engine(model, None, Capacity(rows=1, budget=64), packed="float32")
    sizes, begun = [], engine.held

    def look(what, facts) -> None:
        if engine.stats().generation_tokens % 8192 == 4096:
            sizes.append((engine.held, sum(x.nbytes for x in jax.live_arrays()), psutil.Process().memory_info().rss >> 20))

    engine.observers.append(look)
    (tokens,) = engine.generate_all([Request((1, 2, 3), 32_768, temperature=1.0)])
    engine.close()
    assert len(tokens) == 32_768 and len(sizes) == 4
    assert {held for held, _, _ in sizes} == {begun} and sizes[0][1] == sizes[-1][1]
    assert sizes[-1][2] - sizes[0][2] < 16  # MiB of the process: the tokens and their blocks


def test_guesses_are_refused(kind, model):
    with pytest.raises(UserError, match=f"speculate: .*{kind}"):
        Engine(model, None, Capacity(rows=4, budget=16, pages=100, page=4, drafts=2))
