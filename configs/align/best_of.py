"""Best-of-n (rejection sampling, RAFT): sample several answers to each prompt and fine-tune on the best ones.

data.input holds prompts and the columns that the rewards read. data.max_examples limits the number of prompts.
"""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "best_of"
    config.rewards = "answer=1"
    config.data.max_examples = 1000
    return config
