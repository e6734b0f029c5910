"""A task with a budget for the thought before each answer; with several budgets, one task for each, "NAME@TOKENS"."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm.evals.engine.model_subject import ModelSubject
from lm.evals.task import Outcome, Task


class Budgeted:
    """A task whose answers may think for so many tokens. name: its key in results.json, also in samples."""

    def __init__(self, task: Task, tokens: int, name: str):
        self.name, self.versions = name, task.versions | {"thought_budget": tokens}
        self._task, self._tokens = task, tokens

    def run(self, subject: ModelSubject) -> Outcome:
        subject.thought_budget = self._tokens
        try:
            results, samples = self._task.run(subject)
        finally:
            subject.thought_budget = None
        return Outcome(results, [sample | {"task": self.name} for sample in samples])


def with_budgets(
    tasks: Sequence[Task], files: Mapping[str, Any], budgets: Sequence[int]
) -> tuple[list[Budgeted], dict[str, Any]]:
    """Return each task with each budget, and their files by name."""
    found, theirs = list[Budgeted](), dict[str, Any]()
    for task in tasks:
        for tokens in budgets:
            name = f"{task.name}@{tokens}" if len(budgets) > 1 else task.name
            found.append(Budgeted(task, tokens, name))
            theirs[name] = files[task.name]
    return found, theirs
