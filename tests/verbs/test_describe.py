"""train.py --describe: says what a run would take, and touches nothing; keys of sections are set and mistaken as others are."""

import json
import sys

import pytest

from tests.verbs import runs
from tests.verbs.test_bad_input import refused


def line(*arguments: str, config: str = "tiny.py") -> list[str]:
    return [sys.executable, "train.py", f"--config=configs/train/{config}", *arguments]


def test_json_alone_is_written_to_stdout_and_nothing_to_disk(tmp_path):
    keys = ("--config.model.mlp_pattern=('dense','moe')", "--config.model.moe.num_experts=8", "--config.mesh.fsdp=4")
    done = runs.run(line("--describe=json", f"--workdir={tmp_path}/run", *keys))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["parameters"]["parts"]["experts"]["total"] == 8 * 3 * 128 * 384
    assert said["memory"]["devices"] == 4
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_a_size_of_the_ladder():
    done = runs.run(line("--describe", config="ladder.py:3m"))
    assert done.returncode == 0, done.stderr
    assert "3,000,704" in done.stdout and "Chinchilla-optimal" in done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--describe=yaml"], ["--describe=yaml", "table, json"]),
        (["--nodescribe"], ["--workdir is missing"]),
        (["--config.model.moe.num_expert=8"], ["model.moe.num_expert:", "did you mean model.moe.num_experts?"]),
        (["--config.model.rope={'thta': 1.0}"], ["model.rope.thta", "did you mean model.rope.theta?"]),
        (["--config.model.rope=5"], ["model.rope=5", "a section", "model.rope.theta"]),
        (["--config.model.rope.theta=many"], ["model.rope.theta=many", "float", "10000.0"]),
        (["--config.model.attention_pattern=local,global"], ["attention_pattern=local,global", "tuple", "('global',)"]),
        (["--config.model.attention_pattern=5"], ["model.attention_pattern=5", "must be a str"]),
        (["--config.model.moe.num_experts=8"], ["model.moe.num_experts=8", "('moe',)"]),
    ],
)
def test_mistakes(arguments, words):
    refused(line("--describe", *arguments), *words)


@pytest.mark.parametrize(
    "config, words",
    [
        ("ladder.py", ["ladder.py:", "1m, 3m, 10m, 30m"]),
        ("ladder.py:5m", ["ladder.py:5m", "1m, 3m, 10m, 30m"]),
        ("ladders.py:1m", ["ladders.py", "did you mean configs/train/ladder.py?"]),
        ("tiny.py:1m", ["tiny.py:1m", "no argument"]),
    ],
)
def test_mistaken_configs(config, words):
    refused(line("--describe", config=config), *words)


def test_a_config_file_with_an_unknown_key(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs.train import default\n\n\ndef get_config():\n"
        "    config = default.get_config()\n    config.model.update(rope_theta=1e6)\n    return config\n"
    )
    refused([sys.executable, "train.py", f"--config={file}", "--describe"], str(file), "'rope_theta'")


def test_help_lists_the_keys_of_sections():
    done = runs.run(line("--help"))
    assert done.returncode == 0
    for key in ("model.moe.num_experts=0", "model.attention_pattern=('global',)", "model.rope.theta=10000.0"):
        assert f"--config.{key}" in done.stdout
