"""Models that see or hear, into workdirs and out again."""

import functools
import json

import jax
import numpy as np
import pytest

from lm.config import Quantization
from lm.convert.to_published import to_published
from lm.convert.to_workdir import quantized_to_workdir, to_workdir
from lm.parallel.mesh import make_mesh
from tests.lm.convert import multimodal_peers, peers
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
    quantized_to_workdir(tmp_path / "run", tmp_path / "int8", Quantization(bits=8), mesh_of(0))
    for name in ("again", "int8"):
        assert (tmp_path / name / "preprocessor_config.json").read_text() == '{"size": 1}'
