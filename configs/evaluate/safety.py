"""Safety: attacks that get harmful answers, and refusals of harmless requests."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.tasks = "redteam,harmbench,advbench,xstest"
    return config
