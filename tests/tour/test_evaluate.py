"""The tour's log-likelihoods of choices, integers and server: as in the library, and a batch that changes as alone."""

import concurrent.futures
import itertools
import json
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from flax import nnx

from lm.adapt.quantize import dequantize, quantize
from lm.config import Quantization
from lm.evals.engine.likelihood import Request, work
from lm.train.step import model_config_of
from tests.slow import all_but
from tests.tour.pairs import MODELS, assert_same, config_of, one_device, ours, placed, training_config, weights
from tour.evaluate import choice_scores, mean_with_interval
from tour.generate import generate
from tour.quantize import dequantize_model, quantize_model
from tour.serve import Engine, serve
from tour.sft import prompt_ids
from tour.text import train_tokenizer


def test_log_likelihoods_of_choices_are_those_of_the_library():
    shape = model_config_of(training_config(**MODELS["default"]))
    params, graph = weights(shape)
    rng, config = np.random.default_rng(0), config_of(shape)
    items = [(rng.integers(0, 64, 3 + n).tolist(), rng.integers(0, 64, (4, 1 + n % 3)).tolist()) for n in range(8)]
    asked = [Request(question, answer) for question, answers in items for answer in answers]
    expected: dict = {}
    for batch in work(nnx.merge(graph, params), asked, max_length=16):
        batch.run(set(batch.numbers), expected.update)
    with jax.set_mesh(one_device()):
        found = choice_scores(placed(ours(params, config), config), config, items, 16)
    np.testing.assert_allclose(np.concatenate(found), [expected[n].logps.sum() for n in range(len(asked))], atol=1e-4)


def test_the_interval_of_a_mean():
    mean, half = mean_with_interval([1, 0, 0, 1])
    assert (mean, half) == (0.5, pytest.approx(1.96 * 0.57735 / 2, abs=1e-5))


WAYS = list(itertools.product(((8, 0), (4, 0), (4, 16)), ("default", "experts")))


@pytest.mark.parametrize("integers, name", all_but([((8, 0), "default"), ((4, 16), "experts")], WAYS), ids=str)
def test_integers_are_those_of_the_library(integers, name):
    bits, group = integers
    shape = model_config_of(training_config(**MODELS[name]))
    params, config = weights(shape)[0], config_of(shape)
    expected = ours(dequantize(*quantize(shape, params, Quantization(bits, group)))[1], config)
    with jax.set_mesh(one_device()):
        tree = placed(ours(params, config), config)
        found = dequantize_model(quantize_model(tree, config, bits, group), config)
        assert_same(found, expected, atol=0, rtol=0)


@pytest.fixture(scope="module")
def served():
    """(URL, tokenizer, params, config) of a server with three rows."""
    tokenizer = train_tokenizer(["question answer yes no of many and once more " * 20], 320)
    shape = model_config_of(training_config(vocab_size=320, **MODELS["default"]))
    config = config_of(shape)
    with jax.set_mesh(one_device()):
        params = placed(ours(weights(shape)[0], config), config)
        server = serve(Engine(params, config, (1,), rows=3, context=64), tokenizer, port=0)
        yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions", tokenizer, params, config
        server.shutdown()


def post(url, **body):
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as reply:
        return reply.read().decode()


def test_requests_in_a_changing_batch_are_answered_as_alone(served):
    url, tokenizer, params, config = served
    asked = [[{"role": "user", "content": "question " * (1 + n % 4) + str(n)}] for n in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = [
            pool.submit(post, url, messages=messages, max_tokens=4 + 3 * n, temperature=0) for n, messages in enumerate(asked)
        ]
        replies = [json.loads(reply.result()) for reply in replies]
    for n, (messages, reply) in enumerate(zip(asked, replies)):
        alone = generate(params, config, [prompt_ids(tokenizer, messages)], 4 + 3 * n, stop_ids=(1,))[0]
        text = tokenizer.decode([token for token in alone if token != 1])
        assert reply["choices"][0]["message"] == {"role": "assistant", "content": text}


def test_what_cannot_be_answered_is_refused(served):
    url, *_ = served
    for body in ({}, {"messages": [{"role": "user", "content": "question"}], "max_tokens": 1000}):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(url, **body)
