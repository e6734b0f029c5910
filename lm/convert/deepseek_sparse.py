"""DeepSeek-V3.2 and GLM-5: DeepSeek-V3 whose queries see only the keys that an indexer chooses (lm/model/indexer.py)."""

import dataclasses
from collections.abc import Mapping

from lm.config import ModelConfig
from lm.convert import deepseek
from lm.convert.deepseek import DEEPSEEK, V3_DEFAULTS
from lm.convert.llama import refuse
from lm.errors import UserError

DEEPSEEK_DEFAULTS = {
    **V3_DEFAULTS, "max_position_embeddings": 163840, "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64,
}  # fmt: skip
GLM_DEFAULTS = {
    **DEEPSEEK_DEFAULTS, "vocab_size": 154880, "hidden_size": 6144, "intermediate_size": 12288, "num_hidden_layers": 78,
    "num_attention_heads": 64, "num_key_value_heads": 64, "q_lora_rank": 2048, "v_head_dim": 256, "qk_nope_head_dim": 192,
    "n_group": 1, "topk_group": 1, "max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "index_n_heads": 32,
}  # fmt: skip


def from_hf(hf: Mapping) -> ModelConfig:
    glm = hf["model_type"] == "glm_moe_dsa"
    hf = {**(GLM_DEFAULTS if glm else DEEPSEEK_DEFAULTS), **hf}
    refuse(hf, rope_interleave=True, indexer_rope_interleave=glm, index_topk_freq=1)
    if any(kind not in ("full", "F") for key in ("indexer_types", "index_topk_pattern") for kind in hf.get(key) or ()):
        raise UserError("indexer_types in config.json has shared layers, which take the tokens that another layer has chosen")
    if not hf["index_topk"]:
        raise UserError(f"index_topk={hf['index_topk']} in config.json must be at least 1")
    config = deepseek.from_hf(hf)
    mla = dataclasses.replace(
        config.mla,
        index_topk=hf["index_topk"],
        index_heads=hf["index_n_heads"],
        index_head_dim=hf["index_head_dim"],
        index_interleaved=glm,
    )
    return dataclasses.replace(config, mla=mla)


def to_hf(config: ModelConfig) -> dict:
    mla = config.mla
    if not mla.index_topk:
        raise UserError("model.mla.index_topk=0: this family has an indexer")
    name = ("glm_moe_dsa", "GlmMoeDsaForCausalLM") if mla.index_interleaved else ("deepseek_v32", "DeepseekV32ForCausalLM")
    keys = deepseek.to_hf(config)
    keys.pop("rope_interleave", None)  # both rotate neighbouring dimensions
    return keys | {
        "model_type": name[0],
        "architectures": [name[1]],
        "mlp_layer_types": ["sparse" if kind.moe else "dense" for kind in config.layer_kinds],
        "index_topk": mla.index_topk,
        "index_n_heads": mla.index_heads,
        "index_head_dim": mla.index_head_dim,
    }


DEEPSEEK_SPARSE = DEEPSEEK._replace(model_types=("glm_moe_dsa", "deepseek_v32"), from_hf=from_hf, to_hf=to_hf, gguf="")
