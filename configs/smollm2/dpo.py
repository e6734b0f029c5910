"""Preference tuning of SmolLM2-135M-Instruct with LoRA on two cores; set --config.init_from and --config.data."""

from configs.align import dpo
from configs.smollm2 import with_lora


def get_config():
    config = with_lora(dpo.get_config())
    config.accumulate = 4  # slices of 4 pairs
    config.optimizer.learning_rate = 5e-5
    return config
