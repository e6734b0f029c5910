"""Llama 2 and 3: the plain decoder, and functions shared with the families derived from it."""

from collections.abc import Callable, Mapping, Sequence

from lm.config import LayerKind, ModelConfig
from lm.convert.rotary import keys_for, rope_of
from lm.convert.rows import Family, Row, dense, linear, same, table
from lm.errors import UserError

DEFAULTS = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False,
}  # fmt: skip

# GELU's tanh approximation and the exact form differ by 1e-3 in the logits.
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh", "quick_gelu": "quick_gelu", "relu2": "relu2",
}  # fmt: skip
ACTIVATION_NAMES = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu2": "relu2",
}


def decoder(hf: Mapping, **more) -> ModelConfig:
    """Return a ModelConfig from the keys that these families share, updated by `more`. `hf` includes the family's defaults."""
    if (hf.get("quantization_config") or {"quant_method": "mxfp4"}).get("quant_method") != "mxfp4":
        raise UserError("quantization_config in config.json: quantised weights cannot be read; use the unquantised model")
    heads = hf["num_attention_heads"]
    keys = {
        "vocab_size": hf["vocab_size"],
        "num_layers": hf["num_hidden_layers"],
        "embed_dim": hf["hidden_size"],
        "num_heads": heads,
        "num_kv_heads": hf.get("num_key_value_heads") or heads,
        "mlp_dim": hf["intermediate_size"],
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // heads,
        "max_positions": hf["max_position_embeddings"],
        "norm_eps": hf["rms_norm_eps"],
        "tie_embeddings": bool(hf["tie_word_embeddings"]),
        "dtype": "bfloat16" if (hf.get("dtype") or hf.get("torch_dtype")) == "bfloat16" else "float32",  # also for float16
    }
    if "activation" not in more:
        keys["activation"] = activation(hf, "hidden_act")
    if "rope" not in more:
        keys["rope"] = rope_of(hf)
    return ModelConfig(**{**keys, **more})


def described(config: ModelConfig, model_type: str, architecture: str) -> dict:
    """Return a config.json for transformers 5 and for readers of the older keys; the inverse of `decoder`.

    Special tokens are None here, because the tokenizer defines them; missing keys would mean the family's defaults.
    """
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **keys_for(config.rope),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": config.dtype,
    }


def activation(hf: Mapping, key: str) -> str:
    if hf[key] not in ACTIVATIONS:
        raise UserError(f"{key}={hf[key]!r} in config.json is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[hf[key]]


def refuse(hf: Mapping, **expected) -> None:
    """Raise UserError if a key of the config has another value than the expected one."""
    for key, value in expected.items():
        if key in hf and hf[key] is not None and hf[key] != value:
            raise UserError(f"{key}={hf[key]!r} in config.json cannot be expressed: only {value!r} can")


def windows(window: int | None, layer_types: Sequence[str] | None = None) -> dict:
    """Return attention_pattern and window for transformers' `layer_types`; without `layer_types` every layer is local."""
    if layer_types is None:
        layer_types = ("sliding_attention" if window else "full_attention",)
    names = {"sliding_attention": "local", "full_attention": "global"}
    for name in layer_types:
        if name not in names:
            raise UserError(f"layer_types in config.json holds {name!r}, which is none of {', '.join(names)}")
        if name == "sliding_attention" and not window:
            raise UserError("layer_types in config.json has sliding_attention, but sliding_window gives no window")
    return {"attention_pattern": repeating([names[name] for name in layer_types]), "window": window or 0}


def window_of(config: ModelConfig) -> int | None:
    return config.window if any(kind.local for kind in config.layer_kinds) else None


def layer_types(config: ModelConfig) -> list[str]:
    return ["sliding_attention" if kind.local else "full_attention" for kind in config.layer_kinds]


def repeating(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest pattern whose repetition gives these kinds."""
    sizes = range(1, len(kinds) + 1)
    size = next((n for n in sizes if all(kinds[i] == kinds[i % n] for i in range(len(kinds)))), 0)
    return tuple(kinds[:size])


def attention(
    config: ModelConfig, at: str = "model.layers.{layer}.self_attn.", names: Sequence[str] = ("q_norm", "k_norm")
) -> list[Row]:
    """Return the rows of grouped-query attention. names: of the norms of queries and keys."""
    D, H, G, K = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
    found = []
    for ours, theirs, heads in (("query", "q_proj", H), ("key", "k_proj", G), ("value", "v_proj", G)):
        found += dense(f"attention.{ours}", f"{at}{theirs}", (D,), (heads, K), config.qkv_bias)
    found += dense("attention.output", f"{at}o_proj", (H, K), (D,), config.output_bias)
    if config.qk_norm in ("head", "full"):
        for ours, theirs, heads in (("query_norm", names[0], H), ("key_norm", names[1], G)):
            shape = (K,) if config.qk_norm == "head" else (heads, K)
            found.append(same(f"attention.{ours}.scale", f"{at}{theirs}.weight", *shape))
    return found


def norms(config: ModelConfig, names: Mapping[str, str], at: str = "model.layers.{layer}.") -> list[Row]:
    """Return the rows of norms of the residual stream. names: theirs by ours."""
    parts = [("scale", "weight")] + [("bias", "bias")] * (config.norm == "layer" and config.norm_bias)
    D = config.embed_dim
    return [same(f"{ours}.{a}", f"{at}{theirs}.{b}", D) for ours, theirs in names.items() for a, b in parts]


def pre_norms(config: ModelConfig, at: str = "model.layers.{layer}.") -> list[Row]:
    return norms(config, {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}, at)


def feed_forward(
    config: ModelConfig, at: str = "model.layers.{layer}.mlp.", ours: str = "feed_forward", dim: int = 0
) -> list[Row]:
    """Return the rows of a feed-forward with `dim` hidden units; 0: mlp_dim."""
    D, F = config.embed_dim, dim or config.mlp_dim
    found = []
    for name, inputs, outputs in (("gate", D, F), ("up", D, F), ("down", F, D))[not config.gated :]:
        found += dense(f"{ours}.{name}", f"{at}{name}_proj", (inputs,), (outputs,), config.mlp_bias)
    return found


def fused_feed_forward(
    config: ModelConfig,
    at: str = "model.layers.{layer}.mlp.",
    ours: str = "feed_forward",
    dim: int = 0,
    names: Sequence[str] = ("gate_up_proj", "down_proj"),
) -> list[Row]:
    """Return the rows of a gated feed-forward whose gate and up are one matrix. names: of that and of down; dim: as above."""
    D, F, gate_up = config.embed_dim, dim or config.mlp_dim, f"{at}{names[0]}.weight"
    return [
        linear(f"{ours}.gate.weight", gate_up, (D,), (2 * F,), (0, F)),
        linear(f"{ours}.up.weight", gate_up, (D,), (2 * F,), (F, 2 * F)),
        linear(f"{ours}.down.weight", f"{at}{names[1]}.weight", (F,), (D,)),
    ]


def experts(
    config: ModelConfig, at: str, router: str, names: Sequence[str] = ("gate_proj", "up_proj", "down_proj")
) -> list[Row]:
    """Return the rows of a layer's router and experts, one tensor per expert. names: of gate, up and down."""
    D, F = config.embed_dim, config.moe.expert_dim or config.mlp_dim
    sizes = ((D, F), (D, F), (F, D))
    found = [linear("feed_forward.router", f"{at}{router}.weight", (D,), (config.moe.num_experts,))]
    for ours, theirs, (inputs, outputs) in list(zip(("gate", "up", "down"), names, sizes, strict=True))[not config.gated :]:
        found.append(linear(f"feed_forward.{ours}", f"{at}experts.{{expert}}.{theirs}.weight", (inputs,), (outputs,)))
    return found


def ends(config: ModelConfig) -> list[Row]:
    D, V = config.embed_dim, config.vocab_size
    found = [table("embedding", "model.embed_tokens.weight", V, D), *norms(config, {"norm": "norm"}, "model.")]
    return found if config.tie_embeddings else [*found, table("head", "lm_head.weight", V, D)]


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    return [*attention(config), *pre_norms(config), *feed_forward(config)]


def derived(
    model_type: str,
    architecture: str,
    defaults: Mapping,
    *,
    read: Callable[[Mapping], dict],
    write: Callable[[ModelConfig], dict],
    **other,
) -> Family:
    """Return a family whose config.json is that of Llama but for some keys.

    Args:
      defaults: of keys of config.json, where they are not Llama's.
      read: returns keys of ModelConfig from config.json's content with all defaults. write: returns keys of config.json.
      other: fields of Family that are not Llama's, such as `rows`.
    """

    def from_hf(hf: Mapping) -> ModelConfig:
        hf = {**DEFAULTS, **defaults, **hf}
        return decoder(hf, **read(hf))

    def to_hf(config: ModelConfig) -> dict:
        return {**described(config, model_type, architecture), **write(config)}

    llamas = {"rows": rows, "ends": ends, "ignored": (r".*rotary_emb\.inv_freq",), "gguf": "llama"}
    return Family((model_type,), from_hf, to_hf, **(llamas | other))


def biases(hf: Mapping) -> dict:
    """Return the biases of attention, which a config has on all four matrices or on none."""
    bias = bool(hf["attention_bias"])
    return {"qkv_bias": bias, "output_bias": bias}


OF_IMAGES = r"(model\.)?(vision_tower|multi_modal_projector)\..*"  # tensors of a checkpoint that sees


def text_config(hf: Mapping, *shared: str) -> dict:
    """Return the config of the language model in that of a model that sees. shared: keys that may stand outside."""
    if "text_config" not in hf:
        return dict(hf)
    outer = {key: hf[key] for key in ("dtype", "torch_dtype", "quantization_config", *shared) if key in hf}
    return {**outer, **hf["text_config"]}


def text_name(name: str) -> str:
    """Return the language model's name of a tensor. A checkpoint that sees has one of two prefixes for it."""
    for prefix, plain in (("model.language_model.", "model."), ("language_model.", "")):
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def also_seeing(model_type: str, text: Family) -> Family:
    """Return a family that also reads the language model of a checkpoint that sees, whose config.json has this model_type."""
    return text._replace(
        model_types=(model_type, *text.model_types),
        from_hf=lambda hf: text.from_hf(text_config(hf, "tie_word_embeddings")),
        canonical=text_name,
    )


LLAMA = derived(
    "llama",
    "LlamaForCausalLM",
    {},
    read=lambda hf: {**biases(hf), "mlp_bias": bool(hf["mlp_bias"])},
    write=lambda config: {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias},
)
