"""Voxtral: Whisper's encoder, stacks of frames, a projector of two layers without biases, and Llama."""

import dataclasses
import re
from collections.abc import Mapping

from lm.config import LayerKind, ModelConfig
from lm.convert.llama import ignored as llama_ignored
from lm.convert.multimodal import encoders
from lm.convert.multimodal.text import check_section, outer_described, text_ends, text_of, text_rows
from lm.convert.rows import Row
from lm.errors import UserError

MODEL_TYPES = ("voxtral",)
AT, TEXT_AT, HEAD, JOINT = "audio_tower.", "language_model.model.", "language_model.lm_head.weight", "multi_modal_projector."
ignored = tuple(rf"language_model\.{one}" for one in llama_ignored)

TEXT = {"vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 30, "head_dim": 128}
TEXT |= {"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e8}
AUDIO = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
AUDIO |= {"num_mel_bins": 128, "max_source_positions": 1500, "activation_function": "gelu"}
WHISPERS = {  # Whisper's names of the same settings
    "d_model": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_dim": "intermediate_size",
}


def with_whispers_names(audio: Mapping) -> dict:
    """Return the settings of VoxtralEncoder by the names of Whisper's config, with the defaults of transformers' class."""
    settings = {**AUDIO, **{WHISPERS.get(key, key): value for key, value in audio.items()}}
    return settings | {whispers: settings[name] for whispers, name in WHISPERS.items()}


def from_hf(hf: Mapping) -> ModelConfig:
    settings = with_whispers_names(hf.get("audio_config") or {})
    D, F = settings["d_model"], settings["encoder_ffn_dim"]
    if F % D:
        raise UserError(f"audio_config in config.json: hidden_size={D} does not divide intermediate_size={F}")
    audio = encoders.audio_of(
        settings,
        stack=F // D,
        projector="mlp",
        projector_activation=encoders.activation(hf.get("projector_hidden_act", "gelu")),
        projector_bias=False,
        token_id=hf.get("audio_token_id"),
    )
    text = text_of({**hf, "text_config": {**TEXT, **(hf.get("text_config") or {})}}, tie_word_embeddings=False)
    return dataclasses.replace(text, audio=audio)


def to_hf(config: ModelConfig) -> dict:
    audio = config.audio
    check_section(config, "audio", "voxtral", projector="mlp", projector_bias=False)
    if audio.stack * audio.embed_dim != audio.mlp_dim:
        raise UserError(f"model.audio.stack={audio.stack} cannot be exported: voxtral has mlp_dim / embed_dim")
    settings = encoders.audio_described(audio)
    return {
        **outer_described(config, "voxtral", "VoxtralForConditionalGeneration"),
        "audio_token_id": audio.token_id,
        "projector_hidden_act": encoders.NAMES[audio.projector_activation],
        "audio_config": {"model_type": "voxtral_encoder"} | {WHISPERS.get(key, key): x for key, x in settings.items()},
    }


def canonical(name: str) -> str:
    """Return the name on the hub of a tensor that transformers' models name in another way."""
    name = re.sub(r"^model\.(?=language_model|audio_tower|multi_modal_projector)", "", name)
    name = re.sub(r"^language_model\.(?!model\.|lm_head\.)", TEXT_AT, name)
    return HEAD if name == "lm_head.weight" else name


def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
    return text_rows(config, kind, TEXT_AT)


def ends(config: ModelConfig) -> list[Row]:
    joint = encoders.projector(config.audio, "audio", config.embed_dim, JOINT)
    return [*text_ends(config, TEXT_AT, HEAD), *encoders.audio_ends(config.audio, AT), *joint]


def encoder_tables(config: ModelConfig) -> list[tuple[str, list[Row]]]:
    return [("audio", encoders.audio_layer(config.audio, AT))]
