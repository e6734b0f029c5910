"""Factuality: closed-book answers, self-consistency, cloze facts. With a judge (openai:URL) add fact_support."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.tasks = "closed_book_qa,selfcheck,cloze_facts"
    return config
