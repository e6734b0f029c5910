"""The safety loop on SmolLM2-135M-Instruct with LoRA on two cores; set --config.init_from and --config.safety.prompts."""

from configs.align import safety
from configs.smollm2 import with_lora


def get_config():
    config = with_lora(safety.get_config())
    config.safety.limit = 100
    config.safety.sft.update(steps=60, batch_size=8, learning_rate=2e-4)
    config.safety.dpo.update(steps=30, batch_size=8, learning_rate=5e-5)
    return config
