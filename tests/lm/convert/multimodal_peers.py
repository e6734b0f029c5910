"""Tiny models of the transformers library that see or hear, with random weights."""

import functools

import numpy as np

from tests.lm.convert.peer_configs import COMMON, PLAIN

IMAGE, SOUND = 90, 91  # ids of the tokens that hold places
LENGTH = 40
TEXT = {**COMMON, "model_type": "llama", "rope_parameters": PLAIN, "rms_norm_eps": 1e-5}
VISION = dict(hidden_size=32, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=26, patch_size=4)
AUDIO = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
AUDIO |= dict(model_type="voxtral_encoder", num_mel_bins=6, max_source_positions=16)

# By name: the class, what its config holds beside a text_config, and tokens of an image or a window.
PEERS = {
    "idefics3": ("Idefics3", dict(vision_config=VISION, image_token_id=IMAGE, scale_factor=2), 9),
    "smolvlm": (
        "SmolVLM",
        dict(vision_config={**VISION, "patch_size": 8}, image_token_id=IMAGE, scale_factor=1, tie_word_embeddings=True),
        9,
    ),
    "llava-clip": (
        "Llava",
        dict(vision_config={**VISION, "patch_size": 8, "image_size": 24, "model_type": "clip_vision_model"}),
        9,
    ),
    "llava-siglip": (
        "Llava",
        dict(
            vision_config={**VISION, "patch_size": 8, "image_size": 24, "model_type": "siglip_vision_model"},
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
            multimodal_projector_bias=False,
        ),
        9,
    ),
    "llava-qwen2": (
        "Llava",
        dict(
            vision_config={**VISION, "patch_size": 8, "image_size": 24, "model_type": "clip_vision_model"},
            text_config={**TEXT, "model_type": "qwen2", "tie_word_embeddings": True},
            vision_feature_layer=2,
            projector_hidden_act="gelu_pytorch_tanh",
        ),
        9,
    ),
    "voxtral": ("Voxtral", dict(audio_config=AUDIO, audio_token_id=SOUND, text_config={**TEXT, "head_dim": 12}), 8),
}


@functools.cache
def peer(name: str):
    """The model, in float32 and evaluation; shared, so leave it as it is."""
    import torch
    import transformers

    torch.set_num_threads(1)
    kind, keys, _ = PEERS[name]
    keys = {"text_config": TEXT, **keys}
    if kind == "Llava":
        keys["image_token_index"] = IMAGE
    config = getattr(transformers, f"{kind}Config")(**keys)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")._from_config(config, attn_implementation="eager")
    return randomized(model.float().eval(), tied=getattr(config, "tie_word_embeddings", False))


def randomized(model, tied: bool = False):
    """The model with weights that let every part show in its results."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for path, x in model.named_parameters():
        noise = torch.randn(x.shape, generator=generator)
        with torch.no_grad():
            if x.ndim == 1:
                x.add_(0.3 * noise)
                if tied and path.endswith(("text_model.norm.weight", "language_model.norm.weight")):
                    x.add_(1.5)
            elif "embed_tokens" in path:
                x.copy_(noise * 0.4 / x.shape[1] ** 0.5 if tied else noise)
            elif "position" in path:
                x.copy_(noise)
            else:
                x.copy_(noise * 1.5 / np.prod(x.shape[1:]) ** 0.5)
    return model


def batch(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
    """Tokens, whether they are real, positions, our images [B, N, …] or sound, and what transformers' model takes instead.

    The first row has two images, the second, padded on the left, one, and the third none.
    """
    rng, (kind, keys, each) = np.random.default_rng(1), PEERS[name]
    tokens = rng.integers(1, IMAGE, (3, LENGTH))
    real = np.arange(LENGTH) >= np.array([[0], [7], [3]])
    token = SOUND if kind == "Voxtral" else IMAGE
    for row, first in ((0, 4), (0, 20), (1, 12)):
        tokens[row, first : first + each] = token
    if kind == "Voxtral":
        frames, mels = 2 * AUDIO["max_source_positions"], AUDIO["num_mel_bins"]
        media = rng.standard_normal((3, 2, frames, mels)).astype(np.float32)
    else:
        size = keys["vision_config"]["image_size"]
        media = rng.standard_normal((3, 2, size, size, 3)).astype(np.float32)
    media[1, 1] = media[2] = 0
    there = np.array([[1, 1], [1, 0], [0, 0]], bool)
    if kind == "Voxtral":
        theirs = {"input_features": media[there].swapaxes(1, 2)}
    elif kind == "Llava":
        theirs = {"pixel_values": np.moveaxis(media[there], -1, 1)}
    else:
        theirs = {"pixel_values": np.moveaxis(media, -1, 2)}
    positions = np.maximum(0, np.cumsum(real, 1) - 1)
    return np.where(real, tokens, 0), real, positions, media, theirs
