"""A task file may name a file of items beside it."""

import json
import re

import pytest

from lm.errors import UserError
from lm.evals.task import Likelihood, TaskSettings
from lm.evals.tasks.catalogue import check_tasks, open_task
from tests.verbs.runs import REPOSITORY

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


@pytest.mark.parametrize(
    "text, words",
    [
        ("kind: choice", "task quiz: data, doc_to_text, doc_to_target, metric_list are missing"),
        ("kind: generation\ndata: quiz.jsonl\ndoc_to_text: '{{q}}'", "task quiz: doc_to_target, metric_list are missing"),
        ("data: quiz.jsonl", "needs `kind`, .*, and with choice or generation also doc_to_text, doc_to_target, metric_list;"),
        ("kind: bbq", "data_dir is missing"),
    ],
)
def test_all_missing_keys_of_ones_own_quiz_are_named_at_once(tmp_path, text, words):
    (tmp_path / "quiz.yaml").write_text(text)
    (tmp_path / "quiz.jsonl").touch()
    with pytest.raises(UserError, match=words):
        check_tasks(str(tmp_path / "quiz.yaml"), TaskSettings())


def test_the_quiz_of_the_guide_works_as_it_stands(tmp_path):
    guide = (REPOSITORY / "docs" / "evaluate.md").read_text(encoding="utf-8")
    for language, name in (("yaml", "quiz.yaml"), ("json", "quiz.jsonl")):
        (tmp_path / name).write_text(re.search(rf"```{language}\n(.*?)```", guide, re.DOTALL)[1])
    task = open_task(str(tmp_path / "quiz.yaml"), TaskSettings(num_fewshot=0))
    assert task.run(Prefers(" Under the mat.")).results["acc"] == 1.0
