"""Instruction tuning of SmolLM2-135M-Instruct with LoRA on two cores; set --config.init_from and --config.data."""

from configs.align import sft


def get_config():
    config = sft.get_config()
    config.steps = 100
    config.batch_size = 8
    config.accumulate = 2
    config.model.adapter.rank = 16
    config.model.adapter.alpha = 32
    config.model.remat = "none"
    config.optimizer.learning_rate = 2e-4
    return config
