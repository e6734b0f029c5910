"""Proximal policy optimisation with a value head, generalised advantages and a KL penalty in the rewards."""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "rl"
    config.rewards = "answer=1"
    config.batch_size = 64
    config.rl.algorithm = "ppo"
    config.rl.group_size = 1
    config.rl.beta = 0.05
    config.rl.epochs = 4
    config.optimizer.schedule = "constant"
    return config
