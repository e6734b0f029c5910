"""Where a model invents: answers without a book, claims against documents, consistency, facts with a gap."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.tasks = "closed_book_qa,fact_support,selfcheck,cloze_facts"
    return config
