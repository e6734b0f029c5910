"""The families of models that see or hear: Idefics3 and SmolVLM, LLaVA, Voxtral.

The config.json of such a model has a `text_config` for its language model, whose tensors have a prefix.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping

from lm.config import Audio, LayerKind, ModelConfig, Vision
from lm.convert.essence import lacks
from lm.convert.llama import LLAMA
from lm.convert.multimodal import encoders
from lm.convert.relatives import MISTRAL, QWEN2, QWEN3
from lm.convert.rows import Family, Row, linear
from lm.errors import UserError
from lm.files.untrusted import short

SEES, HEARS = "vision_tower.vision_model.", "audio_tower."
TEXT_AT, HEAD, JOINT = "language_model.model.", "language_model.lm_head.weight", "multi_modal_projector."
IGNORED_TEXT = tuple(rf"language_model\.{pattern}" for pattern in LLAMA.ignored)
BY_TYPE = {family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}  # whose tensors have the same names
OUTER = ("dtype", "torch_dtype", "quantization_config")  # keys that stand at the top level, for all parts


def text_of(hf: Mapping, **more) -> ModelConfig:
    """Return the config of the language model. more: keys of text_config, over those that are there."""
    text = hf.get("text_config") or {}
    if not isinstance(text, Mapping):
        raise UserError(f"text_config={short(text)} in config.json must be an object with the settings of the language model")
    name = text.get("model_type", "llama")
    if name not in BY_TYPE:
        raise UserError(f"text_config.model_type={short(name)} in config.json is none of {', '.join(BY_TYPE)}")
    return BY_TYPE[name].from_hf({**{key: hf[key] for key in OUTER if key in hf}, **text, **more})


def alone(config: ModelConfig) -> ModelConfig:
    """Return the config of the language model without its encoders."""
    return dataclasses.replace(config, vision=Vision(), audio=Audio())


def family_of_text(config: ModelConfig) -> Family:
    """Return the first of these families that can hold the language model of a config."""
    for family in BY_TYPE.values():
        with contextlib.suppress(UserError):
            if not lacks(family, alone(config)):
                return family
    raise UserError(f"the language model is none of those that models with encoders are exported with: {', '.join(BY_TYPE)}")


def described(config: ModelConfig, model_type: str, architecture: str) -> dict:
    """Return the keys at the top level of config.json, with `text_config`, the inverse of `text_of`."""
    text = family_of_text(config).to_hf(alone(config))
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": config.dtype,
        "text_config": {key: value for key, value in text.items() if key not in ("architectures", "dtype")},
    }


def check_section(config: ModelConfig, name: str, model_type: str, **expected) -> None:
    """Raise UserError unless the config has this encoder, no other one, and these settings of it."""
    other = "audio" if name == "vision" else "vision"
    if not getattr(config, name).num_layers or getattr(config, other).num_layers:
        raise UserError(f"{model_type} has an encoder in model.{name} and none in model.{other}")
    for key, value in expected.items():
        if getattr(getattr(config, name), key) != value:
            raise UserError(f"model.{name}.{key}={getattr(getattr(config, name), key)!r} does not exist in {model_type}")


def joined(
    model_type: str,
    section: str,
    from_hf: Callable[[Mapping], ModelConfig],
    to_hf: Callable[[ModelConfig], dict],
    *,
    at: str,
    projector: Callable[[ModelConfig], list[Row]],
    text: tuple[str, str],
    **more,
) -> Family:
    """Return the family of a language model with an encoder in this section of the config, "vision" or "audio".

    Args:
      at: the prefix of the encoder's tensors. projector: returns the projector's rows of a config.
      text: what stands in place of "model." in the names of the language model's tensors, and the name of its head.
      more: other fields of Family.
    """
    prefix, head = text
    tower_ends, tower_layer = encoders.ROWS[section]

    def renamed(row: Row) -> Row:
        theirs = head if row.ours == "head" else prefix + row.theirs.removeprefix("model.")
        return dataclasses.replace(row, theirs=theirs)

    def rows(config: ModelConfig, kind: LayerKind) -> list[Row]:
        return [renamed(row) for row in family_of_text(config).rows(alone(config), kind)]

    def ends(config: ModelConfig) -> list[Row]:
        of_text = map(renamed, family_of_text(config).ends(alone(config)))
        return [*of_text, *tower_ends(getattr(config, section), at), *projector(config)]

    def encoder_layers(config: ModelConfig) -> dict[str, list[Row]]:
        return {section: tower_layer(getattr(config, section), at)}

    return Family((model_type,), from_hf, to_hf, rows, ends, encoder_layers=encoder_layers, **more)


def hub_name(name: str) -> str:
    """Return the name on the hub of a tensor that transformers' models and older checkpoints name in other ways."""
    name = re.sub(r"^model\.(?=language_model|vision_tower|audio_tower|multi_modal_projector)", "", name)
    name = re.sub(r"^vision_tower\.(?!vision_model\.)", SEES, name)
    name = re.sub(r"^language_model\.(?!model\.|lm_head\.)", TEXT_AT, name)
    return HEAD if name == "lm_head.weight" else name


# Idefics3: SigLIP's encoder, pixel shuffle, one matrix, and Llama. SmolVLM is the same with other names.
IDEFICS3_VISION = {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16}
IDEFICS3_VISION |= {"image_size": 224, "patch_size": 32, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
IDEFICS3_DEFAULTS = {"image_token_id": 128257, "scale_factor": 2, "tie_word_embeddings": False}
IDEFICS3_DEFAULTS["text_config"] = {"model_type": "llama", "rms_norm_eps": 1e-5}


def idefics3_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**IDEFICS3_DEFAULTS, **hf}
    text = text_of(hf, tie_word_embeddings=hf["tie_word_embeddings"])
    shuffle, token_id = hf["scale_factor"], hf["image_token_id"]
    settings = {**IDEFICS3_VISION, **(hf.get("vision_config") or {})}
    vision = encoders.vision_of(settings, encoders.SIGLIP, shuffle=shuffle, token_id=token_id, projector="linear")
    return dataclasses.replace(text, vision=vision)


def idefics3_to_hf(
    config: ModelConfig, model_type: str = "idefics3", architecture: str = "Idefics3ForConditionalGeneration"
) -> dict:
    is_siglip = {"class_token": False, "patch_bias": True, "pre_norm": False}
    check_section(config, "vision", model_type, feature_layer=0, projector="linear", **is_siglip)
    return {
        **described(config, model_type, architecture),
        "image_token_id": config.vision.token_id,
        "scale_factor": config.vision.shuffle,
        "vision_config": encoders.vision_described(config.vision, f"{model_type}_vision"),
    }


def idefics3_projector(config: ModelConfig) -> list[Row]:
    inputs, theirs = config.vision.projector_inputs, "model.connector.modality_projection.proj.weight"
    return [linear("vision.projector.linear.weight", theirs, (inputs,), (config.embed_dim,))]


IDEFICS3 = joined(
    "idefics3",
    "vision",
    idefics3_from_hf,
    idefics3_to_hf,
    at="model.vision_model.",
    projector=idefics3_projector,
    text=("model.text_model.", "lm_head.weight"),
    ignored=(*LLAMA.ignored, rf"model\.vision_model\.{encoders.IGNORED}"),
)
SMOLVLM = IDEFICS3._replace(
    model_types=("smolvlm",), to_hf=lambda config: idefics3_to_hf(config, "smolvlm", "SmolVLMForConditionalGeneration")
)

# LLaVA 1.5 and its kin: CLIP's or SigLIP's encoder, a projector of two layers, and a language model.
LLAVA_VISION = {"model_type": encoders.CLIP, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
LLAVA_VISION |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14}
LLAVA_DEFAULTS = {
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
}


def llava_from_hf(hf: Mapping) -> ModelConfig:
    hf = {**LLAVA_DEFAULTS, **hf}
    tower, inner = hf.get("vision_config") or LLAVA_VISION, hf.get("text_config") or {}
    kind = tower.get("model_type") if isinstance(tower, Mapping) else None
    if kind not in encoders.DEFAULTS:
        raise UserError(f"vision_config.model_type={short(kind)} in config.json is none of {', '.join(encoders.DEFAULTS)}")
    strategy, possible = hf["vision_feature_select_strategy"], "default" if kind == encoders.CLIP else "full"
    if strategy != possible:
        raise UserError(
            f"vision_feature_select_strategy={strategy!r} in config.json: with {kind} only {possible!r} is possible"
        )
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


def llava_to_hf(config: ModelConfig) -> dict:
    vision = config.vision
    check_section(config, "vision", "llava", shuffle=1, projector="mlp")
    if vision.feature_layer == 0:
        raise UserError("model.vision.feature_layer=0 does not exist in llava, which never uses the states after the last norm")
    return {
        **described(config, "llava", "LlavaForConditionalGeneration"),
        "image_token_index": vision.token_id,
        "image_seq_length": vision.tokens,
        "projector_hidden_act": encoders.NAMES[vision.projector_activation],
        "multimodal_projector_bias": vision.projector_bias,
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": "default" if vision.class_token else "full",
        "vision_config": encoders.vision_described(vision),
    }


LLAVA = joined(
    "llava",
    "vision",
    llava_from_hf,
    llava_to_hf,
    at=SEES,
    projector=lambda config: encoders.projector(config.vision, "vision", config.embed_dim, JOINT),
    text=(TEXT_AT, HEAD),
    ignored=(*IGNORED_TEXT, rf"vision_tower\.vision_model\.{encoders.IGNORED}"),
    canonical=hub_name,
)

# Voxtral: Whisper's encoder, stacks of frames, a projector of two layers without biases, and Llama.
VOXTRAL_TEXT = {"vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 30}
VOXTRAL_TEXT |= {"head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
VOXTRAL_TEXT |= {"rope_theta": 1e8}


def voxtral_from_hf(hf: Mapping) -> ModelConfig:
    own = hf.get("audio_config") or {}
    settings = {**encoders.VOXTRAL, **{encoders.VOXTRAL_NAMES.get(key, key): value for key, value in own.items()}}
    D, F = settings["hidden_size"], settings["intermediate_size"]
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
    text = text_of({**hf, "text_config": {**VOXTRAL_TEXT, **(hf.get("text_config") or {})}}, tie_word_embeddings=False)
    return dataclasses.replace(text, audio=audio)


def voxtral_to_hf(config: ModelConfig) -> dict:
    audio = config.audio
    check_section(config, "audio", "voxtral", projector="mlp", projector_bias=False)
    if audio.stack * audio.embed_dim != audio.mlp_dim:
        raise UserError(f"model.audio.stack={audio.stack} cannot be exported: voxtral has mlp_dim / embed_dim")
    return {
        **described(config, "voxtral", "VoxtralForConditionalGeneration"),
        "audio_token_id": audio.token_id,
        "projector_hidden_act": encoders.NAMES[audio.projector_activation],
        "audio_config": encoders.audio_described(audio),
    }


VOXTRAL = joined(
    "voxtral",
    "audio",
    voxtral_from_hf,
    voxtral_to_hf,
    at=HEARS,
    projector=lambda config: encoders.projector(config.audio, "audio", config.embed_dim, JOINT),
    text=(TEXT_AT, HEAD),
    ignored=IGNORED_TEXT,
    canonical=hub_name,
)
