"""Distillation: train a student on the next-token distributions of a teacher, with the same tokenizer or another one.

init_from is the student. data.input holds conversations. With --config.distill.kind=on_policy it holds prompts, which the
student answers; --config.distill.divergence=reverse is usual for this kind.
"""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "distill"
    return config
