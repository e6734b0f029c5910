"""C4 as TFDS's c4_utils.py makes it: lines of at least five words, pages of at least three sentences, double quotes only."""

from configs.curate import default


def get_config():
    config = default.get_config()
    config.stages = "c4"
    config.c4.min_words = 5
    config.c4.end_marks = (".", "?", "!", '"')
    default.c4(config.rules, sentences=3)
    return config
