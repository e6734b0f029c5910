"""Group-relative policy optimisation on tasks with verifiable answers; --config.rl.algorithm=rloo for RLOO."""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "rl"
    config.rewards = "answer=1"
    config.batch_size = 64
    config.optimizer.schedule = "constant"
    return config
