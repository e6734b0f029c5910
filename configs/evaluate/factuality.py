"""Factuality: closed-book answers, claims against documents, self-consistency, cloze facts."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.tasks = "closed_book_qa,fact_support,selfcheck,cloze_facts"
    return config
