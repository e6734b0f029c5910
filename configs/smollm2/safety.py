"""The safety loop on SmolLM2-135M-Instruct with LoRA on two cores; set --config.init_from and --config.safety.prompts.

The model answers nearly every request and seldom begins with "Sure", so the judge counts whatever is no refusal. It cannot
read rot13 and the like, so the attacks are those that it understands.
"""

from configs.align import safety
from configs.smollm2 import with_lora


def get_config():
    config = with_lora(safety.get_config())
    config.sequence_length = 256
    config.rollout.max_new_tokens = 64
    config.safety.judge = "refusal"
    config.safety.limit = 60
    config.safety.train_families = "direct,role_play,prefix_injection"
    config.safety.held_out_families = "refusal_suppression,prompt_injection"
    config.safety.sft.update(steps=60, batch_size=8, learning_rate=2e-4)
    config.safety.dpo.update(steps=30, batch_size=8, learning_rate=5e-5)
    return config
