"""Evaluate SmolLM2-135M-Instruct, or what was trained from it, as a chat model; set --config.checkpoint and --config.tasks."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.chat_template = "own"
    config.max_length = 2048
    return config
