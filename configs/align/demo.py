"""What `make demo` aligns its model with, demo.py:sft and then demo.py:grpo: to say what it is told, and to say it politely."""

from configs.align import default


def get_config(stage: str):
    config = default.get_config()
    config.model.scan_layers = False
    config.sequence_length = 128
    config.data.max_valid_examples = 128
    config.rollout.max_new_tokens = 28
    config.rollout.max_prompt_tokens = 32
    config.data.input = "builtin:preferred_style?part=answers"
    config.data.max_examples = 6000
    if stage == "sft":
        config.method = "sft"
        config.steps = 200
        config.batch_size = 16
        config.optimizer.learning_rate = 1.5e-3
        config.rewards = "style=1"  # data/tasks/style.py: -10 where the answer does not say what was asked for
    elif stage == "grpo":
        config.method = "rl"
        config.steps = 40
        config.batch_size = 64
        config.sequence_length = 60
        config.optimizer.learning_rate = 2e-4
        config.optimizer.schedule = "constant"
        # Politeness counts in it too; and an answer must come to its end, or the policy thanks for ever.
        config.rewards = "style=1,overlong?limit=28&buffer=8=1"
        config.valid_every = 20
        config.samples_every = 20
    else:
        raise KeyError(f"demo.py:{stage} is neither demo.py:sft nor demo.py:grpo")
    return config
