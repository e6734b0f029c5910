"""Reinforcement learning of a small agent in an environment: agent.py:sft, then agent.py:grpo or agent.py:ppo.

The task needs three look-ups and a calculation (data/tasks/stockroom.py). The model of the first stage writes calls well, but
answers too early or adds; rewards of whole episodes teach it which calls to make. docs/agent.md has the commands, also of the
model to start from.
"""

from configs.align import default
from lm.errors import UserError


def get_config(stage: str = ""):
    config = default.get_config()
    config.model.scan_layers = False
    config.model.remat = "none"
    config.dtype = "float32"
    config.sequence_length = 192
    config.data.max_valid_examples = 128
    config.rollout.max_prompt_tokens = 32
    config.rollout.max_new_tokens = 32
    config.rollout.environment = "stockroom"
    config.rollout.max_turns = 7
    if stage == "sft":
        config.method = "sft"
        config.data.input = "builtin:stockroom?haste=0.94&skill=0.85"
        config.data.max_examples = 10000
        config.steps = 400
        config.batch_size = 16
        config.optimizer.learning_rate = 1e-3
    elif stage in ("grpo", "ppo"):
        config.method = "rl"
        config.data.input = "builtin:stockroom"
        config.data.max_examples = 4000
        config.rewards = "environment=1"
        config.rl.algorithm = stage
        config.rl.group_size = 8 if stage == "grpo" else 1
        config.rl.lam = 1.0  # ppo: the reward comes a hundred tokens after the first decision, and 0.95^100 is 0.006
        config.steps = 40
        config.batch_size = 96
        config.optimizer.learning_rate = 3e-4
        config.optimizer.schedule = "constant"
        config.valid_every = 20
        config.samples_every = 20
    else:
        raise UserError(f"configs/align/agent.py has no stage {stage!r}: name agent.py:sft, agent.py:grpo or agent.py:ppo")
    return config
