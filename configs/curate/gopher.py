"""Gopher's filters of quality and repetition (Rae et al. 2021)."""

from configs.curate import default


def get_config():
    config = default.get_config()
    config.stages = "gopher_quality,gopher_repetition"
    default.gopher_quality(config.rules)
    default.gopher_repetition(config.rules)
    return config
