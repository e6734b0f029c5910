"""A reward model from pairs, or from steps with labels: --config.reward.kind=process."""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "reward"
    config.batch_size = 16
    config.optimizer.learning_rate = 1e-4
    return config
