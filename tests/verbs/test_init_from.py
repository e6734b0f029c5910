"""train.py --config.init_from: a run that starts from another one's weights, whole, or beside adapters on integers."""

import json

import numpy as np
import pytest

from tests.verbs import runs

START = dict(steps=6, checkpoint_every=0, valid_every=0, data__log_ids=False, model__vocab_size=None, model__embed_dim=None)


def params(workdir, step):
    return {name: x for name, x in runs.arrays(workdir, step).items() if name.startswith("['params']")}


def test_it_goes_on_from_the_weights_and_the_blueprint(finished, text, tmp_path):
    runs.train(tmp_path / "on", init_from=finished, data__input=text, optimizer__learning_rate=0.0, **START)
    before, after = params(finished, runs.STEPS), params(tmp_path / "on", START["steps"])
    assert before.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_array_equal(x, after[name], err_msg=name)
    assert json.loads((tmp_path / "on" / "config.json").read_text())["model"]["embed_dim"] == 32
    assert (tmp_path / "on" / "tokenizer.model").read_bytes() == (finished / "tokenizer.model").read_bytes()
    assert runs.training(tmp_path / "on")[0]["loss"] < 0.9 * runs.training(finished)[0]["loss"]


@pytest.fixture(scope="module")
def adapted(finished, text, tmp_path_factory):
    """(workdir, settings) of a run of adapters beside 8-bit weights."""
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    settings = dict(
        init_from=finished, data__input=text, model__adapter__rank=2, model__quantization__bits=8,
        optimizer__learning_rate=0.01, optimizer__warmup=1, **START,
    )  # fmt: skip
    runs.train(workdir, **settings)
    return workdir, settings


def test_only_adapters_learn_and_the_run_resumes(adapted, finished):
    workdir, settings = adapted
    first = params(workdir, 6)
    runs.train(workdir, **settings | dict(steps=12))
    second = params(workdir, 12)
    changed = {name for name in first if not np.array_equal(first[name], second[name])}
    assert changed and changed == {name for name in first if "lora" in name}
    assert any(x.dtype == np.int8 for x in first.values())
    embedding = "['params']['embedding']"
    np.testing.assert_array_equal(first[embedding], params(finished, runs.STEPS)[embedding])


def test_a_model_that_has_an_adapter_takes_no_second_one(adapted, text, tmp_path):
    settings = dict(data__input=text, model__adapter__rank=4, **START)
    done = runs.run(runs.line(tmp_path / "more", init_from=adapted[0], **settings))
    assert done.returncode == 2 and len(runs.complaint(done.stderr)) == 1
    assert "model.adapter.rank=4" in done.stderr and not (tmp_path / "more").exists()


def test_describe_sees_the_start(finished):
    command = [*runs.line("unused", init_from=finished, **START), "--describe=json"]
    done = runs.run(command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["parts"]["embedding"]["total"] == 384 * 32
