"""Odds-ratio preference optimisation on pairs: it has no reference and starts from a base model."""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "preference"
    config.preference.loss = "orpo"
    return config
