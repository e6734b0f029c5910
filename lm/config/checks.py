"""Whether a model's config can be built. Configs come from strangers too, so each value is checked before it is used."""

import dataclasses
import functools
from typing import Any, NamedTuple

from lm.config.towers import check_towers
from lm.errors import UserError
from lm.files.untrusted import check_pattern, short
from lm.files.user_files import is_own

MAX, MAX_LAYERS = 2**31 - 1, 10_000  # of sizes, since ids are int32
MAX_EXPERTS, MAX_MTP, LONGEST_BLOCK, MAX_KERNEL = 10_000, 100, 100, 64
RECURRENT = ("conv", "delta", "mamba")  # kinds of layers with a state of fixed size
PATTERNS = {
    "attention_pattern": ("global", "local", "chunk", *RECURRENT, "none"),
    "mlp_pattern": ("dense", "moe", "none"),
    "rotary_pattern": ("rotary", "none"),
}
REMAT = ("none", "matmuls", "attention", "full")
ACROSS = ("ring", "all_gather")
LOW_PRECISION = ("none", "int8", "float8")
MIN = dict.fromkeys(("vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "mlp_dim", "max_positions"), 1)
MIN |= {"pipeline.repeats": 1, "adapter.rank": 0, "remat_matmuls_last": 0}
MIN |= dict.fromkeys(("shared_kv_layers", "laurel_rank", "altup_streams", "layer_embed_dim", "layer_embed_vocab"), 0)


class Checked(NamedTuple):
    """A ModelConfig (lm/config/model.py, which imports this file) and how to refuse it."""

    config: Any

    def value(self, key: str) -> Any:
        return functools.reduce(getattr, key.split("."), self.config)

    def refuse(self, key: str, why: str) -> None:
        """Raises: UserError."""
        raise UserError(f"model.{key}={short(self.value(key))} {why}")

    def at_least(self, key: str, least: int) -> None:
        if self.value(key) < least:
            self.refuse(key, f"must be at least {least}")

    def one_of(self, key: str, *values: object) -> None:
        value = self.value(key)
        for item in value if isinstance(value, tuple) else (value,):
            if item not in values:
                self.refuse(key, f"is none of {', '.join(map(str, values))}")


def check(config: Any) -> None:
    """Raise UserError for a ModelConfig that cannot be built."""
    _check_kinds(config)
    checked = Checked(config)
    for key, least in MIN.items():
        checked.at_least(key, least)
    parts = _check_layers, _check_recurrent, _check_shared_keys, _check_streams, _check_choices, _check_rope, _check_latent
    for part in (*parts, _check_experts, _check_training):
        part(config, checked)
    check_towers(config, checked)


def _check_layers(config: Any, checked: Checked) -> None:
    if config.head_dim < 0:
        checked.refuse("head_dim", "must be at least 2, or 0 for embed_dim / num_heads")
    if config.head_dim == 0:
        checked.refuse("num_heads", f"does not divide model.embed_dim={config.embed_dim}: set model.head_dim")
    if config.num_heads % config.num_kv_heads:
        checked.refuse("num_kv_heads", f"does not divide model.num_heads={config.num_heads}")
    for key, kinds in PATTERNS.items():
        checked.one_of(key, *kinds)
        if not getattr(config, key):
            checked.refuse(key, "must name a kind of layer at least")
    if any(kind.recurrent == "none" and not kind.feed_forward for kind in config.layer_kinds):
        checked.refuse("mlp_pattern", "leaves a layer empty, since model.attention_pattern also has none for it")
    if "none" in (*config.attention_pattern, *config.mlp_pattern) and config.norm_position == "parallel":
        checked.refuse("norm_position", "has both sublayers in each layer, but model.attention_pattern or mlp_pattern has none")
    if any(kind.local for kind in config.layer_kinds) and config.window < 1:
        checked.refuse("window", "must be at least 1, since model.attention_pattern has local or chunk layers")
    if {"local", "chunk"} <= set(config.attention_pattern):
        checked.refuse("attention_pattern", "has local and chunk layers, which share model.window: take one of the two kinds")


def _check_recurrent(config: Any, checked: Checked) -> None:
    if not 2 <= config.recurrent.kernel <= MAX_KERNEL:
        checked.refuse("recurrent.kernel", f"must be in 2…{MAX_KERNEL}")
    if {"delta", "mamba"} & set(config.recurrent_kinds):
        for key in ("num_key_heads", "num_heads", "key_dim", "value_dim", "chunk"):
            checked.at_least(f"recurrent.{key}", 1)
        checked.at_least("recurrent.least_step", 0)
        if config.recurrent.num_heads % config.recurrent.num_key_heads:
            checked.refuse("recurrent.num_key_heads", f"does not divide model.recurrent.num_heads={config.recurrent.num_heads}")


def _check_shared_keys(config: Any, checked: Checked) -> None:
    shared, kinds = config.shared_kv_layers, config.layer_kinds
    if shared >= config.num_layers:
        checked.refuse("shared_kv_layers", f"must be below model.num_layers={config.num_layers}")
    if {kind.local for kind in kinds if kind.takes} - {kind.local for kind in kinds if kind.gives}:
        checked.refuse("shared_kv_layers", "leaves a layer without keys: there is none of its kind (local, global) before them")
    if shared and (config.attention or config.mla.kv_rank or config.value_embeddings or config.output_gate):
        checked.refuse("shared_kv_layers", "does not go with model.attention, mla, value_embeddings and output_gate")
    if shared and (config.attention_temperature or config.qk_norm_last):
        checked.refuse("shared_kv_layers", "does not go with model.attention_temperature and qk_norm_last")
    if config.value_norm and (config.attention or config.mla.kv_rank):
        checked.refuse("value_norm", "does not go with model.attention and model.mla")


def _check_streams(config: Any, checked: Checked) -> None:
    for dim in config.mlp_dims:
        if dim < 1:
            checked.refuse("mlp_dims", "must be at least 1 each")
    for key in ("mlp_dims", "gate_sparsity"):
        if getattr(config, key) and (config.feed_forward or any(kind.moe for kind in config.layer_kinds)):
            checked.refuse(key, "does not go with model.feed_forward and with moe in model.mlp_pattern")
    if not all(0 <= fraction < 1 for fraction in config.gate_sparsity) or (config.gate_sparsity and not config.gated):
        checked.refuse("gate_sparsity", "must be in 0…1, below 1, and needs model.gated=True")
    if config.altup_streams == 1:
        checked.refuse("altup_streams", "must be at least 2, or 0 for one stream")
    for key in ("shared_kv_layers", "altup_streams", "laurel_rank", "layer_embed_dim"):
        if getattr(config, key) and (config.mtp_depth or config.mup_base_dim):
            checked.refuse(key, "does not go with model.mtp_depth and model.mup_base_dim")
    if config.laurel_rank and (config.norm_position in ("post", "parallel") or "none" in config.attention_pattern):
        checked.refuse("laurel_rank", "needs norms before attention and a norm_position of pre or sandwich in each layer")


def _check_choices(config: Any, checked: Checked) -> None:
    checked.one_of("qk_norm", "none", "head", "full", "unit")
    checked.one_of("positions", "rotary", "learned", "none")
    checked.one_of("norm", "rms", "layer")
    checked.one_of("norm_position", "pre", "post", "sandwich", "parallel")
    if not is_own(config.activation):
        checked.one_of("activation", "silu", "gelu", "gelu_tanh", "quick_gelu", "relu2", "FILE.py:FUNCTION")
    for key in ("feed_forward", "attention"):
        if getattr(config, key) and not is_own(getattr(config, key)):
            checked.refuse(key, "names no class of a file: write it as FILE.py:CLASS")
    checked.at_least("value_embeddings", 0)
    checked.at_least("gate_limit", 0)
    if config.gate_limit and not config.gated:
        checked.refuse("gate_limit", "clamps a gate: set model.gated=True")
    for key, name in (("rotary_pattern", "none"), ("attention_pattern", "chunk")):
        if config.attention and name in getattr(config, key):
            checked.refuse(key, "does not go with model.attention, which is told nothing of it")
    if config.gate_limit and is_own(config.activation):
        checked.refuse("gate_limit", f"does not go with model.activation={config.activation}: clamp in that function")
    if config.value_embeddings and (config.attention or config.mla.kv_rank or config.mtp_depth):
        checked.refuse("value_embeddings", "does not go with model.attention, model.mla and model.mtp_depth")
    checked.one_of("init", "gpt2", "fan_in")
    checked.one_of("score_head", "none", "reward", "value")
    checked.one_of("remat", *REMAT)
    if config.offload and config.remat == "none":
        checked.refuse("offload", "moves what model.remat keeps, and model.remat='none' keeps all: set model.remat=matmuls")
    checked.one_of("context_attention", *ACROSS)
    checked.one_of("quantized_training", *LOW_PRECISION)
    if config.dtype not in ("bfloat16", "float32"):
        raise UserError(f"dtype={config.dtype!r} is neither bfloat16 nor float32")


def _check_rope(config: Any, checked: Checked) -> None:
    rope = config.rope
    if config.attention_temperature and config.temperature_length < 1:
        checked.refuse("temperature_length", "must be at least 1 with model.attention_temperature")
    checked.one_of("rope.scaling", "none", "linear", "ntk", "yarn", "llama3", "longrope")
    if not 0 < rope.fraction <= 1:
        checked.refuse("rope.fraction", "must be above 0 and at most 1")
    if config.positions == "rotary" and config.rope_head_dim % 2:
        key = "mla.rope_head_dim" if config.mla.kv_rank else "head_dim"
        checked.refuse(key, f"gives {config.rope_head_dim} dimensions to rotary positions, which turn pairs: make it even")
    if rope.scaling in ("ntk", "yarn", "llama3", "longrope") and rope.original_positions < 1:
        checked.refuse("rope.original_positions", f"must be given for rope.scaling={rope.scaling}")
    if rope.scaling == "longrope":
        for key in ("short_factor", "long_factor"):
            if len(getattr(rope, key)) != config.rope_head_dim // 2:
                checked.refuse(f"rope.{key}", f"must hold {config.rope_head_dim // 2} numbers, one a frequency")


def _check_latent(config: Any, checked: Checked) -> None:
    if config.mla.kv_rank:
        for key in ("qk_norm", "attention_sinks", "output_gate", "qkv_bias", "output_bias"):
            if getattr(config, key) not in ("none", False):
                checked.refuse(key, "does not go with model.mla")
        if config.attention_temperature or not all(kind.rotary for kind in config.layer_kinds):
            key = "attention_temperature" if config.attention_temperature else "rotary_pattern"
            checked.refuse(key, "does not go with model.mla")
        if config.num_kv_heads != config.num_heads:
            checked.refuse(
                "num_kv_heads", f"must equal model.num_heads={config.num_heads} with model.mla, whose heads share a latent"
            )
    checked.at_least("mla.index_topk", 0)
    if config.mla.index_topk:
        if not (config.mla.kv_rank and config.mla.query_rank):
            checked.refuse("mla.index_topk", "chooses keys by latent queries: set model.mla.kv_rank and model.mla.query_rank")
        if any(kind.local for kind in config.layer_kinds):
            checked.refuse("mla.index_topk", "does not go with local and chunk layers in model.attention_pattern")
        checked.at_least("mla.index_heads", 1)
        checked.at_least("mla.index_head_dim", config.mla.rope_head_dim)


def _check_experts(config: Any, checked: Checked) -> None:
    moe = config.moe
    if any(kind.moe for kind in config.layer_kinds):
        checked.one_of("moe.scores", "softmax", "sigmoid")
        checked.one_of("moe.group_score", "max", "top2")
        if not 1 <= moe.num_experts <= MAX_EXPERTS:
            checked.refuse("moe.num_experts", f"must be in 1…{MAX_EXPERTS}, since model.mlp_pattern has moe layers")
        if moe.num_groups < 1 or moe.num_experts % moe.num_groups:
            checked.refuse("moe.num_groups", f"does not divide model.moe.num_experts={moe.num_experts}")
        if not 1 <= moe.top_groups <= moe.num_groups:
            checked.refuse("moe.top_groups", f"must be in 1…{moe.num_groups} (model.moe.num_groups)")
        if moe.weigh_inputs and moe.biases:
            checked.refuse("moe.biases", "does not go with model.moe.weigh_inputs")
        if moe.shared_gate and not moe.shared_dim:
            checked.refuse("moe.shared_gate", "needs a shared expert: set model.moe.shared_dim")
        if not 1 <= moe.top_k <= moe.num_experts // moe.num_groups * moe.top_groups:
            checked.refuse("moe.top_k", "must be at least 1, and at most the experts that may be chosen from")
        if moe.group_score == "top2" and moe.num_groups > 1 and moe.num_experts // moe.num_groups < 2:
            checked.refuse("moe.group_score", "needs groups of two experts at least")
    elif moe.num_experts:
        checked.refuse("moe.num_experts", "has no effect: model.mlp_pattern names no moe layer; add ('moe',)")


def _check_training(config: Any, checked: Checked) -> None:
    for key in ("adapter.targets", "quantization.targets", "frozen"):
        try:
            check_pattern(checked.value(key))
        except ValueError as error:
            checked.refuse(key, f"is no regular expression that can be used: {error}")
    if config.quantization.bits not in (0, 4, 8):
        checked.refuse("quantization.bits", "is none of 0 (off), 4, 8")
    if config.quantization.bits and config.quantized_training != "none":
        bits = config.quantization.bits
        checked.refuse("quantized_training", f"needs float weights: set it to none, or model.quantization.bits={bits} to 0")
    if config.pipeline.microbatches < 0:
        checked.refuse("pipeline.microbatches", "must be at least 1, or 0 for 4 × mesh.stage")
    if not 0 <= config.mtp_depth <= MAX_MTP:
        checked.refuse("mtp_depth", f"must be in 0…{MAX_MTP}")
    for key in ("norm_eps", "rope.theta", "rope.factor"):
        if not 0 < checked.value(key):
            checked.refuse(key, "must be above 0")


def _check_kinds(section, prefix: str = "model.") -> None:
    """Raise UserError if a field is not of its type, or is a number beyond all sense: configs come from strangers too."""
    for field in dataclasses.fields(section):
        value, kind = getattr(section, field.name), field.type
        if dataclasses.is_dataclass(kind):
            _check_kinds(value, f"{prefix}{field.name}.")
            continue
        of = getattr(kind, "__args__", [kind])[0]  # of tuple[float, ...] too
        if not isinstance(value, tuple) and of is not kind:
            raise UserError(f"{prefix}{field.name}={short(value)} must be a list")
        for item in value if of is not kind else [value]:
            number = isinstance(item, int | float) and not isinstance(item, bool)
            good = number and -1e30 < item < 1e30 if of is float else isinstance(item, of)
            most = MAX_LAYERS if field.name == "num_layers" else MAX
            if not good or (of is int and (not number or abs(item) > most)):
                what = f"a whole number of at most {most}" if of is int else "a number" if of is float else f"a {of.__name__}"
                raise UserError(f"{prefix}{field.name}={short(item)} must be {what}")
