"""Teach a language model to see or hear: fresh encoders of images or speech beside init_from, trained by sft.

    senses.py                  images; encoder, projector and language model are trained
    senses.py:audio            speech; senses.py:images,audio for both
    senses.py:encoder          the language model keeps its weights; also senses.py:audio,encoder
    senses.py:projector        only the projector is trained, for an encoder that is trained already

If init_from has an encoder already, it must have the same keys in model.vision and model.audio; sft.py takes any.
"""

from configs.align import default
from lm.errors import UserError

WORDS = ("images", "audio", "encoder", "projector")
LANGUAGE = r"embedding|position_embedding|stacks\..*|norm\..*|head"  # parameters of the language model


def get_config(words: str = "images"):
    asked = words.split(",")
    if unknown := [word for word in asked if word not in WORDS]:
        raise UserError(f"configs/align/senses.py:{words}: {unknown[0]!r} is none of {', '.join(WORDS)}")
    hears = "audio" in asked
    sees = "images" in asked or not hears
    config = default.get_config()
    config.method = "sft"
    config.sequence_length = 256  # several short conversations are packed into a row
    config.rewards = "answer=1"  # exact answers to held-out questions, for data with a column `answer`
    config.rollout.max_new_tokens = 12
    config.rollout.max_prompt_tokens = 240
    config.optimizer.name = "muon"  # spoken commands: 94 % right after 300 steps, 66 % after 500 with adamw
    config.optimizer.learning_rate = 2e-3
    if sees:  # token_id=-1: the tokenizer's symbol for images
        config.model.vision.update(num_layers=4, embed_dim=128, num_heads=4, mlp_dim=512, image_size=64, patch_size=8)
        config.model.vision.update(shuffle=2, projector="mlp")
    if hears:  # windows of one second, ten tokens each
        config.model.audio.update(num_layers=4, embed_dim=128, num_heads=4, mlp_dim=512, num_mels=40, num_frames=100, stack=5)
    if "projector" in asked:
        config.model.frozen = rf"(vision|audio)\.(?!projector).*|{LANGUAGE}"
    elif "encoder" in asked:
        config.model.frozen = LANGUAGE
    return config
