"""Published encoders: SigLIP's and CLIP's of images, Whisper's of speech. Their settings, and rows with any prefix."""

from collections.abc import Mapping

from lm.config import Audio, Vision
from lm.convert.llama import ACTIVATION_NAMES, ACTIVATIONS, refuse
from lm.convert.rows import Row, dense, layer_norm, same, table
from lm.errors import UserError

SIGLIP, CLIP = "siglip_vision_model", "clip_vision_model"
NAMES = {**ACTIVATION_NAMES, "quick_gelu": "quick_gelu"}

SIZES = {"embed_dim": "hidden_size", "mlp_dim": "intermediate_size"}  # field of an encoder: key of its config.json
SIZES |= {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
# The defaults of transformers' classes.
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
DEFAULTS = {
    SIGLIP: {**BASE, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    CLIP: {**BASE, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}
VOXTRAL = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
VOXTRAL_NAMES = {  # older config.json files have Whisper's names, as transformers allows
    "d_model": "hidden_size",
    "encoder_ffn_dim": "intermediate_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
}
VOXTRAL |= {"num_mel_bins": 128, "max_source_positions": 1500, "activation_function": "gelu"}
# SigLIP's pooling and buffers of positions: they do not act on the states.
IGNORED = r"(head\..*|embeddings\.position_ids)"


def activation(name) -> str:
    known = {**ACTIVATIONS, "quick_gelu": "quick_gelu"}
    if name not in known:
        raise UserError(f"the activation {name!r} in config.json is none of {', '.join(known)}")
    return known[name]


def vision_of(hf: Mapping, kind: str, **more) -> Vision:
    """Return the settings of a vision encoder. hf: its config, with all defaults of its class but those of DEFAULTS[kind]."""
    hf = {**DEFAULTS[kind], **hf}
    refuse(hf, num_channels=3)
    clip = kind == CLIP
    return Vision(
        **{ours: hf[theirs] for ours, theirs in SIZES.items()},
        image_size=hf["image_size"],
        patch_size=hf["patch_size"],
        activation=activation(hf["hidden_act"]),
        norm_eps=hf["layer_norm_eps"],
        **{"class_token": clip, "patch_bias": not clip, "pre_norm": clip, **more},
    )


def kind_of(vision: Vision) -> str:
    """Return the model_type of a vision encoder. Raises UserError if it is neither SigLIP's nor CLIP's."""
    for kind, clip in ((SIGLIP, False), (CLIP, True)):
        if (vision.class_token, vision.patch_bias, vision.pre_norm) == (clip, not clip, clip):
            return kind
    raise UserError("model.vision is neither SigLIP's encoder nor CLIP's: class_token, patch_bias and pre_norm do not agree")


def vision_described(vision: Vision, model_type: str = "") -> dict:
    """Return the config of a vision encoder; the inverse of `vision_of`. model_type: default `kind_of`."""
    kind = model_type or kind_of(vision)
    more = {"vision_use_head": False} if kind == SIGLIP else {}
    return {
        "model_type": kind,
        **{theirs: getattr(vision, ours) for ours, theirs in SIZES.items()},
        "num_channels": 3,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": NAMES[vision.activation],
        "layer_norm_eps": vision.norm_eps,
        **more,
    }


def vision_ends(vision: Vision, at: str) -> list[Row]:
    """Return the rows of a vision encoder outside of its layers. at: the prefix of its tensors."""
    D, p, patch = vision.embed_dim, vision.patch_size, f"{at}embeddings.patch_embedding"
    found = [Row("vision.patches.weight", f"{patch}.weight", (D, 3, p, p), (D, 3, p, p), (2, 3, 1, 0))]
    if vision.patch_bias:
        found.append(same("vision.patches.bias", f"{patch}.bias", D))
    if vision.class_token:
        found.append(same("vision.class_token", f"{at}embeddings.class_embedding", D))
    positions = vision.patches**2 + vision.class_token
    found.append(table("vision.positions", f"{at}embeddings.position_embedding.weight", positions, D))
    if vision.pre_norm:
        found += layer_norm("vision.pre_norm", f"{at}pre_layrnorm", D)
    return [*found, *layer_norm("vision.norm", f"{at}post_layernorm", D)]


def vision_layer(vision: Vision, at: str) -> list[Row]:
    """Return the rows of a layer of a vision encoder."""
    at = f"{at}encoder.layers.{{layer}}."
    return _layer(vision, at, norms=("layer_norm1", "layer_norm2"), feed_forward="mlp.", key_bias=True)


def audio_of(hf: Mapping, **more) -> Audio:
    """Return the settings of Voxtral's encoder, which is Whisper's. hf: its config, with all defaults of its class."""
    return Audio(
        **{ours: hf[theirs] for ours, theirs in SIZES.items()},
        num_mels=hf["num_mel_bins"],
        num_frames=2 * hf["max_source_positions"],
        activation=activation(hf["activation_function"]),
        norm_eps=1e-5,
        **more,
    )


def audio_described(audio: Audio) -> dict:
    """Return the config of Voxtral's encoder; the inverse of `audio_of`."""
    if audio.norm_eps != 1e-5:
        raise UserError(f"model.audio.norm_eps={audio.norm_eps} cannot be exported: Whisper's is 1e-05")
    return {
        "model_type": "voxtral_encoder",
        "num_hidden_layers": audio.num_layers,
        "hidden_size": audio.embed_dim,
        "num_attention_heads": audio.num_heads,
        "intermediate_size": audio.mlp_dim,
        "num_mel_bins": audio.num_mels,
        "max_source_positions": audio.positions,
        "activation_function": NAMES[audio.activation],
    }


def audio_ends(audio: Audio, at: str) -> list[Row]:
    """Return the rows of Whisper's encoder outside of its layers."""
    D, found = audio.embed_dim, []
    for ours, theirs, inputs in (("first", "conv1", audio.num_mels), ("second", "conv2", D)):
        shape = (D, inputs, 3)
        found.append(Row(f"audio.{ours}.weight", f"{at}{theirs}.weight", shape, shape, (2, 1, 0)))
        found.append(same(f"audio.{ours}.bias", f"{at}{theirs}.bias", D))
    found.append(table("audio.positions", f"{at}embed_positions.weight", audio.positions, D))
    return [*found, *layer_norm("audio.norm", f"{at}layer_norm", D)]


def audio_layer(audio: Audio, at: str) -> list[Row]:
    """Return the rows of a layer of Whisper's encoder, whose keys have no bias."""
    norms = ("self_attn_layer_norm", "final_layer_norm")
    return _layer(audio, f"{at}layers.{{layer}}.", norms=norms, feed_forward="", key_bias=False)


# By section of the config: the rows outside of the layers, and those of a layer.
ROWS = {"vision": (vision_ends, vision_layer), "audio": (audio_ends, audio_layer)}


def projector(tower: Vision | Audio, name: str, D: int, at: str) -> list[Row]:
    """Return the rows of a projector of two layers to width D, as LLaVA and Voxtral name them."""
    found = []
    for ours, theirs, inputs in (("first", "linear_1", tower.projector_inputs), ("second", "linear_2", D)):
        found += dense(f"{name}.projector.{ours}", f"{at}{theirs}", (inputs,), (D,), tower.projector_bias)
    return found


def _layer(tower: Vision | Audio, at: str, norms: tuple[str, str], feed_forward: str, key_bias: bool) -> list[Row]:
    D, H, F = tower.embed_dim, tower.num_heads, tower.mlp_dim
    found = [*layer_norm("attention_norm", f"{at}{norms[0]}", D), *layer_norm("feed_forward_norm", f"{at}{norms[1]}", D)]
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        found += dense(ours, f"{at}self_attn.{theirs}", (D,), (H, D // H), key_bias or ours != "key")
    found += dense("output", f"{at}self_attn.out_proj", (H, D // H), (D,), bias=True)
    for ours, theirs, inputs, outputs in (("up", "fc1", D, F), ("down", "fc2", F, D)):
        found += dense(ours, f"{at}{feed_forward}{theirs}", (inputs,), (outputs,), bias=True)
    return found
