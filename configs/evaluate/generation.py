"""Generated answers: mathematics, code, following instructions. With a judge (openai:URL) add truthfulqa_gen."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.tasks = "gsm8k,math,humaneval,ifeval,bbh_cot"
    return config
