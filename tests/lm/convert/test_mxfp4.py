"""Weights in MXFP4, as gpt-oss is published, against transformers' own reading."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lm.convert.mxfp4 import dequantized
from lm.convert.published import open_published
from lm.errors import UserError
from lm.infer.load import load_model
from lm.model.inputs import Inputs
from tests.lm.convert import peers
from tests.lm.convert.peer_configs import COMMON, PLAIN

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.numpy")
E, R, G = 3, 6, 2


def packed(E: int, R: int, G: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random blocks and scales."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (E, R, G, 16), np.uint8), rng.integers(120, 126, (E, R, G), np.uint8)


def test_numbers_are_those_of_transformers():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = packed(E, R, G)
    scales[0, 0] = 0, 255  # the smallest and the largest exponent
    theirs = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales)).float().numpy()
    ours = dequantized(blocks, scales)
    assert ours.shape == (E, 32 * G, R) and str(ours.dtype) == "bfloat16"
    np.testing.assert_array_equal(ours.astype(np.float32), theirs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small gpt-oss whose experts are stored in MXFP4, and transformers' model with the numbers of these."""
    hf = {**COMMON, "hidden_size": 64, "intermediate_size": 32, "head_dim": 16, "num_local_experts": 4, "sliding_window": 8}
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**hf, num_experts_per_tok=2, rope_parameters=PLAIN))
    there = tmp_path_factory.mktemp("gpt-oss")
    hf, tensors = peers.saved(model, there)
    stored = {}
    for name, x in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            blocks, scales = packed(x.shape[0], x.shape[2], x.shape[1] // 32, len(name))
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            tensors[name] = dequantized(blocks, scales).astype(np.float32)
        else:
            stored[name] = x
    model.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()})
    safetensors.save_file(stored, there / "model.safetensors", metadata={"format": "pt"})
    quantized = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (there / "config.json").write_text(json.dumps({**hf, "quantization_config": quantized}))
    return there, model.eval()


def test_a_folder_is_read_to_the_same_logits(folder):
    there, model = folder
    tokens = peers.batch()[0][:1]
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    logits = load_model(there, "float32")(Inputs(jnp.asarray(tokens)))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_blocks_without_scales_give_one_line(folder, tmp_path):
    there, _ = folder
    stored = safetensors.load_file(there / "model.safetensors")
    name = next(name for name in stored if name.endswith("_scales"))
    safetensors.save_file({key: x for key, x in stored.items() if key != name}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((there / "config.json").read_text())
    with pytest.raises(UserError, match="is no MXFP4 weight"):
        open_published(tmp_path)
