"""Idefics3: SigLIP's encoder, pixel shuffle, one matrix, and Llama. SmolVLM is the same with other names (smolvlm.py)."""

import dataclasses
from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert.llama import ignored as llama_ignored
from lm.convert.multimodal import encoders
from lm.convert.multimodal.text import check_section, outer_described, text_ends, text_of, text_rows
from lm.convert.rows import Row, linear

MODEL_TYPES = ("idefics3",)
AT, TEXT_AT = "model.vision_model.", "model.text_model."
ignored = (*llama_ignored, rf"model\.vision_model\.{encoders.IGNORED}")

VISION = {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16}
VISION |= {"image_size": 224, "patch_size": 32, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
DEFAULTS = {"image_token_id": 128257, "scale_factor": 2, "tie_word_embeddings": False}
DEFAULTS["text_config"] = {"model_type": "llama", "rms_norm_eps": 1e-5}


def from_hf(hf: Mapping) -> ModelConfig:
    hf = {**DEFAULTS, **hf}
    text = text_of(hf, tie_word_embeddings=hf["tie_word_embeddings"])
    shuffle, token_id = hf["scale_factor"], hf["image_token_id"]
    given = {**VISION, **(hf.get("vision_config") or {})}
    vision = encoders.vision_of(given, encoders.SIGLIP, shuffle=shuffle, token_id=token_id, projector="linear")
    return dataclasses.replace(text, vision=vision)


def to_hf(config: ModelConfig) -> dict:
    return described(config, "idefics3", "Idefics3ForConditionalGeneration")


def described(config: ModelConfig, model_type: str, architecture: str) -> dict:
    is_siglip = {"class_token": False, "patch_bias": True, "pre_norm": False}
    check_section(config, "vision", model_type, feature_layer=0, projector="linear", **is_siglip)
    return {
        **outer_described(config, model_type, architecture),
        "image_token_id": config.vision.token_id,
        "scale_factor": config.vision.shuffle,
        "vision_config": encoders.vision_described(config.vision, f"{model_type}_vision"),
    }


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    return text_rows(config, kind, TEXT_AT)


def ends(config: ModelConfig) -> list[Row]:
    C, D = config.vision.projector_inputs, config.embed_dim
    joint = linear("vision.projector.linear.weight", "model.connector.modality_projection.proj.weight", (C,), (D,))
    return [*text_ends(config, TEXT_AT, "lm_head.weight"), *encoders.vision_ends(config.vision, AT), joint]


def encoder_tables(config: ModelConfig) -> list[tuple[str, list[Row]]]:
    return [("vision", encoders.vision_layer(config.vision, AT))]
