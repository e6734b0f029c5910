"""GRPO of SmolLM2-135M-Instruct on verifiable instructions with LoRA on two cores; set --config.init_from."""

from configs.align import grpo


def get_config():
    config = grpo.get_config()
    config.data.input = "builtin:verifiable"
    config.data.max_valid_examples = 64
    # `instructions` needs at least the four words of "My answer is yes.", so marks without words earn nothing.
    config.rewards = "instructions?least_words=4=1,repetition=0.2"
    config.steps = 60
    config.batch_size = 64
    config.accumulate = 4
    config.sequence_length = 192
    config.rollout.max_new_tokens = 96
    config.rollout.max_prompt_tokens = 96
    config.model.adapter.rank = 16
    config.model.adapter.alpha = 32
    config.model.remat = "none"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup = 5
    config.valid_every = 0
    config.valid_first = False
    config.checkpoint_every = 10
    config.samples_every = 20
    return config
