"""A run goes on only with the model that it began with; how its config was written down does not matter."""

import json
from pathlib import Path

import pytest

from configs.train import deepseek_tiny
from lm.errors import UserError
from lm.workdir import check_resumable


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


def test_what_training_weighs_and_how_it_is_compiled_may_change():
    saved, new = saved_and_new()
    new["model"].update(remat="full", scan_layers=True)
    new["model"]["moe"].update(balance_loss=0.5, bias_rate=0.1)
    new["steps"] = 7
    resume(saved, new)
