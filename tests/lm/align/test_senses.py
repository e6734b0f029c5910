"""What a run's model sees and hears, from its config, its tokenizer and its processor."""

import json

import numpy as np
import pytest
from flax import nnx

from configs.align import senses as senses_config
from data.media import spectrograms, tiles
from data.media.prompts import IDEFICS3, LLAVA, OWN, VOXTRAL
from lm.adapt.rebuild import arrays_of
from lm.align import sft
from lm.align.data import check_text
from lm.errors import UserError
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.train.values import model_of


class Symbols:
    """A tokenizer that has these control symbols."""

    def __init__(self, *names: str):
        self.ids = {name: 10 + n for n, name in enumerate(names)}

    def chat_symbols(self, template: str) -> dict[str, int]:
        return {name: id for name, id in self.ids.items() if name in template}


OURS = Symbols(*(f"<|reserved_{n}|>" for n in range(4)))


def config_of(words="images,audio", **keys):
    config = senses_config.get_config(words)
    config.init_from = "nowhere"
    for name, id in (("vision", 10), ("audio", 11)):
        config.model[name].token_id = id if config.model[name].num_layers else -1
    for key, value in keys.items():
        section, _, name = key.rpartition("__")
        (config.model[section] if section else config)[name] = value
    return config


def test_without_a_processor_the_encoders_give_the_sizes(tmp_path):
    found = sft.towers_of(config_of(), OURS, tmp_path)
    assert (found.image, found.image_tokens, found.style) == (tiles.Tower(64), 16, OWN)
    assert (found.audio, found.audio_tokens) == (spectrograms.Tower(40, 1), 10)
    assert sft.towers_of(config_of("images"), OURS, tmp_path).audio is None


def test_a_processor_says_how_images_are_prepared(tmp_path):
    settings = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}, "image_mean": [0.4] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert sft.towers_of(config_of("images"), OURS, tmp_path).image.mean == (0.4, 0.4, 0.4)
    assert sft.towers_of(config_of("images", init_from=str(tmp_path)), OURS, tmp_path / "run").image.mean[0] == 0.4
    with pytest.raises(UserError, match="tiles of 64 pixels, and model.vision.image_size=32"):
        sft.towers_of(config_of("images", vision__image_size=32), OURS, tmp_path)


@pytest.mark.parametrize(
    "symbols, words, style",
    [
        (["<image>"], "images", LLAVA),
        (["<image>", "<fake_token_around_image>"], "images", IDEFICS3),
        (["x", "[AUDIO]"], "audio", VOXTRAL),
    ],
)
def test_the_style_is_that_of_the_tokens(symbols, words, style, tmp_path):
    assert sft.towers_of(config_of(words), Symbols(*symbols), tmp_path).style == style


@pytest.mark.parametrize(
    "words, keys, complaint",
    [
        ("images", {"vision__token_id": 12}, "model.vision.token_id=12: no way to write media"),
        ("images", {"sequence_length": 16}, "sequence_length=16 is too short for one image of model.vision, which has 16"),
        ("audio", {"audio__num_frames": 150}, "model.audio.num_frames=150 must be a multiple of 100"),
        ("audio", {"audio__num_frames": 4000}, "model.audio.num_frames=4000: a window has at most 30 seconds"),
    ],
)
def test_what_does_not_go_together_is_refused(words, keys, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        sft.towers_of(config_of(words, **keys), OURS, tmp_path)


@pytest.mark.parametrize("positions, tied", [("rotary", False), ("learned", True)])
def test_the_encoder_is_trained_alone_whatever_the_language_model(positions, tied):
    config = senses_config.get_config("images,audio,encoder")
    config.model.update(positions=positions, tie_embeddings=tied, norm="layer")
    config.model.vision.token_id, config.model.audio.token_id = 10, 11
    model = model_of(config)
    trained = arrays_of(nnx.filter_state(skeleton(model)[1], trainable(model)))
    assert {name.partition(".")[0] for name in trained} == {"vision", "audio"}


def test_text_has_no_tokens_of_media():
    model = model_of(config_of())
    check_text(model, [np.arange(10), [12, 13]])
    check_text(model_of(config_of("audio")), [[10]])  # no encoder owns it
    for ids, tower in ((np.array([[1, 10]]), "vision"), ([11], "audio")):
        where = f"with the token {np.max(ids)}, which is the place of a vector of model.{tower}"
        with pytest.raises(UserError, match=where):
            check_text(model, [[1, 2], ids])


def test_stages_freeze_what_they_leave_alone():
    assert senses_config.get_config("audio").model.frozen == ""
    assert "vision" not in senses_config.get_config("encoder").model.frozen
    assert "projector" in senses_config.get_config("audio,projector").model.frozen
    with pytest.raises(UserError, match="eyes"):
        senses_config.get_config("eyes")
