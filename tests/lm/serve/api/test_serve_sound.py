"""Sound and images in /v1/chat/completions with a model, a tokenizer and a chat template of ours."""

import base64
import dataclasses

import httpx
import numpy as np
import openai
import pytest
from flax import nnx

import lm
from data.media.audio import RATE, encode_wav
from data.media.prompts import AUDIO, IMAGE
from lm.config import Audio, Vision
from lm.convert.multimodal.processor import towers_of
from lm.errors import UserError
from lm.infer.engine.engine import Engine
from lm.infer.engine.room import Capacity
from lm.model.transformer import skeleton
from lm.serve.api.service import Service
from tests.data.media.pictures import picture, saved
from tests.lm.serve.conftest import CONFIG, client_of, serving
from tests.lm.weights import drawn as parameters

pytestmark = pytest.mark.usefixtures("quick")
VISION = Vision(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=24, image_size=8, patch_size=2, shuffle=2)
HEARS = Audio(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=24, num_mels=8, num_frames=100, stack=5)
WAVE = (0.4 * np.sin(np.arange(RATE + 200) / 9)).astype(np.float32)
COUNT = 12


def base64_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


SOUND = {"type": "input_audio", "input_audio": {"data": base64_of(encode_wav(WAVE)), "format": "wav"}}
NOISE = {"type": "input_audio", "input_audio": {"data": base64_of(encode_wav(WAVE[::-1] ** 2)), "format": "wav"}}
PICTURE = {"type": "image_url", "image_url": {"url": f"data:;base64,{base64_of(saved(picture(9, 9)))}"}}


@pytest.fixture(scope="module")
def config(tokenizer):
    ids = tokenizer.controls
    vision, audio = dataclasses.replace(VISION, token_id=ids[IMAGE]), dataclasses.replace(HEARS, token_id=ids[AUDIO])
    return dataclasses.replace(CONFIG, vision=vision, audio=audio)


def test_answers_are_those_of_generate(config, tokenizer, tmp_path):
    model = nnx.merge(skeleton(config)[0], parameters(config, scale=4.0))
    towers = towers_of(tmp_path, config, tokenizer)
    talks = [[{"role": "user", "content": [*parts, {"type": "text", "text": "the cat"}]}]
             for parts in ([], [SOUND], [NOISE], [PICTURE, SOUND], [SOUND, PICTURE])]  # fmt: skip
    expected = lm.generate(model, tokenizer, talks, towers=towers, max_new_tokens=COUNT, temperature=0)
    assert len(set(expected)) == len(talks)
    engine = Engine(model, tokenizer, Capacity(rows=4, budget=16, pages=600, page=16))
    service = Service(engine, "own", towers=towers)
    with serving(service) as url:
        client = client_of(url)
        for talk, said in zip(talks, expected, strict=True):
            answer = client.chat.completions.create(model="own", messages=talk, temperature=0, max_tokens=COUNT)
            assert answer.choices[0].message.content == said
        found = httpx.post(f"{url}/tokenize", json={"messages": talks[3]}).json()["tokens"]
        # A second and a bit are two windows of ten tokens.
        assert found.count(tokenizer.controls[AUDIO]) == 20 and found.count(tokenizer.controls[IMAGE]) == 4
        for file, words in ((b"RIFF", "no audio that can be read"), (encode_wav(WAVE)[:-100], "the audio ends after")):
            part = {"type": "input_audio", "input_audio": {"data": base64_of(file), "format": "wav"}}
            with pytest.raises(openai.BadRequestError, match=f"message 1, part 1: {words}"):
                client.chat.completions.create(model="own", messages=[{"role": "user", "content": [part]}])
        places = {"model": "own", "prompt": [5, *[tokenizer.controls[IMAGE]] * 4], "max_tokens": 2}
        with pytest.raises(openai.BadRequestError, match="a prompt without media has 4 tokens"):
            client.completions.create(**places)
    engine.close()


def test_settings_that_do_not_fit(config, tokenizer, tmp_path):
    towers = towers_of(tmp_path, config, tokenizer)
    assert (towers.image.size, towers.image_tokens, towers.audio[:2], towers.audio_tokens) == (8, 4, (8, 1), 10)
    assert towers_of(tmp_path, CONFIG, tokenizer) is None
    other = dataclasses.replace(config, vision=dataclasses.replace(config.vision, token_id=7))
    with pytest.raises(UserError, match="no way to write media"):
        towers_of(tmp_path, other, tokenizer)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor", "size": 16}')
    with pytest.raises(UserError, match="tiles of 16 pixels, and model.vision.image_size=8"):
        towers_of(tmp_path, config, tokenizer)
    (tmp_path / "preprocessor_config.json").unlink()
    sound = '{"feature_extractor": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80}}'
    (tmp_path / "processor_config.json").write_text(sound)
    with pytest.raises(UserError, match="windows of 30 s with 80 mels"):
        towers_of(tmp_path, config, tokenizer)
