"""Bias: stereotypes in choices, sentences, pronouns and continuations."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.tasks = "bbq,crows_pairs,stereoset,winobias,regard"
    return config
