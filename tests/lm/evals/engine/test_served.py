"""Generating with the serving engine: the sampler's greedy answers, and samples that depend on the prompt alone."""

import jax
import numpy as np
import pytest
from flax import nnx

from lm.errors import UserError
from lm.evals.engine import served
from lm.evals.engine.encoding import Encoding
from lm.evals.engine.model_subject import ModelSubject
from lm.evals.task import Prompt
from lm.infer.engine import local
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.evals.tiny_models import model, tokenizer, words

NO_END = "no such text"
SIZE = {"max_positions": 512}


@pytest.fixture(scope="module", autouse=True)
def few_rows():
    """So that few requests are more than run at a time, and few sizes of steps compile."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (served, local):
            patch.setattr(module, "ROWS", 8)
        yield


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def both(ours):
    return engines(ours)


def engines(ours) -> list[ModelSubject]:
    """One that generates with the serving engine, and one that samples."""
    return [
        ModelSubject(model(**SIZE), Encoding(ours), name="tiny", progress=False, max_length=256, served=way)
        for way in (True, False)
    ]


@pytest.mark.slow
def test_greedy_answers_are_those_of_the_sampler(both):
    serving, sampled = both
    asked = [Prompt(words(n % 23 + 1, seed=n), max_new_tokens=4 + n % 9) for n in range(2 * served.ROWS + 3)]
    examples = words(60, seed=8)
    asked += [Prompt(f"{examples} {words(n, seed=n)}", max_new_tokens=6) for n in (1, 2, 3)]
    assert serving.generate(asked) == sampled.generate(asked)
    assert serving.stats["generated"] == sampled.stats["generated"] > 0


def test_samples_depend_on_the_prompt_and_its_seed(both):
    serving, _ = both
    asked = [Prompt(words(n, seed=n), max_new_tokens=8, temperature=1.0, seed=s) for n in (1, 3, 12) for s in (0, 1)]
    found = serving.generate(asked)
    assert serving.generate(asked[::-1]) == found[::-1] and serving.generate(asked[2:3] * 2) == found[2:3] * 2
    assert found[0] != found[1]


@pytest.mark.slow
def test_a_stop_string_and_an_end_symbol_end_an_answer(both, ours):
    serving, sampled = both
    [whole] = serving.generate([Prompt("ab", (NO_END,), 24)])
    assert len(whole.tokens) == 24 and not whole.ended
    stop = ours.decode(whole.tokens[9:11])
    asked = [
        Prompt("ab", (NO_END, stop, ""), 24),
        Prompt("ab", (stop,), 24),
        *(Prompt(words(n, seed=n), (stop,), 40) for n in range(1, 9)),
    ]
    found = serving.generate(asked)
    assert found == sampled.generate(asked) and found[0].ended and stop not in found[0].text
    asked = [Prompt(words(n, seed=n), max_new_tokens=12) for n in range(1, 5)]
    symbols = {answer.tokens[2] for answer in sampled.generate(asked)}
    ends = engines(ours)
    for one in ends:
        one.encoding.stop_ids = tuple(symbols)
    found = ends[0].generate(asked)
    assert found == ends[1].generate(asked) and any(answer.ended and len(answer.tokens) < 3 for answer in found)


def test_a_model_that_is_split_over_devices(both, ours):
    asked = [Prompt(words(n, seed=n), max_new_tokens=6) for n in (1, 3, 12)]
    expected = both[0].generate(asked)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    graph, params = nnx.split(model(**SIZE))
    with jax.set_mesh(mesh):
        split = nnx.merge(graph, jax.device_put(params, shardings(params, mesh)))
        one = ModelSubject(split, Encoding(ours), name="tiny", progress=False, max_length=256, served=True)
        assert one.generate(asked) == expected


def test_small_models_and_what_is_too_long_go_to_the_sampler(ours, monkeypatch):
    monkeypatch.setattr(served.Served, "answers", None)
    small = ModelSubject(model(), Encoding(ours), name="tiny", progress=False, max_length=64)
    long = ModelSubject(model(), Encoding(ours), name="tiny", progress=False, max_length=512, served=True)
    for one in (small, long):
        assert one.generate([Prompt(words(8, seed=1), max_new_tokens=one.max_length // 2)])[0].tokens


def test_parameters_that_are_not_finite_are_named(ours):
    graph, params = nnx.split(model(**SIZE))  # parameters that other tests share: they get others, not other values
    faulty = nnx.merge(graph, jax.tree.map(lambda x: jax.device_put(np.full(x.shape, np.nan, np.float32)), params))
    one = ModelSubject(faulty, Encoding(ours), name="tiny", progress=False, max_length=64, served=True)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        one.generate([Prompt("ab", max_new_tokens=4)])
