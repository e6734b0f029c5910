"""Gemma 3: Gemma 2 with QK-norm per head instead of soft-caps, five local layers per global one, and a theta for each kind.

From a vision checkpoint (`model_type` gemma3) only the language model is read: `text_config` and its weights, without the
vision tower and its projector.
"""

from collections.abc import Mapping

from lm.config import ModelConfig
from lm.convert.gemma2 import DEFAULTS as GEMMA2
from lm.convert.gemma2 import gemma, gemma_described, rows
from lm.convert.llama import ends, refuse
from lm.convert.llama import ignored as llama_ignored
from lm.convert.rotary import parameters_for, scaled
from lm.errors import UserError

__all__ = ["MODEL_TYPES", "from_hf", "to_hf", "rows", "ends", "ignored", "canonical"]

MODEL_TYPES = ("gemma3", "gemma3_text")
CLASSIFIER = "Gemma3TextForSequenceClassification"
ignored = (*llama_ignored, r"(model\.)?(vision_tower|multi_modal_projector)\..*")

DEFAULTS = {
    **GEMMA2,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "final_logit_softcapping": None,
    "sliding_window_pattern": 6,
}


def from_hf(hf: Mapping) -> ModelConfig:
    if "text_config" in hf:
        outer = {key: hf[key] for key in ("dtype", "torch_dtype", "tie_word_embeddings", "quantization_config") if key in hf}
        hf = {**outer, **hf["text_config"]}
    hf = {**DEFAULTS, **hf}
    by_kind = hf.get("rope_parameters") or {}
    if not all(isinstance(value, Mapping) for value in by_kind.values()):
        raise UserError("rope_parameters in config.json must hold full_attention and sliding_attention")
    whole, local = ({**(by_kind.get(f"{kind}_attention") or {})} for kind in ("full", "sliding"))
    whole |= hf.get("rope_scaling") or {}
    refuse(whole, partial_rotary_factor=1.0)
    refuse(local, rope_type="default", partial_rotary_factor=1.0)
    theta = whole.get("rope_theta") or hf.get("rope_theta") or 1e6
    local_theta = local.get("rope_theta") or hf.get("rope_local_base_freq") or 1e4
    rope = scaled(whole, hf, theta=float(theta))
    return gemma(hf, hf["sliding_window_pattern"], qk_norm="head", rope=rope, local_rope_theta=float(local_theta))


def to_hf(config: ModelConfig) -> dict:
    keys, local = gemma_described(config, "gemma3_text", "Gemma3ForCausalLM"), config.local_rope
    by_kind = {"full_attention": parameters_for(config.rope), "sliding_attention": parameters_for(local)}
    return {**keys, "rope_parameters": by_kind, "rope_local_base_freq": local.theta}


def canonical(name: str) -> str:
    """Return the text model's name of a tensor. A vision checkpoint has one of two prefixes for it."""
    for prefix, plain in (("model.language_model.", "model."), ("language_model.", "")):
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name
