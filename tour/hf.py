"""Read and write the folder of a Llama or Qwen3 model as `transformers` does: config.json and safetensors files.

A safetensors file is the length n of a header (8 bytes), n bytes of JSON {name: {dtype, shape, data_offsets}}, and
the data. torch.nn.Linear holds [outputs, inputs] with heads flattened; ours is [inputs, outputs] with an axis of
heads.
"""

import json
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


def read(folder: Path) -> tuple[Params, Config]:
    """Return the weights, float32 and split over the mesh, and the config of a folder."""
    config = config_of(json.loads((folder / "config.json").read_text()))
    theirs = {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in tensors(file)}
    weights = declare(config)
    params: Params = {name: theirs[ENDS[name]] for name in weights if name != "layers"} | {"layers": {}}
    for name, weight in weights["layers"].items():  # [outputs, inputs] → [inputs, outputs], then heads get their axis
        matrices = [theirs[f"model.layers.{n}.{TENSORS[name]}.weight"].T for n in range(config.num_layers)]
        params["layers"][name] = np.stack(matrices).reshape(weight.shape)
    return jax.device_put(jax.tree.map(lambda x: np.asarray(x, np.float32), params), shardings(weights)), config


def tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and the tensors of a safetensors file."""
    data = np.memmap(file, np.uint8, "r")
    begin = 8 + int.from_bytes(data[:8], "little")
    for name, about in json.loads(bytes(data[8:begin])).items():
        if name != "__metadata__":
            first, end = about["data_offsets"]
            yield name, data[begin:][first:end].view(DTYPES[about["dtype"]]).reshape(about["shape"])


def write(folder: Path, params: Params, config: Config) -> None:
    """Write a folder that `transformers` and vLLM read. Experts have no place there; the tokenizer is the caller's."""
    kind = "qwen3" if config.qk_norm else "llama"
    about = {"architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind, "head_dim": config.head_dim}
    about["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    about |= {theirs: getattr(config, ours) for ours, theirs in KEYS.items()}
    theirs = {ENDS[name]: np.asarray(x, "<f4") for name, x in params.items() if name in ENDS}
    for name, weight in declare(config)["layers"].items():
        for n, x in enumerate(np.asarray(params["layers"][name], "<f4")):
            matrix = x.reshape(int(np.prod(weight.shape[1 : 1 + weight.inputs])), -1).T if weight.inputs else x
            theirs[f"model.layers.{n}.{TENSORS[name]}.weight"] = matrix
    header, end = {}, 0
    for name, x in theirs.items():
        header[name] = {"dtype": "F32", "shape": x.shape, "data_offsets": [end, end + x.nbytes]}
        end += x.nbytes
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(about, indent=2))
    with (folder / "model.safetensors").open("wb") as file:
        file.writelines([len(text).to_bytes(8, "little"), text, *(x.tobytes() for x in theirs.values())])


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    write(Path("runs/tour/tiny"), init(declare(TINY), seed=0), TINY)
    print(read(Path("runs/tour/tiny"))[1])
