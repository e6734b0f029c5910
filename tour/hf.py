"""Read and write the folder of a Llama or Qwen3 model as `transformers` does: config.json and safetensors files.

A safetensors file is the length n of a header (8 bytes), n bytes of JSON {name: {dtype, shape, data_offsets}}, and
the data. torch.nn.Linear holds [outputs, inputs] with heads flattened; ours is [inputs, outputs] with an axis of
heads.
"""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tour.mesh import make_mesh
from tour.model import TINY, Config, Params, declare, init, shardings

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": jnp.dtype(jnp.bfloat16)}
# fmt: off
TENSORS = {  # of a layer: our name, theirs
    "attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm",
    "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "output": "self_attn.o_proj",
    "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}
KEYS = {  # of Config: of config.json
    "vocab_size": "vocab_size", "num_layers": "num_hidden_layers", "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "mlp_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps", "tie_embeddings": "tie_word_embeddings",
}
# fmt: on
REFUSED = ("attention_bias", "mlp_bias", "use_sliding_window", "quantization_config")
ENDS = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}


def config_of(hf: dict[str, Any]) -> Config:
    """Return our config of the content of config.json. Raises ValueError for what the tour cannot compute."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    is_scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    if hf["model_type"] not in ("llama", "qwen3") or is_scaled or any(hf.get(name) for name in REFUSED):
        raise ValueError(f"the tour does not read this {hf['model_type']}; lm/convert knows more families and settings")
    return Config(
        **{ours: hf[theirs] for ours, theirs in KEYS.items()},
        head_dim=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        rope_theta=hf.get("rope_theta") or rope.get("rope_theta", 10_000.0),
        qk_norm=hf["model_type"] == "qwen3",
    )


def hf_config(c: Config) -> dict[str, Any]:
    """Return the content of config.json; the inverse of `config_of`. A model with experts has none here."""
    kind = "qwen3" if c.qk_norm else "llama"
    about = {"architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind, "head_dim": c.head_dim}
    about["rope_parameters"] = {"rope_type": "default", "rope_theta": c.rope_theta}
    return about | {theirs: getattr(c, ours) for ours, theirs in KEYS.items()}


def read(folder: Path) -> tuple[Params, Config]:
    """Return the weights, float32 and split over the mesh, and the config of a folder."""
    config = config_of(json.loads((folder / "config.json").read_text()))
    theirs = {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in tensors(file)}
    weights = declare(config)

    def ours(name: str, layer: int) -> np.ndarray:
        """Return a weight of one layer: [outputs, inputs] becomes [inputs, outputs], then heads get their axis."""
        return theirs[f"model.layers.{layer}.{TENSORS[name]}.weight"].T.reshape(weights["layers"][name].shape[1:])

    layers = {name: np.stack([ours(name, n) for n in range(config.num_layers)]) for name in weights["layers"]}
    params = {name: theirs[ENDS[name]] for name in weights if name != "layers"} | {"layers": layers}
    where = shardings(weights)
    return jax.tree.map(lambda x, there: jax.device_put(np.asarray(x, np.float32), there), params, where), config


def tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and the tensors of a safetensors file."""
    data = np.memmap(file, np.uint8, "r")
    begin = 8 + struct.unpack("<Q", data[:8].tobytes())[0]
    header = json.loads(data[8:begin].tobytes())
    for name, about in header.items():
        if name != "__metadata__":
            first, end = about["data_offsets"]
            yield name, data[begin + first : begin + end].view(DTYPES[about["dtype"]]).reshape(about["shape"])


def write(folder: Path, params: Params, config: Config) -> None:
    """Write a folder that `transformers` and vLLM read. The tokenizer's files are the caller's."""
    theirs = {ENDS[name]: x for name, x in params.items() if name in ENDS}
    for name, stack in params["layers"].items():
        inputs = max(1, declare(config)["layers"][name].inputs)
        for n, x in enumerate(np.asarray(stack)):
            matrix = x if x.ndim == 1 else x.reshape(int(np.prod(x.shape[:inputs])), -1).T
            theirs[f"model.layers.{n}.{TENSORS[name]}.weight"] = matrix
    header, at = {}, 0
    for name, x in theirs.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [at, at + 4 * x.size]}
        at += 4 * x.size
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config), indent=2))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for x in theirs.values():
            file.write(np.asarray(x, "<f4").tobytes())


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tour/tiny")  # of a model that you have, or a new one
    if len(sys.argv) == 1:
        write(folder, init(declare(TINY), seed=0), TINY)
    print(read(folder)[1])
