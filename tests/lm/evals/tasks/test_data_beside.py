"""A task file may name a file of items beside it."""

import json

import pytest

from lm.errors import UserError
from lm.evals.task import Likelihood, TaskSettings
from lm.evals.tasks.catalogue import open_task

TASK = """kind: choice
data: quiz.jsonl
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [acc]
"""


class Prefers:
    """A model that finds one continuation likelier than any other."""

    def __init__(self, text: str):
        self.text = text

    def likelihoods(self, requests):
        return [Likelihood(-1.0 if request.continuation == self.text else -2.0, False) for request in requests]


def test_items_come_from_the_file_without_a_data_dir(tmp_path):
    (tmp_path / "quiz.yaml").write_text(TASK)
    rows = [{"question": f"Where is key {n}?", "choices": ["here", "there"], "answer": n % 2} for n in range(4)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    task = open_task(str(tmp_path / "quiz.yaml"), TaskSettings())
    assert task.run(Prefers(" here")).results["acc"] == pytest.approx(2 / 3)
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert open_task(str(tmp_path / "quiz.yaml"), TaskSettings()).versions["data"] != task.versions["data"]


def test_a_file_that_is_missing_is_named(tmp_path):
    (tmp_path / "quiz.yaml").write_text(TASK)
    with pytest.raises(UserError, match="quiz.jsonl"):
        open_task(str(tmp_path / "quiz.yaml"), TaskSettings())
