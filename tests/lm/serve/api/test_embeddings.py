"""/v1/embeddings through the official client."""

import numpy as np
import openai
import pytest

from lm.infer.prompts import IN_ONE_WORD
from tests.lm.serve.conftest import model_of

TEXTS = ["the cat", "the hat and the cat sat", "Größe"]


def vectors_of(client, given, **options):
    answer = client.embeddings.create(model="tiny", input=given, **options)
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data])


def wanted(ids):
    """The last hidden state of the model alone, of unit length."""
    x_D = np.asarray(model_of(0).hidden(np.array([ids], np.int32)).x_BTD[0, -1], np.float32)
    return x_D / np.linalg.norm(x_D)


def test_vectors_are_the_last_hidden_states_of_the_model(client, tokenizer):
    ids = [tokenizer.prompt_ids(IN_ONE_WORD.format(text)) for text in TEXTS]
    expected = np.array([wanted(row) for row in ids])
    for options in ({}, {"encoding_format": "float"}):  # the client's own default is base64
        np.testing.assert_allclose(vectors_of(client, TEXTS, **options), expected, atol=1e-5)
    np.testing.assert_allclose(vectors_of(client, ids), expected, atol=1e-5)
    np.testing.assert_allclose(vectors_of(client, TEXTS[0]), expected[:1], atol=1e-5)
    assert client.embeddings.create(model="tiny", input=TEXTS).usage.prompt_tokens == sum(map(len, ids))


def test_many_inputs_are_taken_in_turns(client):
    many = vectors_of(client, ["the cat", "the hat"] * 150)
    np.testing.assert_allclose(many[::2], np.repeat(many[:1], 150, axis=0), atol=1e-5)
    assert not np.allclose(many[0], many[1], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input": []}, "input: give 1 to 2048"),
        ({"input": ["a"] * 2049}, "not 2049"),
        ({"input": ""}, None),
        ({"input": [[]]}, "no tokens"),
        ({"input": "a" * 500_000}, "more than the"),
        ({"input": [399 + 9]}, "below 400"),
        ({"input": "a", "dimensions": 8}, "have 32"),
    ],
)
def test_what_cannot_be_embedded_is_named(client, options, words):
    if words is None:
        assert vectors_of(client, options["input"]).shape == (1, 32)
        return
    with pytest.raises(openai.BadRequestError, match=words):
        client.embeddings.create(model="tiny", **options)
