"""Train a reward model on pairs, or on labelled steps with --config.reward.kind=process."""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "reward"
    return config
