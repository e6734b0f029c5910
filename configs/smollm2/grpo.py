"""GRPO of SmolLM2-135M-Instruct on verifiable instructions with LoRA on two cores; set --config.init_from."""

from configs.align import grpo
from configs.smollm2 import with_lora


def get_config():
    config = with_lora(grpo.get_config())
    config.data.input = "builtin:verifiable"
    config.data.max_examples = 4000
    config.data.max_valid_examples = 64
    # Four words are those of "My answer is yes."; bare marks earn nothing, and neither do loops and the request itself.
    # No penalty on length: answers that are cut fail many instructions anyway, and a penalty taught shortness first.
    config.rewards = "instructions?least_words=4=1,repetition=0.4,copying=0.3"
    config.steps = 32
    config.batch_size = 64
    config.rl.minibatches = 2
    config.rl.clip_high = 0.28
    config.sequence_length = 176
    config.rollout.max_new_tokens = 96
    config.rollout.max_prompt_tokens = 80
    config.rollout.temperature = 0.8
    config.optimizer.learning_rate = 6e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 5
    config.valid_every = 0
    config.valid_first = False
    config.checkpoint_every = 5
    config.samples_every = 15
    return config
