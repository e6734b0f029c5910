"""GRPO of SmolLM2-135M-Instruct on verifiable instructions with LoRA on two cores; set --config.init_from."""

from configs.align import grpo
from configs.smollm2 import with_lora


def get_config():
    config = with_lora(grpo.get_config())
    config.data.input = "builtin:verifiable"
    config.data.max_valid_examples = 64
    # Four words are those of "My answer is yes."; bare marks earn nothing. Answers shall end before they are cut.
    config.rewards = "instructions?least_words=4=1,repetition=0.2,overlong?limit=80&buffer=16=0.2"
    config.steps = 30
    config.batch_size = 64
    config.rl.minibatches = 2
    config.sequence_length = 160
    config.rollout.max_new_tokens = 80
    config.rollout.max_prompt_tokens = 80
    config.rollout.temperature = 0.8
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup = 5
    config.valid_every = 0
    config.valid_first = False
    config.checkpoint_every = 5
    config.samples_every = 15
    return config
