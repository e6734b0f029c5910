"""CORE: the 22 tasks of DCLM, and the mean of their centred accuracies (lm/evals/tasks/core_metric.py)."""

from configs.evaluate import default
from lm.evals.tasks.core_metric import CORE, PREFIX


def get_config():
    config = default.get_config()
    config.tasks = ",".join(PREFIX + name for name in CORE)
    return config
