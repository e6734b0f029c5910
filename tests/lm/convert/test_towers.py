"""Models that see or hear, into workdirs and out again; encoders, attached to a language model."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from lm.convert.source import open_source
from lm.convert.to_published import to_published
from lm.convert.to_workdir import to_workdir
from lm.errors import UserError
from lm.infer.load import load_model
from lm.model.inputs import Inputs
from lm.model.media import Media
from lm.parallel.mesh import make_mesh
from lm.runs.checkpoint import named, plain
from tests.lm.convert import multimodal_peers, peers
from tests.lm.convert.handmade import llama, written
from tests.slow import all_but

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
load_file = pytest.importorskip("safetensors.numpy").load_file

MESHES = [{}, {"fsdp": 4, "tensor": 2}]


@functools.cache
def mesh_of(index: int):
    return make_mesh(MESHES[index], jax.devices() if MESHES[index] else jax.devices()[:1])


@pytest.mark.parametrize("name", all_but(("smolvlm",), ("smolvlm", "llava-clip", "voxtral")))
def test_a_folder_comes_back_from_a_workdir_bit_for_bit(name, tmp_path):
    folder = tmp_path / "theirs"
    _, tensors = peers.saved(multimodal_peers.peer(name), folder)
    (folder / "preprocessor_config.json").write_text('{"size": 1}')
    to_workdir(folder, tmp_path / "run", mesh_of(int(name == "smolvlm")))
    to_published(tmp_path / "run", tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    renamed = {key.replace("vision_tower.", "vision_tower.vision_model."): x for key, x in tensors.items()}
    assert again.keys() == renamed.keys()
    for key, x in renamed.items():
        np.testing.assert_array_equal(again[key], x, strict=True)
    hf = json.loads((tmp_path / "again/config.json").read_text())
    assert hf["model_type"] == json.loads((folder / "config.json").read_text())["model_type"]
    assert (tmp_path / "again/preprocessor_config.json").read_text() == '{"size": 1}'


def siglip():
    config = transformers.SiglipVisionConfig(**{**multimodal_peers.VISION, "image_size": 24})
    return transformers.SiglipVisionModel._from_config(config, attn_implementation="eager")


def clip():
    config = transformers.CLIPConfig(
        vision_config={**multimodal_peers.VISION, "image_size": 24, "patch_size": 8},
        text_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9),
    )
    return transformers.CLIPModel._from_config(config, attn_implementation="eager")


def whisper():
    config = transformers.WhisperConfig(**multimodal_peers.WHISPER)
    return transformers.WhisperForConditionalGeneration._from_config(config, attn_implementation="eager")


# By name: the model, its encoder, our section, the family that the whole model is exported to.
ENCODERS = {
    "siglip": (siglip, lambda model: model, "vision", "idefics3"),
    "clip": (clip, lambda model: model.vision_model, "vision", "llava"),
    "whisper": (whisper, lambda model: model.model.encoder, "audio", "voxtral"),
}


@pytest.mark.parametrize("name", all_but(("whisper",), ENCODERS))
def test_an_encoder_is_attached_to_a_language_model(name, tmp_path):
    make, encoder_of, section, family = ENCODERS[name]
    model = multimodal_peers.randomized(make().float().eval())
    peers.saved(model, tmp_path / "encoder")
    written(tmp_path / "text", llama())
    to_workdir(tmp_path / "text", tmp_path / "run", mesh_of(int(name == "clip")), {section: (tmp_path / "encoder", 3)})

    ours = load_model(tmp_path / "run", "float32")
    before = {key: np.asarray(x) for key, x in named(plain(nnx.split(load_model(tmp_path / "text"))[1])).items()}
    after = {key: np.asarray(x) for key, x in named(plain(nnx.split(ours)[1])).items()}
    for key, x in before.items():
        np.testing.assert_array_equal(after[key], x, strict=True)

    encoder, rng = encoder_of(model), np.random.default_rng(0)
    if section == "audio":
        x = rng.standard_normal((2, 32, 6)).astype(np.float32)
        states = jax.jit(lambda model: model.audio.states(x))(ours)
        expected = encoder(torch.tensor(x.swapaxes(1, 2))).last_hidden_state
    else:
        x = rng.standard_normal((2, 24, 24, 3)).astype(np.float32)
        states = jax.jit(lambda model: model.vision.states(x))(ours)
        out = encoder(torch.tensor(np.moveaxis(x, -1, 1)), output_hidden_states=True)
        expected = out.hidden_states[-2] if name == "clip" else out.last_hidden_state
    np.testing.assert_allclose(states, expected.detach().numpy(), rtol=0, atol=1e-4)
    media = Media(audio_BNTM=x[None]) if section == "audio" else Media(images_BNHWC=x[None])
    tokens = np.array([[1, 3, 3, 2]])
    assert np.abs(np.subtract(*jax.jit(lambda model: (model(Inputs(tokens, media=media)), model(tokens)))(ours))).max() > 1e-6

    to_published(tmp_path / "run", tmp_path / "whole")
    assert json.loads((tmp_path / "whole/config.json").read_text())["model_type"] == family


def test_what_cannot_be_attached(tmp_path):
    written(tmp_path / "text", llama())
    with pytest.raises(UserError, match="--vision_tower=.*model_type='llama' in config.json is none of siglip, .*clip"):
        to_workdir(tmp_path / "text", tmp_path / "run", mesh_of(0), {"vision": (tmp_path / "text", 3)})
    peers.saved(siglip(), tmp_path / "encoder")
    with pytest.raises(UserError, match="model.vision.token_id=10000000 must be the id of a token"):
        to_workdir(tmp_path / "text", tmp_path / "run", mesh_of(0), {"vision": (tmp_path / "encoder", 10_000_000)})
    to_workdir(tmp_path / "text", tmp_path / "run", mesh_of(0), {"vision": (tmp_path / "encoder", 3)})
    with pytest.raises(UserError, match="the model has an encoder in model.vision"):
        to_workdir(tmp_path / "run", tmp_path / "other", mesh_of(0), {"vision": (tmp_path / "encoder", 3)})
    assert open_source(tmp_path / "run").config.vision.token_id == 3
