"""Perplexities of documents: against full logits, whatever their neighbours, batches and widths of rows."""

import dataclasses
import math
import random

import jax
import numpy as np
import pytest
from flax import nnx

from lm.errors import UserError
from lm.evals.documents import MIN_WIDTH, Scorer, Scores, columns, reference, widths
from lm.model.transformer import skeleton
from tests.lm.evals.tiny_models import model, tokenizer, words
from tests.slow import all_but

TEXTS = [words(n, n) for n in (1, 2, 9, 10, 15, 25, 40, 41, 90)] + ["", "día 🙂 <|end|> ▁", words(5, 3)]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


EXPERTS = {"mlp_pattern": ("moe",), "moe": {"num_experts": 4, "capacity_factor": 1.0}}


@pytest.mark.parametrize("config", all_but([EXPERTS], [{}, EXPERTS]), ids=["dense", "experts"])
def test_scores_are_those_of_full_logits_and_of_a_document_alone(own, config):
    one = model(vocab_size=own.vocab_size, **config)
    found = [Scorer(one, own, max_tokens=100, batch=batch).scores(TEXTS) for batch in (1, 3)]
    true = [reference(one, own, text, 100) for text in TEXTS]
    np.testing.assert_allclose(found[0].logp, [logp for logp, _ in true], rtol=1e-5)
    assert found[0].tokens.tolist() == [n for _, n in true] and 100 in found[0].tokens
    np.testing.assert_allclose(found[1].logp, found[0].logp, rtol=1e-5)
    order = random.Random(0).sample(range(len(TEXTS)), len(TEXTS))
    for batch, all_ in zip((1, 3), found):
        scorer = Scorer(one, own, max_tokens=100, batch=batch)
        mixed = scorer.scores([TEXTS[n] for n in order])
        assert mixed.logp.tolist() == all_.logp[order].tolist()  # to the bit
        assert [scorer.scores([text]).logp[0] for text in TEXTS[2:6]] == all_.logp[2:6].tolist()


def test_bytes_and_tokens_of_what_was_read(own):
    scorer = Scorer(model(vocab_size=own.vocab_size), own, max_tokens=16)
    found = scorer.scores(TEXTS)
    for text, tokens, size in zip(TEXTS, found.tokens, found.bytes):
        ids = own.encode(text)
        assert tokens == min(16, len(ids))
        assert size == (len(text.encode()) if len(ids) <= 16 else len(own.decode_bytes(ids[:16])))
    assert scorer.scores([]).logp.shape == (0,)


def test_columns():
    found = columns(Scores(np.array([-8.0, 0, -7e6]), np.array([4, 0, 5]), np.array([16, 0, 20])))
    assert found["perplexity"][0] == np.float32(math.exp(2)) and found["bits_per_byte"][0] == np.float32(0.5 / math.log(2))
    assert np.isnan(found["perplexity"][1]) and np.isnan(found["bits_per_byte"][1])
    assert 1e29 < found["perplexity"][2] < 1e30 and found["perplexity_tokens"].tolist() == [4, 0, 5]
    assert {str(values.dtype) for values in found.values()} == {"float32", "int64"}


def test_rows_have_few_widths():
    assert widths(MIN_WIDTH) == [MIN_WIDTH] and widths(10) == [10] and widths(1024) == [64, 128, 256, 512, 1024]
    assert widths(1000) == [64, 128, 256, 512, 1000]


def test_what_cannot_be_scored(own):
    one = model(vocab_size=own.vocab_size)
    for wrong, message in (
        ({"max_tokens": 129}, "at most 128"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"batch": 0}, "batch=0"),
    ):
        with pytest.raises(UserError, match=message):
            Scorer(one, own, **{"max_tokens": 64} | wrong)
    rope = dataclasses.replace(one.config.rope, scaling="ntk", factor=2.0, original_positions=64)
    longer = nnx.merge(skeleton(dataclasses.replace(one.config, rope=rope))[0], nnx.split(one)[1])
    with pytest.raises(UserError, match="over 64 tokens"):
        Scorer(longer, own, max_tokens=65)
    broken = nnx.merge(nnx.split(one)[0], jax.tree.map(lambda p: p * float("nan"), nnx.split(one)[1]))
    with pytest.raises(UserError, match="NaN"):
        Scorer(broken, own, max_tokens=64).scores(TEXTS[:1])
