"""The model's config as frozen dataclasses: every setting that the model code reads.

lm/convert maps each published family to these settings. A config file has the same keys, with sections for nested ones
(`model.moe.num_experts`); it sets only those that differ from the defaults below.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from lm.config.checks import LONGEST_BLOCK, PATTERNS, RECURRENT, check
from lm.config.towers import Audio, Vision


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
    # Keys that a query attends to, chosen by an indexer (DeepSeek Sparse Attention, lm/model/indexer.py); 0: all that it sees.
    index_topk: int = 0
    index_heads: int = 64  # heads of the indexer
    index_head_dim: int = 128  # size of their queries and of the one key; the first rope_head_dim dimensions are rotated
    index_interleaved: bool = False  # the indexer rotates neighbouring dimensions (GLM-5), not halves (DeepSeek-V3.2)


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """Layers with a state of fixed size in place of attention, by attention_pattern (lm/model/recurrent.py)."""

    kernel: int = 4  # tokens that the short convolution sees, including the token itself
    bias: bool = False  # conv: biases of its matrices and of its convolution; mamba: of its convolutions
    num_heads: int = 0  # delta, mamba: heads of values, each with a state of key_dim × value_dim
    num_key_heads: int = 0  # delta, mamba: heads of queries and keys (Mamba-2: groups); a divisor of num_heads
    key_dim: int = 128  # delta, mamba: size of a head's query and key
    value_dim: int = 128  # delta, mamba: size of a head's value
    chunk: int = 64  # delta, mamba: tokens that training computes at once, rounded up to a power of two
    least_step: float = 0.0  # mamba: Δ is at least this


@dataclasses.dataclass(frozen=True)
class MixtureOfExperts:
    """A mixture-of-experts feed-forward: each token uses its top_k of num_experts (Shazeer et al. 2017)."""

    num_experts: int = 0  # 0: no moe layers
    top_k: int = 2  # experts of a token
    expert_dim: int = 0  # hidden units of one expert; 0: mlp_dim
    shared_dim: int = 0  # hidden units of the expert that every token uses; 0: none
    biases: bool = False  # of the router and of the experts, but not of the shared one
    shared_gate: bool = False  # the shared expert's output is multiplied by σ of a learned projection of the token (Qwen)
    scores: str = "softmax"  # or sigmoid, of the router's logits
    normalize: bool = True  # the chosen scores sum to 1
    weight_scale: float = 1.0  # multiplies the chosen scores
    weigh_inputs: bool = False  # the chosen scores multiply what the experts read, not what they return (Llama 4)
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

    local: bool  # sees at most `window` tokens, and rotates by `local_rope`
    moe: bool
    has_table: bool = False  # attention has a table of values by token (value_embeddings)
    rotary: bool = True  # rotates queries and keys, if the model has rotary positions
    recurrent: str = ""  # conv, delta, mamba: a layer of model.recurrent in place of attention; none: nothing in its place
    feed_forward: bool = True  # has one, dense or moe
    mlp_dim: int = 0  # hidden units of its dense feed-forward; 0: those of the model
    sparsity: float = 0.0  # of its gate (gate_sparsity)
    gives: bool = False  # later layers attend to its keys and values (shared_kv_layers)
    takes: bool = False  # has no keys and values, and attends to those of the layer of its kind that gives them


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

    # global, local or chunk (Llama 4); or in place of attention conv (a short gated convolution, LFM2), delta (a gated delta
    # net, Qwen3-Next), mamba (Mamba-2, Bamba) or none: the layer is a feed-forward (Nemotron-H). Repeated over the layers.
    attention_pattern: tuple[str, ...] = ("global",)
    # Tokens that a local layer sees, including the token itself. In a chunk layer, the size of the chunks into which a text
    # is divided: a token sees the earlier tokens of its own chunk.
    window: int = 0
    qkv_bias: bool = False  # biases of queries, keys and values
    output_bias: bool = False  # bias of the attention's output
    # Norm of queries and keys: none, head (each head), full (all heads together), or unit: each head, without learned weights,
    # and only in layers that rotate (Llama 4).
    qk_norm: str = "none"
    qk_norm_last: bool = False  # queries and keys are rotated before their norm
    value_norm: bool = False  # norm of each head's values, without learned weights (Gemma 3n)
    query_scale: float = 0.0  # multiplies q·k; 0: 1/√head_dim
    attention_softcap: float = 0.0  # scores s become cap·tanh(s/cap)
    output_gate: bool = False  # attention's values are multiplied by σ(gate(x)) before the output (Qwen3-Next)
    attention_sinks: bool = False  # a learned logit per head, added to the softmax's denominator
    # Every so many layers, from the last, add a learned vector of the token to its values (ResFormer); 0: none.
    value_embeddings: int = 0
    # The last so many layers have no keys and values of their own, and no cache. Each attends to those of the last layer before
    # them that is of its kind, local or global (after YOCO, Sun et al. 2024, arXiv 2405.05254; Gemma 3n).
    shared_kv_layers: int = 0
    mla: LatentAttention = LatentAttention()
    recurrent: Recurrent = Recurrent()
    attention: str = ""  # FILE.py:CLASS in place of the attention (docs/extend.md); "": none

    positions: str = "rotary"  # rotary, learned, none
    max_positions: int = 2048  # the maximum context; rows of the table of learned positions
    rope: Rope = Rope()
    local_rope_theta: float = 0.0  # theta of local layers, without scaling; 0: the same rope as global layers
    # rotary or none, repeated over the layers. Layers of "none" know the order of tokens only from the causal mask (NoPE,
    # Kazemnejad et al. 2023).
    rotary_pattern: tuple[str, ...] = ("rotary",)
    # Multiplies the query at position p by 1 + this · ln(1 + ⌊p / temperature_length⌋) (after Nakanishi 2025); 0: off.
    attention_temperature: float = 0.0
    temperature_length: int = 0  # positions before attention_temperature begins to act
    temperature_nope: bool = False  # attention_temperature acts only in layers without positions, and p counts from 1 (Llama 4)

    norm: str = "rms"  # or layer
    norm_bias: bool = True  # LayerNorm has a bias
    norm_eps: float = 1e-5  # epsilon of the norms
    # pre, post (after the sublayer, before the addition), sandwich (both), or parallel: one norm, both sublayers read its
    # result and add to the same stream (GPT-J; Cohere).
    norm_position: str = "pre"
    norm_plus_one: bool = False  # norms multiply by 1 + w
    residual_scale: float = 1.0  # multiplies what each sublayer adds to the residual stream (Granite)
    # Rank of a learned augmented residual: x + attention(n) becomes (x + attention(n) + n + norm(n·A·B)) / √2, where n is what
    # attention reads, and A·B has this rank (LAuReL, Menghani et al. 2024, arXiv 2411.07501; Gemma 3n); 0: none.
    laurel_rank: int = 0
    # Residual streams, each of embed_dim. A layer computes with the first one and predicts the others, by learned coefficients
    # that depend on the token (AltUp, Baykal et al. 2023, arXiv 2301.13310; Gemma 3n); 0: one stream.
    altup_streams: int = 0

    mlp_pattern: tuple[str, ...] = ("dense",)  # dense, moe, or none: no feed-forward; repeated over the layers
    activation: str = "silu"  # silu, gelu, gelu_tanh, quick_gelu, relu2, or FILE.py:FUNCTION
    gated: bool = True  # feed-forward: down(activation(gate(x)) · up(x)); else down(activation(up(x)))
    # Clamps gate(x) to at most this and up(x) to ± this, and adds 1 to up(x) (gpt-oss); 0: none of it.
    gate_limit: float = 0.0
    mlp_bias: bool = False  # biases of a dense feed-forward
    mlp_dims: tuple[int, ...] = ()  # hidden units of each layer's dense feed-forward, repeated over the layers; (): mlp_dim
    # Fraction of hidden units that the gate of a layer switches off, repeated over the layers: gate(x) becomes
    # max(0, gate(x) − mean − std·Φ⁻¹(fraction)) over a token's units (You et al. 2025, arXiv 2506.06644; Gemma 3n); (): 0.
    gate_sparsity: tuple[float, ...] = ()
    moe: MixtureOfExperts = MixtureOfExperts()
    feed_forward: str = ""  # FILE.py:CLASS in place of a dense feed-forward (docs/extend.md); "": none

    embed_scale: float = 1.0  # multiplies the embedding (Gemma: √embed_dim)
    # Size of a second embedding, which a token has for each layer. Gated by the residual stream, it is added to it at the end
    # of the layer; with altup_streams to all but the first stream (Gemma 3n's per-layer embeddings); 0: none.
    layer_embed_dim: int = 0
    layer_embed_vocab: int = 0  # tokens with rows in the table of these embeddings; later ones have that of token 0. 0: all
    tie_embeddings: bool = False  # the head uses the embedding's weights
    logit_scale: float = 1.0  # multiplies the logits
    logit_softcap: float = 0.0  # logits z become cap·tanh(z/cap); 0: none
    mtp_depth: int = 0  # multi-token prediction modules; each predicts one more token ahead (DeepSeek-V3)
    # Initial weights. gpt2: all of std 0.02, those into the residual stream smaller. fan_in: std 1/√inputs, those into the
    # residual stream 0, the embedding 0.8 and the head 0.001 if they are not tied.
    init: str = "gpt2"
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
        for field in (*PATTERNS, "mlp_dims", "gate_sparsity"):
            object.__setattr__(self, field, _frozen(getattr(self, field)))
        if self.head_dim == 0 and self.num_heads and self.embed_dim % self.num_heads == 0:
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        check(self)

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
        attention, mlp, rotary = self.attention_kinds, self.mlp_pattern, self.rotary_pattern
        every, dims, sparsity = self.value_embeddings, self.mlp_dims or (0,), self.gate_sparsity or (0.0,)

        def kind(i: int) -> LayerKind:
            has_table, name = every > 0 and (self.num_layers - 1 - i) % every == 0, attention[i]
            recurrent = name if name in (*RECURRENT, "none") else ""
            feeds, rotates = mlp[i % len(mlp)], rotary[i % len(rotary)] == "rotary"
            has_table = has_table and not recurrent
            local, dim, off = name in ("local", "chunk"), dims[i % len(dims)], sparsity[i % len(sparsity)]
            return LayerKind(local, feeds == "moe", has_table, rotates, recurrent, feeds != "none", dim, off)

        kinds = [kind(i) for i in range(self.num_layers)]
        if shared := self.shared_kv_layers:
            kinds[-shared:] = [kind if kind.recurrent else kind._replace(takes=True) for kind in kinds[-shared:]]
            last = {kind.local: i for i, kind in enumerate(kinds) if not (kind.recurrent or kind.takes)}
            for local in {kind.local for kind in kinds if kind.takes} & last.keys():
                kinds[last[local]] = kinds[last[local]]._replace(gives=True)
        return tuple(kinds)

    @property
    def attention_kinds(self) -> tuple[str, ...]:
        """Return the name of each layer's attention, as in attention_pattern."""
        return tuple([self.attention_pattern[i % len(self.attention_pattern)] for i in range(self.num_layers)])

    @property
    def chunked(self) -> bool:
        """Return whether local layers see chunks in place of windows."""
        return "chunk" in self.attention_pattern[: self.num_layers]

    @property
    def recurrent_kinds(self) -> tuple[str, ...]:
        """Return the kinds of layers with a state that this model has."""
        return tuple(sorted(set(RECURRENT).intersection(self.attention_pattern[: self.num_layers])))

    @property
    def attention_layers(self) -> int:
        """Return the number of layers that keep keys and values."""
        return sum(not kind.recurrent and not kind.takes for kind in self.layer_kinds)

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


SECTIONS = {field.name: field.type for field in dataclasses.fields(ModelConfig) if dataclasses.is_dataclass(field.type)}


def model_keys(**values) -> dict:
    """Return every key of `config.model` with its default, updated by `values`. `dtype` is a top-level key of a config."""
    keys = {field.name: field.default for field in dataclasses.fields(ModelConfig) if field.name != "dtype"}
    keys |= {name: dataclasses.asdict(kind()) for name, kind in SECTIONS.items()}
    for name, value in values.items():
        keys[name] = {**keys[name], **value} if isinstance(value, Mapping) else value
    return keys


def _frozen(value):
    return tuple(value) if isinstance(value, list) else value
