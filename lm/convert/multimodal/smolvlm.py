"""SmolVLM: Idefics3 by another name."""

from lm.config import ModelConfig
from lm.convert.multimodal.idefics3 import described, encoder_tables, ends, from_hf, ignored, rows

__all__ = ["MODEL_TYPES", "from_hf", "to_hf", "rows", "ends", "encoder_tables", "ignored"]

MODEL_TYPES = ("smolvlm",)


def to_hf(config: ModelConfig) -> dict:
    return described(config, "smolvlm", "SmolVLMForConditionalGeneration")
