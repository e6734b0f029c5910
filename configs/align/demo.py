"""Alignment configs of `make demo`: demo.py:sft, then demo.py:grpo. The model learns to repeat a statement politely."""

from configs.align import default
from lm.errors import UserError


def get_config(stage: str = ""):
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
        config.rewards = "style=1"  # data/tasks/style.py: -10 if the answer lacks the requested statement
    elif stage == "grpo":
        config.method = "rl"
        config.steps = 40
        config.batch_size = 64
        config.sequence_length = 60
        config.optimizer.learning_rate = 2e-4
        config.optimizer.schedule = "constant"
        # `style` also rewards politeness. Without a penalty on overlong answers the policy would thank endlessly.
        config.rewards = "style=1,overlong?limit=28&buffer=8=1"
        config.valid_every = 20
        config.samples_every = 20
    else:
        raise UserError(f"configs/align/demo.py has no stage {stage!r}: name demo.py:sft or demo.py:grpo")
    return config
