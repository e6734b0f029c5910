"""Kahneman-Tversky optimisation on answers labelled good or bad."""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "preference"
    config.preference.loss = "kto"
    return config
