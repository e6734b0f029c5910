"""Generation in the tour: the library's greedy and sampled tokens for ragged prompts; the cache against no cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lm
from lm.train.step import model_config_of
from tests.slow import all_but
from tests.tour.pairs import MODELS, config_of, one_device, ours, placed, training_config, weights
from tour.generate import empty_cache, generate, last_state, last_tokens, padded
from tour.mesh import make_mesh
from tour.model import hidden, logits

PROMPTS = [np.random.default_rng(n).integers(0, 64, 1 + 3 * n % 23).tolist() for n in range(16)]


@functools.cache
def models(name):
    shape = model_config_of(training_config(**MODELS[name]))
    params, graph = weights(shape)
    return nnx.merge(graph, params), ours(params, config_of(shape)), config_of(shape)


GREEDY, SAMPLED = {"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}
WAYS = [(name, drawn) for name in ("default", "llama") for drawn in (GREEDY, SAMPLED)]


@pytest.mark.parametrize("name, drawn", all_but([("default", SAMPLED), ("llama", GREEDY)], WAYS), ids=str)
def test_tokens_are_those_of_the_library(name, drawn):
    model, params, config = models(name)
    expected = lm.generate(model, None, PROMPTS, max_new_tokens=12, seed=3, **drawn)
    with jax.set_mesh(one_device()):
        found = generate(placed(params, config), config, PROMPTS, 12, seed=3, **drawn)
    assert found == expected


def test_eight_devices_draw_what_one_does():
    _, params, config = models("default")
    with jax.set_mesh(one_device()):
        expected = generate(placed(params, config), config, PROMPTS, 6, 0.8)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        assert generate(placed(params, config), config, PROMPTS, 6, 0.8) == expected


def test_logits_with_the_cache_are_those_without():
    _, params, config = models("experts")
    with jax.set_mesh(one_device()):
        params, forward = placed(params, config), jax.jit(hidden, static_argnums=1)
        longest = max(map(len, PROMPTS))
        cache = empty_cache(config, jnp.arange(len(PROMPTS) * longest).reshape(-1, longest))
        half = [prompt[: (len(prompt) + 1) // 2] for prompt in PROMPTS]
        _, cache, _ = forward(params, config, padded(half), cache)
        for n in range(5):  # the tokens behind the first half, one after another
            rows = [prompt[: len(first) + n + 1] for prompt, first in zip(PROMPTS, half)]
            x_B1D, cache, _ = forward(params, config, last_tokens(rows), cache)
            batch = padded(rows)
            expected = last_state(forward(params, config, batch)[0], batch)
            np.testing.assert_allclose(logits(params, config, x_B1D), logits(params, config, expected), atol=1e-4)


def test_a_row_ends_with_its_stop_token():
    _, params, config = models("default")
    with jax.set_mesh(one_device()):
        params = placed(params, config)
        free = generate(params, config, PROMPTS[:4], 8)
        stop = free[0][3]
        for row, other in zip(generate(params, config, PROMPTS[:4], 8, stop_ids=(stop,)), free):
            assert row == (other[: other.index(stop) + 1] if stop in other else other)
