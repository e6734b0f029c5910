"""What a model computes, apart from how: the settings that a published config must be able to hold."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

from lm.config import Audio, LatentAttention, MixtureOfExperts, ModelConfig, Recurrent, Rope, Vision
from lm.convert.rotary import KEYS
from lm.convert.rows import Family

# How the model is compiled, trained and stored, and the score head, which any family can have.
LEFT_OUT = {
    *("scan_layers", "remat", "remat_matmuls_last", "offload", "context_attention", "pipeline", "quantized_training"),
    *("frozen", "dtype", "adapter", "quantization", "mup_base_dim", "score_head", "init"),
}


def essence(config: ModelConfig) -> dict:
    """Return the settings that determine the model's function; settings without effect have their defaults.

    Nested keys are dotted. LEFT_OUT are left out.
    """
    kinds, rope, mla, moe = config.layer_kinds, config.rope, config.mla, config.moe
    local, sparse = any(kind.local for kind in kinds), any(kind.moe for kind in kinds)
    found = {key: value for key, value in dataclasses.asdict(config).items() if key not in LEFT_OUT}
    found["attention_pattern"] = config.attention_kinds
    found["mlp_pattern"] = tuple(("moe" if kind.moe else "dense") if kind.feed_forward else "none" for kind in kinds)
    found["rotary_pattern"] = tuple("rotary" if kind.rotary and config.positions == "rotary" else "none" for kind in kinds)
    if not config.attention_temperature:
        found |= {"temperature_length": 0, "temperature_nope": False}
    if config.norm != "layer":
        found["norm_bias"] = True
    if config.qk_norm == "none":
        found["qk_norm_last"] = False
    if not local:
        found["window"] = 0
    if not local or config.positions != "rotary" or config.local_rope == rope:
        found["local_rope_theta"] = 0.0
    if config.query_scale == config.key_head_dim**-0.5 and not (mla.kv_rank and rope.mscale_all_dim):
        found["query_scale"] = 0.0
    dims = tuple(kind.mlp_dim or config.mlp_dim for kind in kinds)
    found["mlp_dims"] = dims if len(set(dims)) > 1 else ()
    found["mlp_dim"] = max(dims)
    found["gate_sparsity"] = tuple(kind.sparsity for kind in kinds) if any(kind.sparsity for kind in kinds) else ()
    if not config.layer_embed_dim or config.layer_embed_vocab == config.vocab_size:
        found["layer_embed_vocab"] = 0
    if not any(not kind.moe for kind in kinds) and moe.expert_dim:
        found["mlp_dim"] = moe.expert_dim
    found["mla"] = dataclasses.asdict(_latent_essence(mla))
    found["rope"] = dataclasses.asdict(_rope_essence(rope, config.positions, bool(mla.kv_rank)))
    found["moe"] = dataclasses.asdict(_moe_essence(moe, config.mlp_dim) if sparse else MixtureOfExperts())
    found |= {name: dataclasses.asdict(_tower_essence(getattr(config, name))) for name in ("vision", "audio")}
    found["recurrent"] = dataclasses.asdict(_recurrent_essence(config.recurrent, config.recurrent_kinds))
    for section in ("mla", "recurrent", "rope", "moe", "vision", "audio"):
        found |= {f"{section}.{key}": value for key, value in found.pop(section).items()}
    return found


def differences(config: ModelConfig, other: ModelConfig, same: Callable[[Any, Any], bool] = operator.eq) -> list[str]:
    """Return the settings in which another model computes something else, as model.KEY=VALUE of `config`."""
    wanted, read = essence(config), essence(other)
    return [f"model.{key}={wanted[key]!r}" for key in sorted(wanted) if not same(read[key], wanted[key])]


def lacks(family: Family, config: ModelConfig) -> list[str]:
    """Return the settings of this model that the family's config.json cannot hold. Raises UserError if it has none at all."""
    return differences(config, family.from_hf(family.to_hf(config)))


def _rope_essence(rope: Rope, positions: str, latent: bool) -> Rope:
    if positions != "rotary":
        return Rope()
    keys = ("theta", "interleaved", "scaling", *(() if latent else ("fraction",)), *KEYS[rope.scaling])
    return Rope(**{key: getattr(rope, key) for key in keys})


def _latent_essence(mla: LatentAttention) -> LatentAttention:
    """Return the settings of latent attention, and of its indexer if it has one."""
    default = LatentAttention()
    unused = (
        {} if mla.index_topk else {key: getattr(default, key) for key in dataclasses.asdict(mla) if key.startswith("index_")}
    )
    return dataclasses.replace(mla, **unused) if mla.kv_rank else default


def _moe_essence(moe: MixtureOfExperts, mlp_dim: int) -> MixtureOfExperts:
    """Return the routing settings; load balancing acts only in training."""
    trained = ("bias_rate", "balance_loss", "router_z_loss", "capacity_factor")
    default = MixtureOfExperts()
    moe = dataclasses.replace(moe, expert_dim=moe.expert_dim or mlp_dim, **{key: getattr(default, key) for key in trained})
    if moe.num_groups == 1:
        moe = dataclasses.replace(moe, top_groups=1, group_score=default.group_score)
    return moe


def _recurrent_essence(recurrent: Recurrent, kinds: tuple[str, ...]) -> Recurrent:
    """Return the settings of the layers with a state, as far as these kinds have them."""
    heads = ("num_heads", "num_key_heads", "key_dim", "value_dim")
    keys = [*(("kernel",) if kinds else ()), *(("bias",) if {"conv", "mamba"} & set(kinds) else ())]
    keys += heads if {"delta", "mamba"} & set(kinds) else ()
    keys += ("least_step",) if "mamba" in kinds else ()
    return Recurrent(**{key: getattr(recurrent, key) for key in keys})


def _tower_essence(tower: Vision | Audio) -> Vision | Audio:
    """Return the settings of an encoder; those of the projector that it does not have are the defaults."""
    if not tower.num_layers:
        return type(tower)()
    without = {"projector_activation": "gelu", "projector_bias": True}
    return tower if tower.projector == "mlp" else dataclasses.replace(tower, **without)
