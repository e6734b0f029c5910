"""A run resumes only from its own checkpoints: fingerprints of contents, and the keys that must not change."""

import json

import pytest

from configs.train import tiny
from lm.errors import UserError
from lm.runs import fingerprints

DATASET = {"digests": {"text": {"train": "aa", "valid": "bb"}}}


@pytest.fixture
def workdir(tmp_path):
    write(tmp_path / "tokenizer.fingerprint", "0123456789abcdef\n")
    write(tmp_path / "data" / "1" / "dataset.json", json.dumps(DATASET))
    write(tmp_path / "data" / "1" / "input.json", json.dumps({"digest": "cc", "files": []}))
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def meta(config, workdir):
    return json.loads(json.dumps({"config": config.to_dict(), "fingerprints": fingerprints.of(workdir)}))


def test_the_own_checkpoint_passes(workdir):
    config = tiny.get_config()
    saved = meta(config, workdir)
    assert saved["fingerprints"].keys() == {"tokenizer", "data", "input"}
    config.data.input, config.tokenizer, config.init_from = "/moved/text", "/moved/tokenizer", "/moved/base"  # same contents
    config.steps, config.optimizer.learning_rate = 7, 1e-4
    fingerprints.check(saved, config, workdir, 3)
    fingerprints.check({"config": saved["config"]}, config, workdir, 3)  # of an older version


@pytest.mark.parametrize(
    "file, text, named, cure",
    [
        ("tokenizer.fingerprint", "fedcba9876543210\n", "another tokenizer", "put the run's own tokenizer back"),
        ("data/1/dataset.json", json.dumps({"digests": {"text": {"train": "ab"}}}), "another data", "put the data back"),
        ("data/1/input.json", json.dumps({"digest": "cd"}), "another input", "put the input back"),
    ],
)
def test_another_content_is_refused(workdir, file, text, named, cure):
    config = tiny.get_config()
    saved = meta(config, workdir)
    write(workdir / file, text)
    with pytest.raises(UserError, match=f"checkpoints/3 was trained with {named}.*{cure}.*or use another --workdir"):
        fingerprints.check(saved, config, workdir, 3)


@pytest.mark.parametrize("key, value", [("seed", 5), ("data.valid_fraction", 0.5), ("model.norm_eps", 1e-3)])
def test_the_checkpoint_of_another_config_is_refused(workdir, key, value):
    saved = meta(tiny.get_config(), workdir)
    config = tiny.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"^{key} is .*checkpoints/3.*set --config.{key}="):
        fingerprints.check(saved, config, workdir, 3)
