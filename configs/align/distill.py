"""Distillation: a student takes over the next-token distributions of a teacher that reads the same tokenizer.

init_from is the student. data.input holds conversations, or with --config.distill.kind=on_policy prompts, which the student
answers itself; --config.distill.divergence=reverse is usual there.
"""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "distill"
    config.optimizer.learning_rate = 5e-5
    return config
