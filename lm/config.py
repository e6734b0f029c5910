"""The model's config as frozen dataclasses: every setting that the model code reads.

lm/convert maps each published family to these settings. A config file has the same keys, with sections for nested ones
(`model.moe.num_experts`); it sets only those that differ from the defaults below.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

from lm.errors import UserError
from lm.strangers import check_pattern, short
from lm.towers import Audio, Vision, check_towers

MOST, MOST_LAYERS = 2**31 - 1, 10_000  # of sizes, since ids are int32
MOST_EXPERTS, MOST_MTP, LONGEST_BLOCK = 10_000, 100, 100
REMAT = ("none", "matmuls", "attention", "full")
ACROSS = ("ring", "all_gather")
LOW_PRECISION = ("none", "int8", "float8")
LEAST = dict.fromkeys(("vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "mlp_dim", "max_positions"), 1)
LEAST |= {"pipeline.repeats": 1, "adapter.rank": 0, "remat_matmuls_last": 0}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021) and how they are scaled beyond the training context."""

    theta: float = 10_000.0  # base of the angles: pair i rotates by position · theta^(−2i / rotated dimensions)
    fraction: float = 1.0  # fraction of a head's dimensions that are rotated, the first ones
    interleaved: bool = False  # rotate pairs (2i, 2i+1); else (i, i + half)
    scaling: str = "none"  # none, linear, ntk (dynamic), yarn, llama3, longrope
    factor: float = 1.0  # how many times longer than original_positions
    original_positions: int = 0  # context before scaling; required by ntk, yarn, llama3, longrope
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn: dimensions with more rotations than this over the context stay unscaled
    beta_slow: float = 1.0  # yarn: frequencies of dimensions with fewer rotations are divided by factor
    truncate: bool = True  # yarn: round both bounds to whole dimensions
    attention_factor: float = 0.0  # yarn, longrope: multiplies cos and sin; 0: the method's formula
    mscale: float = 0.0  # DeepSeek's variant of yarn: with mscale_all_dim, the factor of cos and sin
    mscale_all_dim: float = 0.0  # DeepSeek's variant of yarn: also multiplies the attention scores; 0: not
    short_factor: tuple[float, ...] = ()  # longrope: divides each frequency within original_positions
    long_factor: tuple[float, ...] = ()  # longrope: divides each frequency beyond original_positions

    @property
    def depends_on_length(self) -> bool:
        """Return whether a token's angles change as the sequence grows."""
        return self.scaling in ("ntk", "longrope")


@dataclasses.dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values come from a small latent; the cache holds the latent."""

    kv_rank: int = 0  # size of the latent; 0: ordinary attention
    query_rank: int = 0  # size of the queries' latent; 0: queries come from x directly
    rope_head_dim: int = 64  # rotated dimensions of a head's query and key; all heads share the key's
    value_head_dim: int = 128  # size of a head's value; head_dim is the unrotated part of query and key
    norm_eps: float = 1e-6  # epsilon of the two latent norms


@dataclasses.dataclass(frozen=True)
class MixtureOfExperts:
    """A mixture-of-experts feed-forward: each token uses its top_k of num_experts (Shazeer et al. 2017)."""

    num_experts: int = 0  # 0: no moe layers
    top_k: int = 2  # experts of a token
    expert_dim: int = 0  # hidden units of one expert; 0: mlp_dim
    shared_dim: int = 0  # hidden units of the expert that every token uses; 0: none
    scores: str = "softmax"  # or sigmoid, of the router's logits
    normalize: bool = True  # the chosen scores sum to 1
    weight_scale: float = 1.0  # multiplies the chosen scores
    num_groups: int = 1  # the experts are split into equal groups
    top_groups: int = 1  # a token chooses its experts from this many groups
    group_score: str = "max"  # score of a group: max, its best expert (V2); top2, the sum of its two best (V3)
    balance_bias: bool = False  # a bias, moved against the load, added to the scores for the choice only (DeepSeek-V3)
    bias_rate: float = 1e-3  # change of the bias per step
    balance_loss: float = 0.0  # weight of the sequence-wise load-balance loss
    router_z_loss: float = 0.0  # weight of (log Z)² of the router (ST-MoE, Zoph et al. 2022)
    capacity_factor: float = 0.0  # 0: dropless; else the capacity of an expert relative to an even share; the rest is dropped


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Low-rank adaptation (Hu et al. 2021): y = x·W + alpha/rank · (x·A)·B; only A and B are trained."""

    rank: int = 0  # 0: none
    alpha: float = 16.0  # scale of the adapter's output, over the rank
    targets: str = r"attention\..*"  # regular expression on names such as attention.query, feed_forward.gate
    dora: bool = False  # separate direction and magnitude (Liu et al. 2024)
    rank_stabilized: bool = False  # alpha / √rank (Kalajdzievski 2023)


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Weights stored as integers and scales; products use the compute dtype."""

    bits: int = 0  # 8 or 4; 0: none
    group: int = 0  # inputs that share a scale; 0: all inputs of an output channel
    targets: str = r".*"  # regular expression on names such as attention.query, feed_forward.gate


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """How the stages of mesh.stage share a batch (lm/parallel/pipeline.py); without effect if mesh.stage is 1."""

    microbatches: int = 0  # of a slice of the batch: at most this many, as its rows allow; 0: 4 × mesh.stage
    repeats: int = 1  # how often a microbatch goes around the stages: more shorten the bubble and send more
    overlap: bool = False  # send while the stages compute other microbatches: for slow networks; twice the bubble


class LayerKind(NamedTuple):
    """The settings that may differ between layers."""

    local: bool  # sees `window` tokens, and rotates by `local_rope`
    moe: bool


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The settings of a decoder: sizes, architecture, numerics, and compilation of its layers."""

    vocab_size: int  # rows of the embedding; the tokenizer may have fewer pieces
    num_layers: int  # decoder layers
    embed_dim: int  # size of a token's vector between layers
    num_heads: int  # heads of queries
    num_kv_heads: int  # heads of keys and values; a divisor of num_heads. 1: multi-query
    mlp_dim: int  # hidden units of a dense feed-forward
    head_dim: int = 0  # 0: embed_dim / num_heads

    attention_pattern: tuple[str, ...] = ("global",)  # global or local, repeated over the layers
    window: int = 0  # tokens that a local layer sees, including the token itself
    qkv_bias: bool = False  # biases of queries, keys and values
    output_bias: bool = False  # bias of the attention's output
    qk_norm: str = "none"  # norm of queries and keys: none, head (each head), full (all heads together)
    query_scale: float = 0.0  # multiplies q·k; 0: 1/√head_dim
    attention_softcap: float = 0.0  # scores s become cap·tanh(s/cap)
    attention_sinks: bool = False  # a learned logit per head, added to the softmax's denominator
    mla: LatentAttention = LatentAttention()

    positions: str = "rotary"  # rotary, learned, none
    max_positions: int = 2048  # the maximum context; rows of the table of learned positions
    rope: Rope = Rope()
    local_rope_theta: float = 0.0  # theta of local layers, without scaling; 0: the same rope as global layers

    norm: str = "rms"  # or layer (with bias)
    norm_eps: float = 1e-5  # epsilon of the norms
    norm_position: str = "pre"  # pre, post (after the sublayer, before the addition), sandwich (both)
    norm_plus_one: bool = False  # RMSNorm multiplies by 1 + w

    mlp_pattern: tuple[str, ...] = ("dense",)  # dense or moe, repeated over the layers
    activation: str = "silu"  # silu, gelu, gelu_tanh, relu2
    gated: bool = True  # feed-forward: down(activation(gate(x)) · up(x)); else down(activation(up(x)))
    mlp_bias: bool = False  # biases of a dense feed-forward
    moe: MixtureOfExperts = MixtureOfExperts()

    embed_scale: float = 1.0  # multiplies the embedding (Gemma: √embed_dim)
    tie_embeddings: bool = False  # the head uses the embedding's weights
    logit_softcap: float = 0.0  # logits z become cap·tanh(z/cap); 0: none
    mtp_depth: int = 0  # multi-token prediction modules; each predicts one more token ahead (DeepSeek-V3)
    score_head: str = "none"  # an extra scalar per token: reward (of the text so far), value (expected future reward)

    vision: Vision = Vision()
    audio: Audio = Audio()

    mup_base_dim: int = 0  # μP: embed_dim at which learning rate and initialisation were tuned; 0: standard
    adapter: Adapter = Adapter()
    quantization: Quantization = Quantization()
    frozen: str = ""  # regular expression of parameters that are not trained, such as vision\.(?!projector).*; "": none
    pipeline: Pipeline = Pipeline()
    scan_layers: bool = True  # False unrolls the stack: slower to compile, faster on a CPU
    # What the backward pass computes again. none: nothing; matmuls: all but matmul outputs; attention: these, and all of the
    # feed-forward sublayer; full: each whole layer.
    remat: str = "matmuls"
    remat_matmuls_last: int = 0  # so many last layers of a stack have remat=matmuls instead: faster, where memory is left over
    offload: bool = False  # what remat keeps goes to host memory until the backward pass, also the layers' inputs
    context_attention: str = "ring"  # how keys reach queries on a mesh with a context axis: ring, all_gather
    # Products of attention projections and dense feed-forwards, forward and backward: none (dtype), int8 or float8. Weights
    # stay float32. Whatever reads the model from disk computes in dtype.
    quantized_training: str = "none"
    dtype: str = "bfloat16"  # dtype of matrix products; norms, softmax and losses are float32

    def __post_init__(self):
        for field, kind in SECTIONS.items():
            value = getattr(self, field)
            if not isinstance(value, kind):
                object.__setattr__(self, field, kind(**{key: _frozen(item) for key, item in value.items()}))
        for field in ("attention_pattern", "mlp_pattern"):
            object.__setattr__(self, field, _frozen(getattr(self, field)))
        if self.head_dim == 0 and self.num_heads and self.embed_dim % self.num_heads == 0:
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        _check(self)

    @property
    def compute_dtype(self):
        from jax import numpy as jnp  # here, so that configs are checked without JAX

        return jnp.dtype(self.dtype)

    @property
    def rope_head_dim(self) -> int:
        """Return the number of rotated dimensions of a head."""
        if self.mla.kv_rank:
            return self.mla.rope_head_dim
        return int(self.head_dim * self.rope.fraction)

    @property
    def key_head_dim(self) -> int:
        """Return the size of a head's query and key."""
        return self.head_dim + self.mla.rope_head_dim if self.mla.kv_rank else self.head_dim

    @property
    def value_head_dim(self) -> int:
        return self.mla.value_head_dim if self.mla.kv_rank else self.head_dim

    @property
    def local_rope(self) -> Rope:
        if not self.local_rope_theta:
            return self.rope
        return Rope(theta=self.local_rope_theta, fraction=self.rope.fraction, interleaved=self.rope.interleaved)

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Return the kind of each layer."""
        attention, mlp = self.attention_pattern, self.mlp_pattern
        return tuple(
            LayerKind(attention[i % len(attention)] == "local", mlp[i % len(mlp)] == "moe") for i in range(self.num_layers)
        )

    @property
    def stacks(self) -> tuple[tuple[tuple[LayerKind, ...], int], ...]:
        """Return the layers as repeated blocks, ((kinds of a block), repeats). Repeats are stacked and scanned.

        Greedy from the first layer: take the block of at most LONGEST_BLOCK layers whose repeats cover the most layers; of
        equal ones the shortest.
        """
        kinds, begin, stacks = self.layer_kinds, 0, []
        while begin < len(kinds):
            best = (kinds[begin : begin + 1], 0)
            for size in range(1, 1 + min(LONGEST_BLOCK, (len(kinds) - begin + 1) // 2)):
                block, repeats = kinds[begin : begin + size], 1
                while kinds[begin + repeats * size : begin + (repeats + 1) * size] == block:
                    repeats += 1
                if (repeats > 1 or size == 1) and repeats * size > len(best[0]) * best[1]:
                    best = (block, repeats)
            stacks.append(best)
            begin += len(best[0]) * best[1]
        return tuple(stacks)

    def to_dict(self) -> dict:
        """Return nested plain values, as in JSON and config files; ModelConfig(**d) is the inverse."""
        return dataclasses.asdict(self)


SECTIONS = {
    "mla": LatentAttention,
    "rope": Rope,
    "moe": MixtureOfExperts,
    "adapter": Adapter,
    "quantization": Quantization,
    "pipeline": Pipeline,
    "vision": Vision,
    "audio": Audio,
}


def model_keys(**values) -> dict:
    """Return every key of `config.model` with its default, updated by `values`. `dtype` is a top-level key of a config."""
    keys = {field.name: field.default for field in dataclasses.fields(ModelConfig) if field.name != "dtype"}
    keys.update({name: dataclasses.asdict(kind()) for name, kind in SECTIONS.items()})
    for name, value in values.items():
        keys[name] = {**keys[name], **value} if isinstance(value, Mapping) else value
    return keys


def _frozen(value):
    return tuple(value) if isinstance(value, list) else value


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
            most = MOST_LAYERS if field.name == "num_layers" else MOST
            if not good or (of is int and (not number or abs(item) > most)):
                what = f"a whole number of at most {most}" if of is int else "a number" if of is float else f"a {of.__name__}"
                raise UserError(f"{prefix}{field.name}={short(item)} must be {what}")


def _check(config: ModelConfig) -> None:
    """Raise UserError for a model that cannot be built."""
    _check_kinds(config)

    def value_of(key):
        return functools.reduce(getattr, key.split("."), config)

    def refuse(key, why):
        raise UserError(f"model.{key}={short(value_of(key))} {why}")

    def one_of(key, *values):
        value = value_of(key)
        for item in value if isinstance(value, tuple) else (value,):
            if item not in values:
                refuse(key, f"is none of {', '.join(map(str, values))}")

    for key, least in LEAST.items():
        if value_of(key) < least:
            refuse(key, f"must be at least {least}")
    if config.head_dim < 0:
        refuse("head_dim", "must be at least 2, or 0 for embed_dim / num_heads")
    if config.head_dim == 0:
        refuse("num_heads", f"does not divide model.embed_dim={config.embed_dim}: set model.head_dim")
    if config.num_heads % config.num_kv_heads:
        refuse("num_kv_heads", f"does not divide model.num_heads={config.num_heads}")
    one_of("attention_pattern", "global", "local")
    one_of("mlp_pattern", "dense", "moe")
    for key in ("attention_pattern", "mlp_pattern"):
        if not getattr(config, key):
            refuse(key, "must name a kind of layer at least")
    if any(kind.local for kind in config.layer_kinds) and config.window < 1:
        refuse("window", "must be at least 1, since model.attention_pattern has local layers")
    one_of("qk_norm", "none", "head", "full")
    one_of("positions", "rotary", "learned", "none")
    one_of("norm", "rms", "layer")
    one_of("norm_position", "pre", "post", "sandwich")
    one_of("activation", "silu", "gelu", "gelu_tanh", "relu2")
    one_of("score_head", "none", "reward", "value")
    one_of("remat", *REMAT)
    if config.offload and config.remat == "none":
        refuse("offload", "moves what model.remat keeps, and model.remat='none' keeps all: set model.remat=matmuls")
    one_of("context_attention", *ACROSS)
    one_of("quantized_training", *LOW_PRECISION)
    if config.dtype not in ("bfloat16", "float32"):
        raise UserError(f"dtype={config.dtype!r} is neither bfloat16 nor float32")

    rope = config.rope
    one_of("rope.scaling", "none", "linear", "ntk", "yarn", "llama3", "longrope")
    if not 0 < rope.fraction <= 1:
        refuse("rope.fraction", "must be above 0 and at most 1")
    if config.positions == "rotary" and config.rope_head_dim % 2:
        key = "mla.rope_head_dim" if config.mla.kv_rank else "head_dim"
        refuse(key, f"gives {config.rope_head_dim} dimensions to rotary positions, which turn pairs: make it even")
    if rope.scaling in ("ntk", "yarn", "llama3", "longrope") and rope.original_positions < 1:
        refuse("rope.original_positions", f"must be given for rope.scaling={rope.scaling}")
    if rope.scaling == "longrope":
        for key in ("short_factor", "long_factor"):
            if len(getattr(rope, key)) != config.rope_head_dim // 2:
                refuse(f"rope.{key}", f"must hold {config.rope_head_dim // 2} numbers, one a frequency")

    if config.mla.kv_rank:
        for key in ("qk_norm", "attention_sinks", "qkv_bias", "output_bias"):
            if getattr(config, key) not in ("none", False):
                refuse(key, "does not go with model.mla")
        if config.num_kv_heads != config.num_heads:
            refuse("num_kv_heads", f"must equal model.num_heads={config.num_heads} with model.mla, whose heads share a latent")
    moe = config.moe
    if any(kind.moe for kind in config.layer_kinds):
        one_of("moe.scores", "softmax", "sigmoid")
        one_of("moe.group_score", "max", "top2")
        if not 1 <= moe.num_experts <= MOST_EXPERTS:
            refuse("moe.num_experts", f"must be in 1…{MOST_EXPERTS}, since model.mlp_pattern has moe layers")
        if moe.num_groups < 1 or moe.num_experts % moe.num_groups:
            refuse("moe.num_groups", f"does not divide model.moe.num_experts={moe.num_experts}")
        if not 1 <= moe.top_groups <= moe.num_groups:
            refuse("moe.top_groups", f"must be in 1…{moe.num_groups} (model.moe.num_groups)")
        if not 1 <= moe.top_k <= moe.num_experts // moe.num_groups * moe.top_groups:
            refuse("moe.top_k", "must be at least 1, and at most the experts that may be chosen from")
        if moe.group_score == "top2" and moe.num_groups > 1 and moe.num_experts // moe.num_groups < 2:
            refuse("moe.group_score", "needs groups of two experts at least")
    elif moe.num_experts:
        refuse("moe.num_experts", "has no effect: model.mlp_pattern names no moe layer; add ('moe',)")

    for key in ("adapter.targets", "quantization.targets", "frozen"):
        try:
            check_pattern(value_of(key))
        except ValueError as error:
            refuse(key, f"is no regular expression that can be used: {error}")
    if config.quantization.bits not in (0, 4, 8):
        refuse("quantization.bits", "is none of 0 (off), 4, 8")
    if config.quantization.bits and config.quantized_training != "none":
        bits = config.quantization.bits
        refuse("quantized_training", f"needs float weights: set it to none, or model.quantization.bits={bits} to 0")
    if config.pipeline.microbatches < 0:
        refuse("pipeline.microbatches", "must be at least 1, or 0 for 4 × mesh.stage")
    if not 0 <= config.mtp_depth <= MOST_MTP:
        refuse("mtp_depth", f"must be in 0…{MOST_MTP}")
    for key in ("norm_eps", "rope.theta", "rope.factor"):
        if not 0 < value_of(key):
            refuse(key, "must be above 0")
    check_towers(config, refuse, one_of)
