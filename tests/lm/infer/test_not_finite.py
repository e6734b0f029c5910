"""A model whose outputs are NaN or infinite is an error at once, in every path that draws or scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lm
from data.text.sentencepiece_tokenizer import train
from lm.align.rl.rollouts import RolloutSettings, roll_out
from lm.config import ModelConfig
from lm.errors import UserError
from lm.evals.engine.encoding import Encoding
from lm.evals.engine.model_subject import ModelSubject
from lm.evals.redteam.safety_eval import bits_per_byte
from lm.evals.task import Continuation, Prompt
from lm.infer.engine.local import Layout, LocalEngine
from lm.infer.engine.request import Sampling
from lm.model.transformer import Transformer, skeleton
from tests.lm.weights import drawn as parameters
from tests.slow import all_but

CONFIG = ModelConfig(vocab_size=320, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=2, mlp_dim=32, dtype="float32")
GREEDY = dict(max_new_tokens=8, temperature=0.0)
SAMPLED = dict(max_new_tokens=8, temperature=0.7, top_k=5, top_p=0.9, cache_dtype="int8")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    text = ["the cat and the hat sat on that mat\n"] * 3
    path = tmp_path_factory.mktemp("tokenizer") / "t"
    return train(text, path, vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1)


@pytest.fixture
def engine(tokenizer):
    one = LocalEngine(tokenizer)
    yield one
    one.close()


def with_rows(name: str, rows, value: float) -> Transformer:
    """A random model, some rows of whose embedding or head hold `value`."""
    params = jax.tree.map(lambda x: x, parameters(CONFIG, scale=4.0))
    params[name].set_value(params[name].get_value().at[jnp.asarray(rows, int)].set(value))
    return nnx.merge(skeleton(CONFIG)[0], params)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", all_but([GREEDY, SAMPLED], [GREEDY, dict(max_new_tokens=8), SAMPLED]))
def test_the_prompt_and_the_parameter_are_named(tokenizer, value, options):
    model = with_rows("embedding", [70], value)
    with pytest.raises(UserError, match=r"prompt 2 .*NaN or infinite; embedding holds .* in 16 of 5120 values"):
        lm.generate(model, tokenizer, [[50], [51, 52], [53, 70], [54]], **options)


def test_the_token_is_named_at_which_it_happened(tokenizer):
    greedy = lm.generate(with_rows("embedding", [], 0.0), tokenizer, [[50, 51]], **GREEDY)[0]
    at = next(n for n, token in enumerate(greedy) if n and token not in greedy[:n])
    model, words = with_rows("embedding", [greedy[at]], np.nan), rf"prompt 0 .*after {at + 1} new token"
    with pytest.raises(UserError, match=words):
        lm.generate(model, tokenizer, [[50, 51]], **GREEDY)
    shown = []
    with pytest.raises(UserError, match=words):
        lm.generate(model, tokenizer, [[50, 51]], **GREEDY, stream=shown.append)


def test_continuations_of_one_prompt_name_that_prompt(engine):
    with pytest.raises(UserError, match="prompt 1 "):
        engine.draw(with_rows("embedding", [70], np.nan), [[50], [70]], Sampling(4), Layout(3))


@pytest.mark.parametrize("sign", [1, -1])
def test_finite_parameters_that_overflow(tokenizer, sign):
    """All logits are +inf, or all -inf."""
    params = jax.tree.map(lambda x: x, parameters(CONFIG))
    scale = np.zeros(16, np.float32)
    scale[0] = 1e20
    head = np.zeros((320, 16), np.float32)
    params["norm"]["scale"].set_value(jax.device_put(scale))
    for side in (1, -1):
        head[:, 0] = side * 1e30
        params["head"].set_value(jax.device_put(head.copy()))
        model = nnx.merge(skeleton(CONFIG)[0], params)
        logits = np.asarray(jax.jit(lambda model: model(np.asarray([[50]], np.int32)))(model))
        assert np.isinf(logits).all()
        if (logits > 0).all() == (sign > 0):
            break
    with pytest.raises(UserError, match="all parameters are finite, so a value overflowed float32"):
        lm.generate(model, tokenizer, [[50]], **GREEDY)


def test_a_temperature_that_makes_logits_overflow(tokenizer):
    graph, params = nnx.split(with_rows("embedding", [], 0.0))
    model = nnx.merge(graph, jax.tree.map(lambda x: 4 * x, params))
    with pytest.raises(UserError, match="temperature=1.2e-38 is too small: 0 is greedy"):
        lm.generate(model, tokenizer, [[50]], max_new_tokens=2, temperature=1.2e-38)
    for temperature in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="temperature=.* is out of range"):
            lm.generate(with_rows("embedding", [], 0.0), tokenizer, [[50]], max_new_tokens=2, temperature=temperature)


def test_rows_that_have_ended_do_not_count(tokenizer, engine):
    """What follows the end token of a row is read by nobody."""
    greedy = lm.generate(with_rows("embedding", [], 0.0), tokenizer, [[50, 51]], **GREEDY)[0]
    model = with_rows("embedding", [greedy[0]], np.nan)
    drawn = engine.draw(model, [[50, 51]], Sampling(stop_ids=(greedy[0],), **GREEDY))
    assert drawn.tokens == [greedy[:1]]


def test_rollouts_and_evaluations(tokenizer, engine):
    model = with_rows("head", [290], np.nan)
    task = {"prompt": [{"role": "user", "content": "cat"}], "prompt_ids": [50, 51]}
    subject = ModelSubject(model, Encoding(tokenizer), name="tiny", progress=False, max_length=64)
    for ask in (
        lambda: roll_out(model, tokenizer, [task], RolloutSettings(4), engine),
        lambda: subject.generate([Prompt("the cat", max_new_tokens=4)]),
        lambda: subject.likelihoods([Continuation("the cat", " sat")]),
        lambda: subject.rolled(["the cat sat"]),
        lambda: bits_per_byte(subject, ["the cat sat"]),
    ):
        with pytest.raises(UserError, match="NaN or infinite.* head holds NaN or infinity in 16 of 5120 values"):
            ask()
