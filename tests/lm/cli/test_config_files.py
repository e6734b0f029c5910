"""Names of config files that users shorten, and the verbs that configs are for."""

import pytest

from configs.train import tiny
from lm.cli import config_files
from lm.errors import UserError


@pytest.mark.parametrize(
    "name", ["tiny", "tiny.py", "train/tiny", "train/tiny.py", "configs/train/tiny", "configs/train/tiny.py"]
)
def test_a_config_is_found_by_a_shorter_name(name, monkeypatch, tmp_path):
    assert config_files.find(name, "train").endswith("configs/train/tiny.py")
    monkeypatch.chdir(tmp_path)  # then in the clone
    assert config_files.find(name, "train") == str(config_files.HOME / "configs/train/tiny.py")


def test_the_own_verb_comes_first_and_an_argument_stays():
    assert config_files.find("default", "serve").endswith("configs/serve/default.py")
    assert config_files.find("sft", "train").endswith("configs/align/sft.py")
    assert config_files.find("demo:grpo", "align").endswith("configs/align/demo.py:grpo")


def test_a_file_of_the_user_comes_before_ours(monkeypatch, tmp_path):
    (tmp_path / "tiny.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert config_files.find("tiny.py", "train") == config_files.find("tiny", "train") == "tiny.py"


@pytest.mark.parametrize(
    "name, words",
    [
        ("tyni", "did you mean .*configs/train/tiny.py"),
        ("train", "no such file"),  # not train.py, which is no config
        ("configs/train", "a folder; name one of configs/train/1b.py, configs/train/deepseek_tiny.py"),
        (r"C:\me\tiny.py", "in WSL name /mnt/c/me/tiny.py"),
    ],
)
def test_a_name_of_nothing(name, words):
    with pytest.raises(UserError, match=words):
        config_files.find(name, "train")


@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config()\n", "line 1: expected ':'"),
        ("x = 1\ny = z\n", "line 2: NameError"),
        ("x = 1\n", "defines no get_config"),
        ("def get_config():\n    return {}\n", "takes no argument after a colon"),
    ],
)
def test_a_file_that_is_no_config(text, words, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words):
        config_files.load(f"{tmp_path}/mine.py:argument")


def test_a_config_is_for_one_verb():
    assert {verb: config_files.verb_of(config_files.load(path).to_dict()) for verb, path in config_files.USUAL.items()} == {
        verb: verb for verb in config_files.USUAL
    }
    config_files.check_verb(tiny.get_config(), "mine.py", "train")
    with pytest.raises(UserError, match="is for train.py: run .*python3? train.py --config=mine.py"):
        config_files.check_verb(tiny.get_config(), "mine.py", "align")
