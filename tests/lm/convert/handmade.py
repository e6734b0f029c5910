"""A small Llama as it is published, made here byte by byte, and what lies in a folder afterwards."""

import json
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from lm.convert import files, to_workdir
from lm.parallel.mesh import make_mesh

BF16 = np.dtype(ml_dtypes.bfloat16)
CODES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", BF16: "BF16", np.dtype(np.int64): "I64"}
V, D, F, H, G, K, L = 48, 32, 40, 8, 4, 4, 3
HF = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": G,
    "head_dim": K,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
LAYER = {
    "input_layernorm": (D,),
    "self_attn.q_proj": (H * K, D),
    "self_attn.k_proj": (G * K, D),
    "self_attn.v_proj": (G * K, D),
    "self_attn.o_proj": (D, H * K),
    "post_attention_layernorm": (D,),
    "mlp.gate_proj": (F, D),
    "mlp.up_proj": (F, D),
    "mlp.down_proj": (D, F),
}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def llama(dtype=BF16, seed: int = 0, **dtypes) -> dict[str, np.ndarray]:
    """Random weights by published name; `dtypes` says otherwise for names with that in them."""
    shapes = {EMBEDDING: (V, D), "model.norm.weight": (D,), HEAD: (V, D)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(L) for name, shape in LAYER.items()}
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape, np.float32) / 8 for name, shape in shapes.items()}
    kinds = {name: next((d for part, d in dtypes.items() if part in name), dtype) for name in tensors}
    return {name: x.astype(kinds[name]) for name, x in tensors.items()}


def written(folder: Path, tensors: dict[str, np.ndarray], hf=HF, shards: int = 1) -> Path:
    """A checkpoint's folder, by the format's description alone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf))
    names = [sorted(tensors)[i::shards] for i in range(shards)]
    index = {}
    for i, part in enumerate(names, 1):
        file = "model.safetensors" if shards == 1 else f"model-{i:05}-of-{shards:05}.safetensors"
        index |= {name: file for name in part}
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for name in part:
            header[name] = {"dtype": CODES[tensors[name].dtype], "shape": tensors[name].shape}
            header[name]["data_offsets"] = [len(data), len(data) + tensors[name].nbytes]
            data += tensors[name].tobytes()
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def contents(folder: Path) -> dict[str, tuple]:
    """Every tensor of a checkpoint as (dtype, shape, bytes)."""
    found = files.tensors_of(folder)
    return {name: (t.dtype, t.shape, t.read().tobytes()) for name, t in found.items()}


def as_contents(tensors: dict[str, np.ndarray]) -> dict[str, tuple]:
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in tensors.items()}


def imported(folder: Path, workdir: Path, **mesh: int) -> Path:
    """The workdir, through a mesh of all devices, or of one."""
    to_workdir.to_workdir(folder, workdir, make_mesh(mesh) if mesh else make_mesh({}, jax.devices()[:1]))
    return workdir
