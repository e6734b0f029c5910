"""What a model can be made to do, and what it refuses that is harmless."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.tasks = "redteam,harmbench,advbench,xstest"
    return config
