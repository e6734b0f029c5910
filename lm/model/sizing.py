"""Count a model's parameters, FLOPs per token and cache bytes from its skeleton.

Shapes, roles and axes come from the parameters' declarations. These are model FLOPs, as MFU uses them; lm/train/describe.py
counts the hardware FLOPs of a training step.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
from flax import nnx

from lm.config import ModelConfig, Quantization
from lm.model.linear import trainable
from lm.model.moe import Balance
from lm.model.pages import page_bytes
from lm.model.states import core_flops
from lm.model.transformer import skeleton

PARTS = tuple(
    "embedding attention feed_forward experts shared_expert router norms streams head score mtp vision audio adapters".split()
)


class Piece(NamedTuple):
    """One parameter array: `size` numbers; one token uses the fraction `share` of them: below 1 for experts, 0 for encoders of
    images and speech, whose work depends on how many of these there are."""

    path: tuple[str, ...]
    part: str
    size: int
    is_matrix: bool  # tokens are multiplied with it
    trained: bool
    share: float


class Cost(NamedTuple):
    """FLOPs per token."""

    forward: float
    backward: float


def pieces(config: ModelConfig) -> list[Piece]:
    """Return every parameter of the model, in any storage format. The routers' balance biases are state, not parameters."""
    is_trained = nnx.filterlib.to_predicate(trainable(config))
    trained = {path for path, variable in _variables(config) if is_trained(path, variable)}
    found = []
    for path, variable in _variables(dataclasses.replace(config, quantization=Quantization())):
        if isinstance(variable, Balance):
            continue
        axes, role = (variable.get_metadata()[name] for name in ("out_sharding", "role"))
        is_adapter = isinstance(variable, nnx.LoRAParam)
        found.append(
            Piece(
                path,
                "adapters" if is_adapter else _part(path, axes),
                math.prod(variable.get_value().shape),
                is_matrix=role in ("hidden", "head") or (is_adapter and role != "vector"),
                trained=path in trained,
                share=_share(config, path, axes),
            )
        )
    return found


def _variables(config: ModelConfig) -> list[tuple[tuple[str, ...], nnx.Variable]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(skeleton(config)[1], is_leaf=lambda x: isinstance(x, nnx.Variable))
    return [(tuple(str(key.key) for key in path), variable) for path, variable in flat]


def _share(config: ModelConfig, names: tuple[str, ...], axes: tuple[str, ...]) -> float:
    if names[0] in ("vision", "audio"):
        return 0.0
    return config.moe.top_k / config.moe.num_experts if _of_experts(names, axes) else 1.0


def _of_experts(names: tuple[str, ...], axes: tuple[str, ...]) -> bool:
    return "expert" in axes or names[-1] == "down_bias"  # which every device has whole


def _part(names: tuple[str, ...], axes: tuple[str, ...]) -> str:
    if names[0] in ("mtp", "vision", "audio"):
        return names[0]
    if any(name.endswith("norm") for name in names):
        return "norms"
    if names[-1] in ("router", "router_bias"):
        return "router"
    if "shared" in names or names[-1] == "shared_gate":
        return "shared_expert"
    if _of_experts(names, axes):
        return "experts"
    parts = ("attention", "feed_forward", "head", "score", "streams", "embedding")
    return next(part for part in parts if any(part in name for name in names))


def parameters(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Return {"total", "active", "trained"} -> {part: count}. Active: used by one token, with only its chosen experts."""
    counts = {kind: dict.fromkeys(PARTS, 0) for kind in ("total", "active", "trained")}
    for piece in pieces(config):
        counts["total"][piece.part] += piece.size
        counts["active"][piece.part] += round(piece.size * piece.share)
        counts["trained"][piece.part] += piece.size * piece.trained
    return counts


def flops(config: ModelConfig, sequence_length: int) -> dict[str, Cost]:
    """Return training FLOPs per token by part; "attention_products" are q·kᵀ and p·v, which involve no parameters.

    A matrix of n numbers costs 2·n forward; backward 2·n for the gradient of its input and, if it is trained, 2·n for its own.
    An embedding is a look-up and costs nothing, unless it is also the head. The products of a query with s keys cost
    2·H·(K + V)·s, backward twice that. A query sees T/2 keys on average in a global layer, W − W²/(2·T) in a local
    one, also of W keys that an indexer chooses, and W/2 in one of chunks. What a layer with a state does with it counts as
    these products do. An indexer scores all keys, and has no backward pass.
    """
    costs = dict.fromkeys((*PARTS, "attention_products"), Cost(0.0, 0.0))

    def add(part: str, forward: float, trained: bool = True, passed: bool = True) -> None:
        before = costs[part]
        costs[part] = Cost(before.forward + forward, before.backward + forward * passed * (2 if trained else 1))

    for piece in pieces(config):
        if piece.is_matrix:
            add(piece.part, 2 * piece.size * piece.share, piece.trained, "indexer" not in piece.path)
        if piece.path == ("head",) or (config.tie_embeddings and piece.path == ("embedding",)):
            if not piece.is_matrix:
                add("head", 2 * piece.size, piece.trained)
            add("mtp", 2 * piece.size * config.mtp_depth, piece.trained)
    kinds = (*config.layer_kinds, *config.layer_kinds[-1:] * config.mtp_depth)
    for kind in kinds:
        if kind.recurrent:
            add("attention_products", core_flops(config, kind.recurrent))
            continue
        seen = min(config.window if kind.local else config.mla.index_topk or sequence_length, sequence_length)
        keys = seen / 2 if kind.local and config.chunked else seen - seen**2 / (2 * sequence_length)
        add("attention_products", 2 * config.num_heads * (config.key_head_dim + config.value_head_dim) * keys)
        if config.mla.index_topk:
            add("attention_products", config.mla.index_heads * config.mla.index_head_dim * sequence_length, passed=False)
    return costs


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Return training FLOPs per token, forward and backward: 6·N + 6·L·T·H·K if dense, N without the input embedding."""
    return sum(cost.forward + cost.backward for cost in flops(config, sequence_length).values())


def cache_bytes_per_token(config: ModelConfig, cache_dtype: str = "") -> dict[str, int]:
    """Return {"global", "local"} -> cache bytes per token of all layers of the kind; local ones need only the last W tokens.

    Layers with a state of fixed size have none.

    Counted in the compute dtype, as on accelerators; on a CPU a bfloat16 cache is stored as float32.
    """
    each = page_bytes(config, 1, cache_dtype or config.dtype) // max(1, config.attention_layers)
    local = sum(kind.local and not kind.takes for kind in config.layer_kinds)
    return {"global": (config.attention_layers - local) * each, "local": local * each}
