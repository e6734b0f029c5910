"""Supervised fine-tuning on conversations; --config.model.adapter.rank=16 for LoRA."""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "sft"
    return config
