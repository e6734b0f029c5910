"""LLaVA 1.5 and its kin: CLIP's or SigLIP's encoder, a projector of two layers, and a language model.

Checkpoints exist with several prefixes. Those of the hub are written.
"""

import dataclasses
import re
from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert.llama import ignored as llama_ignored
from lm.convert.multimodal import encoders
from lm.convert.multimodal.text import check_section, outer_described, text_ends, text_of, text_rows
from lm.convert.rows import Row
from lm.errors import UserError
from lm.files.untrusted import short

MODEL_TYPES = ("llava",)
AT, JOINT = "vision_tower.vision_model.", "multi_modal_projector."
TEXT_AT, HEAD = "language_model.model.", "language_model.lm_head.weight"
ignored = (*(rf"language_model\.{one}" for one in llama_ignored), rf"vision_tower\.vision_model\.{encoders.IGNORED}")

CLIP_L = {"model_type": encoders.CLIP, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
CLIP_L |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14}
DEFAULTS = {
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
}


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    tower, inner = hf.get("vision_config") or CLIP_L, hf.get("text_config") or {}
    kind = tower.get("model_type") if isinstance(tower, Mapping) else None
    if kind not in encoders.DEFAULTS:
        raise UserError(f"vision_config.model_type={short(kind)} in config.json is none of {', '.join(encoders.DEFAULTS)}")
    kept = "default" if kind == encoders.CLIP else "full"
    if hf["vision_feature_select_strategy"] != kept:
        strategy = hf["vision_feature_select_strategy"]
        raise UserError(f"vision_feature_select_strategy={strategy!r} in config.json: with {kind} only {kept!r} is possible")
    layer = hf["vision_feature_layer"]
    if type(layer) is not int:
        raise UserError(f"vision_feature_layer={short(layer)} in config.json: only the states of one layer can be used")
    tie = bool(hf.get("tie_word_embeddings") or inner.get("tie_word_embeddings"))
    text = text_of(hf, tie_word_embeddings=tie)
    layers = {**encoders.DEFAULTS[kind], **tower}["num_hidden_layers"]
    vision = encoders.vision_of(
        tower,
        kind,
        feature_layer=layer if layer < 0 else layer - layers - 1,
        projector="mlp",
        projector_activation=encoders.activation(hf["projector_hidden_act"]),
        projector_bias=bool(hf["multimodal_projector_bias"]),
        token_id=hf.get("image_token_id", hf["image_token_index"]),
    )
    return dataclasses.replace(text, vision=vision)


def to_hf(config: ModelConfig) -> dict:
    vision = config.vision
    check_section(config, "vision", "llava", shuffle=1, projector="mlp")
    if vision.feature_layer == 0:
        raise UserError("model.vision.feature_layer=0 does not exist in llava, which never uses the states after the last norm")
    return {
        **outer_described(config, "llava", "LlavaForConditionalGeneration"),
        "image_token_index": vision.token_id,
        "image_seq_length": vision.tokens,
        "projector_hidden_act": encoders.NAMES[vision.projector_activation],
        "multimodal_projector_bias": vision.projector_bias,
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": "default" if vision.class_token else "full",
        "vision_config": encoders.vision_described(vision),
    }


def canonical(name: str) -> str:
    """Return the name on the hub of a tensor that transformers' models and older checkpoints name in other ways."""
    name = re.sub(r"^model\.(?=language_model|vision_tower|multi_modal_projector)", "", name)
    name = re.sub(r"^vision_tower\.(?!vision_model\.)", AT, name)
    name = re.sub(r"^language_model\.(?!model\.|lm_head\.)", TEXT_AT, name)
    return HEAD if name == "lm_head.weight" else name


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    return text_rows(config, kind, TEXT_AT)


def ends(config: ModelConfig) -> list[Row]:
    joint = encoders.projector(config.vision, "vision", config.embed_dim, JOINT)
    return [*text_ends(config, TEXT_AT, HEAD), *encoders.vision_ends(config.vision, AT), *joint]


def encoder_tables(config: ModelConfig) -> list[tuple[str, list[Row]]]:
    return [("vision", encoders.vision_layer(config.vision, AT))]
