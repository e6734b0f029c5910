"""The config of a server: what is refused before JAX loads, and what the settings come to."""

import hashlib
import json
from pathlib import Path

import pytest

from configs.serve import default
from lm.errors import UserError
from lm.runs.workdir import RECORD
from lm.serve import settings


@pytest.fixture
def config(tmp_path):
    """A config whose checkpoint is a workdir with a checkpoint's folder."""
    run = tmp_path / "run"
    (run / "checkpoints" / "3").mkdir(parents=True)
    (run / RECORD).write_text(json.dumps({"model": {}, "dtype": "float32", "steps": 3}))
    config = default.get_config()
    config.checkpoint = str(run)
    return config


def test_the_defaults_hold(config, tmp_path):
    settings.check_serving(config, tmp_path / "serving")
    assert settings.name_of(config) == "run" and settings.adapter_count(config) == 0
    hosts = ("localhost", "127.0.0.1", "[::1]")
    assert settings.app_settings(config) == settings.Settings(per_minute=0, hosts=hosts)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("port", 70000, "port=70000"),
        ("port", -1, "port=-1"),
        ("rows", 0, "rows=0"),
        ("timeout", -1.0, "timeout=-1.0"),
        ("timeout", float("nan"), "timeout=nan"),
        ("host", "no.such.host.invalid", "no such address"),
        ("host", "0.0.0.0", "auth.key_file=FILE"),
        ("name", " ", "name is empty"),
        ("chat_template", "missing.jinja", "no such file"),
        ("batch", "missing.jsonl", "no such file"),
        ("checkpoint", "missing", "no such folder"),
        ("adapters.load", "a", "NAME=FOLDER"),
        ("adapters.load", "../a=.", "NAME=FOLDER"),
        ("adapters.load", "a=.,a=.", "named twice"),
        ("adapters.load", "a=missing", "no such folder"),
        ("adapters.load", "run=.", "the model itself"),
        ("adapters.dir", "missing", "no such folder"),
        ("adapters.rank", 0, "adapters.rank=0"),
        ("auth.key_file", "missing", "auth.key_file=missing"),
        ("auth.per_minute", -1, "auth.per_minute=-1"),
        ("monitor.alpha", 2.0, "monitor.alpha=2.0"),
        ("monitor.share", 2.0, "monitor.share=2.0 must be at least 0 and at most 1"),
        ("store.days", -1.0, "store.days=-1.0"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(config, tmp_path, key, value, words):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=words):
        settings.check_serving(config, tmp_path / "serving")


def test_other_machines_need_a_key_or_an_open_door(config, tmp_path):
    config.host = "0.0.0.0"
    (tmp_path / "keys").write_text(f"ann {hashlib.sha256(b'k').hexdigest()}\n")
    config.auth.key_file = str(tmp_path / "keys")
    found = settings.app_settings(config)
    assert list(found.keys) == ["ann"] and found.per_minute == settings.PER_MINUTE
    config.auth.key_file, config.auth.open, config.auth.per_minute = None, True, 7
    assert settings.app_settings(config).per_minute == 7


def test_a_workdir_of_another_verb_is_refused(config, tmp_path):
    for saved, words in (({"model": {}, "dtype": "float32", "steps": 3}, "not of a server"), (None, "the workdir itself")):
        workdir = tmp_path / "other" if saved else tmp_path / "run"
        if saved:
            workdir.mkdir()
            (workdir / RECORD).write_text(json.dumps(saved))
        with pytest.raises(UserError, match=words):
            settings.check_serving(config, workdir)


def test_a_batch_of_a_config_with_earlier_keys_goes_on(config, tmp_path):
    config.batch = str(tmp_path / "requests.jsonl")
    Path(config.batch).write_text("{}\n")
    earlier = config.to_dict() | {"tracing": ""}
    earlier["monitor"] |= {"canaries": "", "canary_minutes": 10.0}
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / RECORD).write_text(json.dumps(earlier))
    settings.check_serving(config, tmp_path / "answers")


def test_without_a_checkpoint_it_is_smollm2_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="make serve"):
        settings.default_checkpoint()
    file = tmp_path / ".venv" / "smollm2" / settings.SMOLLM2
    file.parent.mkdir(parents=True)
    file.touch()
    assert settings.default_checkpoint().endswith(str(settings.SMOLLM2))


@pytest.mark.parametrize(
    "stored, given, expected",
    [
        (None, {}, {"temperature": 0.7, "top_p": 0.95}),
        ({"eos_token_id": 2}, {}, {"temperature": 0.7, "top_p": 0.95}),
        ({"temperature": 0.6, "top_k": 20}, {}, {"temperature": 0.6, "top_k": 20}),
        ({"temperature": 0.6}, {"temperature": 0.0}, {"temperature": 0.0}),
    ],
)
def test_a_chat_is_sampled_as_its_model_says(stored, given, expected, tmp_path):
    config = default.get_config()
    config.checkpoint = str(tmp_path)
    config.sampling.update(given)
    if stored is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    assert settings.sampling_of(config) == expected
    config.sampling.top_p = 2.0
    with pytest.raises(UserError, match="sampling.top_p=2.0: input should be less than or equal to 1"):
        settings.sampling_of(config)
