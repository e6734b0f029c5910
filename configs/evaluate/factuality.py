"""Factuality: closed-book answers and self-consistency. With a judge (openai:URL) add fact_support."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.tasks = "closed_book_qa,selfcheck"
    return config
