"""Comments explain every key of the configs."""

import config_keys
import config_pages
import pytest


@pytest.mark.parametrize("verb", config_keys.VERBS)
def test_every_key_is_explained(verb):
    missing = [key.name for key in config_keys.keys(verb) if not key.explanation]
    assert not missing, f"configs/{verb}/default.py, lm/config/model.py: write a comment on the line of {', '.join(missing)}"


def test_comments_belong_to_their_keys(tmp_path):
    path = tmp_path / "default.py"
    path.write_text(
        "def get_config():\n"
        "    config = ConfigDict()\n"
        "    config.a = 1  # beside\n"
        "    # above,\n"
        "    # in two lines\n"
        "    config.b = '#'\n"
        "\n"
        "    # a group\n"
        "    config.c = ConfigDict()  # a section\n"
        "    config.c.d = placeholder(\n"
        "        int  # in a call of several lines\n"
        "    )\n"
        "    # apart\n"
        "\n"
        "    config.e = 1\n"
        "    config.f = ConfigDict(\n"
        "        keys(\n"
        "            g=1,  # of a keyword\n"
        "            h=2,\n"
        "        )\n"
        "    ).lock()\n"
        "    return config\n"
    )
    assert config_keys.comments(path).explanations == {
        "a": "beside", "b": "above, in two lines", "c": "a section", "c.d": "in a call of several lines", "e": "",
        "f": "", "f.g": "of a keyword", "f.h": "",
    }  # fmt: skip
    assert config_keys.comments(path).notes == {"c": "a group"}


def test_keys_have_types_and_defaults():
    keys = {key.name: key for key in config_keys.keys("align")}
    assert (keys["optimizer.clip_norm"].type, keys["optimizer.clip_norm"].default) == ("float", "1.0")
    assert (keys["data.input"].type, keys["data.input"].default) == ("str", "None")
    assert (keys["data.max_examples"].type, keys["model.rope.interleaved"].default) == ("int", "False")
    assert keys["model.moe.top_k"].explanation and keys["optimizer.clip_norm"].explanation  # of lm/config/model.py; of train


def test_config_files_show_what_they_change():
    assert config_pages.variants("configs/align/demo.py") == ["sft", "grpo"]
    assert config_pages.variants("configs/train/tiny.py") == [None]
    page = config_pages.pages({}.get)["reference/configs.md"]
    of_grpo = page.partition("{#configs/align/grpo.py}")[2].partition("###")[0]
    assert 'method = "rl"\n' in of_grpo and "[align.py](align.md)" in of_grpo and "sequence_length" not in of_grpo
