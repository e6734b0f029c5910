"""Best-of-n (rejection sampling, RAFT): a model answers each prompt several times and learns from the best of its answers.

data.input holds prompts with what the rewards read; data.max_examples says how many are answered.
"""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "best_of"
    config.rewards = "answer=1"
    config.data.max_examples = 1000
    return config
