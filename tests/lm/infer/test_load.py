"""A checkpoint of a run becomes the model that was saved."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

import lm
from data.text.sentencepiece_tokenizer import train
from lm.errors import UserError
from lm.model.transformer import skeleton
from lm.runs.checkpoint import Checkpoints
from lm.train.step import model_config_of
from tests.lm.examples import tiny_config, trainer_and_state


def test_the_newest_checkpoint_gives_the_saved_logits(tmp_path):
    config = tiny_config()
    _, state = trainer_and_state(config)
    older = state._replace(params=jax.tree.map(lambda p: p + 1, state.params))
    train(
        ["the cat sat on the mat\n"] * 9, tmp_path / "tokenizer.model", vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    checkpoints = Checkpoints(tmp_path)
    for step, saved in ((1, older), (2, state)):
        checkpoints.save(step, saved, {"config": config.to_dict(), "tokens": 0})
    checkpoints.wait()
    checkpoints.close()
    model, tokenizer = lm.load(tmp_path)
    tokens = np.arange(20)[None]
    graph, _ = skeleton(model_config_of(config))
    np.testing.assert_array_equal(model(tokens), nnx.merge(graph, state.params)(tokens))
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert lm.load(tmp_path, dtype="bfloat16")[0].config.dtype == "bfloat16"


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UserError, match="no training run"):
        lm.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint"):
        lm.load(tmp_path)
