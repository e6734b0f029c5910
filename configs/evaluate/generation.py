"""Generated answers: mathematics, code, following instructions."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.tasks = "gsm8k,math,humaneval,ifeval,bbh_cot,truthfulqa_gen"
    return config
