"""C4 as its paper has it (Raffel et al. 2020, 2.2): lines of at least three words, pages of at least five sentences."""

from configs.curate import default


def get_config():
    config = default.get_config()
    config.stages = "c4"
    default.c4(config.rules, sentences=5)
    return config
