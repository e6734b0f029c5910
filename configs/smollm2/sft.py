"""Instruction tuning of SmolLM2-135M-Instruct with LoRA on two cores; set --config.init_from and --config.data."""

from configs.align import sft
from configs.smollm2 import with_lora


def get_config():
    config = with_lora(sft.get_config())
    config.accumulate = 8  # slices of 4 rows
    return config
