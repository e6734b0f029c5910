"""A run goes on only with the model that it began with; how its config was written down does not matter."""

import json
import sys
from pathlib import Path

import pytest

from configs.curate import default as curate_file
from configs.train import deepseek_tiny, default
from configs.train import tiny as tiny_file
from lm.errors import UserError
from lm.runs.workdir import check_record, check_result, check_resumable, save_record
from lm.train.checks import keep_former_defaults


def saved_and_new():
    new = deepseek_tiny.get_config().to_dict()
    return json.loads(json.dumps(new)), new


def resume(saved, new):
    check_resumable(saved, new, Path("runs/one"))


def test_lists_are_tuples_and_missing_keys_their_defaults():
    saved, new = saved_and_new()
    assert isinstance(saved["model"]["mlp_pattern"], list)
    resume(saved, new)
    del saved["model"]["adapter"], saved["model"]["moe"]["router_z_loss"], saved["model"]["logit_softcap"]
    resume(saved, new)
    new["model"]["logit_softcap"] = 30.0
    with pytest.raises(UserError, match="model.logit_softcap is 0.0 in runs/one and 30.0 in this config"):
        resume(saved, new)


def test_a_recipe_may_lack_the_section_of_a_stage_that_is_gone():
    new = curate_file.get_config().to_dict()
    resume(new | {"perplexity": {"checkpoint": "", "max_tokens": 1024, "batch": 1}}, new)


def test_another_model_is_named_by_its_key():
    saved, new = saved_and_new()
    new["model"]["moe"]["top_k"] = 3
    with pytest.raises(UserError, match="model.moe.top_k is 2 .* set --config.model.moe.top_k=2"):
        resume(saved, new)
    saved, new = saved_and_new()
    new["model"]["mlp_pattern"] = ("moe",)
    with pytest.raises(UserError, match="model.mlp_pattern is"):
        resume(saved, new)
    saved, new = saved_and_new()
    saved["model"]["rope_theta"] = 10_000.0
    with pytest.raises(UserError, match="model.rope_theta of runs/one is unknown here.*another --workdir"):
        resume(saved, new)


def test_prepared_data_are_those_with_or_without_thoughts():
    saved, new = saved_and_new()
    with pytest.raises(UserError, match="sft.thoughts is True in runs/one and False in this config"):
        resume(saved | {"sft": {"thoughts": True}}, new | {"sft": {"thoughts": False}})
    resume(saved | {"sft": {"loss": "nll"}}, new | {"sft": {"thoughts": False}})  # of a run that is older than the key


def test_what_training_weighs_and_how_it_is_compiled_may_change():
    saved, new = saved_and_new()
    new["model"].update(remat="full", scan_layers=True)
    new["model"]["moe"].update(balance_loss=0.5, bias_rate=0.1)
    new["steps"] = 7
    resume(saved, new)


def tiny(keys: dict):
    config = tiny_file.get_config()
    config.update_from_flattened_dict(keys)
    return config


@pytest.fixture
def trained(tmp_path) -> Path:
    """A workdir with the record and the checkpoint's folder of a run of 20 steps that is trained to its end."""
    save_record(tiny({"steps": 20}), tmp_path)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    return tmp_path


RESULTS = [
    {"optimizer.learning_rate": 0.5},
    {"batch_size": 4},
    {"dtype": "float64"},
    {"data.weights": "a=1"},
    {"model.quantized_training": "int8"},
    {"guard.on": False},
    {"steps": 10},
]
SAME = [{}, {"steps": 21, "batch_size": 4}, {"epochs": 2.0}, {"accumulate": 2, "mesh.fsdp": 2}, {"model.remat": "full"}]


@pytest.mark.parametrize("keys", RESULTS, ids=lambda keys: " ".join(keys) or "none")
def test_a_trained_run_refuses_what_would_have_shaped_it(keys, trained):
    (key,) = keys
    with pytest.raises(UserError, match=f"last step, 20, with other values than this config has: {key}: .* → {keys[key]}; use"):
        check_result(tiny({"steps": 20} | keys), trained)


@pytest.mark.parametrize("keys", SAME, ids=lambda keys: " ".join(keys) or "none")
def test_a_trained_run_takes_what_does_not_shape_it_and_a_greater_length(keys, trained):
    check_result(tiny({"steps": 20} | keys), trained)


def test_an_unfinished_run_takes_new_values_while_it_has_steps_left(tmp_path):
    longer = {"steps": 30, "epochs": 2.0}
    save_record(tiny(longer), tmp_path)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    check_result(tiny(longer | {"batch_size": 4}), tmp_path)
    check_result(tiny({"steps": 20}), tmp_path)  # it ends early
    with pytest.raises(UserError, match="batch_size: "):
        check_result(tiny({"steps": 20, "batch_size": 4}), tmp_path)


def test_a_run_of_the_former_default_recipe_goes_on_with_it(tmp_path, monkeypatch):
    config = tiny_file.get_config()
    default.adamw(config)
    config.optimizer.learning_rate = 4e-3
    before = config.to_dict()
    del before["model"]["init"], before["optimizer"]["embedding_rate"], before["optimizer"]["head_rate"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    monkeypatch.setattr(sys, "argv", ["train.py", "--config.optimizer.final=0.2"])
    config = tiny_file.get_config()
    config.optimizer.final = 0.2
    keep_former_defaults(config, tmp_path)
    o = config.optimizer
    assert (config.model.init, config.model.qk_norm) == ("gpt2", "none")
    assert (o.name, o.schedule, o.b1, o.learning_rate, o.final) == ("adamw", "cosine", 0.9, 4e-3, 0.2)
    assert (o.embedding_rate, o.head_rate) == (1.0, 1.0)
    check_record(config, tmp_path)
    new = tiny_file.get_config()
    (tmp_path / "config.json").write_text(json.dumps(new.to_dict()))
    keep_former_defaults(config := tiny_file.get_config(), tmp_path)
    assert config.to_dict() == new.to_dict()
    before = new.to_dict()
    del before["optimizer"]["head_rate"], before["optimizer"]["turns"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    keep_former_defaults(config, tmp_path)
    assert (config.optimizer.embedding_rate, config.optimizer.head_rate, config.optimizer.turns) == (15.0, 1.0, 1)


@pytest.mark.parametrize(("key", "value"), [("extend.yarn", 8.0), ("extend.theta", 1e6), ("optimizer.turns", 2)])
def test_a_key_that_a_former_record_lacks_had_no_effect_there(key, value):
    saved, new = saved_and_new()
    section, name = key.split(".")
    for config in (saved, new):
        config["optimizer"].update(name="normuon", turns=1)
    del saved[section][name]
    resume(saved, new)
    new[section][name] = value
    with pytest.raises(UserError, match=rf"{key} is .* in runs/one and {value} in this config"):
        resume(saved, new)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_turns_of_an_optimizer_without_them_may_change(name):
    saved, new = saved_and_new()
    saved["optimizer"].update(name=name, turns=1)
    new["optimizer"].update(name=name, turns=4)
    resume(saved, new)
