"""Run programs that the model writes against a benchmark's tests, in the format of HumanEval (Chen et al. 2021, "Evaluating
large language models trained on code").

A document has prompt (the start of a program), test (which defines check(candidate)) and entry_point (the function to check). A
completion passes if test and check(entry_point) run to their end, while prompt + completion answers their calls from a process
of its own (check_many in lm/sandbox/run.py), so that it cannot forge the verdict.

Documents may have visible_test, a second test of the examples that the prompt shows. Then visible_pass@k is measured too, and
visible_gap, by how much it is above pass@k. A program that passes it but not test is flagged as only_visible_examples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.stats.joining import text
from lm.evals.stats.measures import pass_at_k
from lm.evals.task import Generated, Outcome, Subject, TaskSettings
from lm.evals.tasks import file_task, generation
from lm.evals.tasks.documents import TaskItem
from lm.evals.tasks.file_task import FileTask, open_file_task
from lm.evals.tasks.prompting import Context
from lm.evals.tasks.settings import resolved
from lm.parallel.hosts import from_first
from lm.sandbox import run as sandbox

KEYS = file_task.KEYS | {
    "generation_kwargs": dict,
    "repeats": int,
    "pass_at": list,  # the values k of pass@k
    "cut": str,  # text that ends a completion, such as ```
    "timeout": (int, float),
    "memory_mib": int,
}
TESTS = {"test": "pass", "visible_test": "visible_pass"}  # columns, and the metrics of those that pass


def evaluate(task: FileTask, subject: Subject) -> Outcome:
    problems, values = task.documents.new_problems(), task.values
    repeats, ks = values.get("repeats") or 1, values.get("pass_at") or [1]
    tests = [column for column in TESTS if column == "test" or column in task.documents.columns]

    def check(item: TaskItem) -> None:
        for column in ("prompt", "entry_point", *tests):
            text(item.doc, column)

    answered = generation.answers_of(task, subject, problems, check, repeats)
    bounds = {"timeout": values.get("timeout") or 3.0, "memory_mib": values.get("memory_mib") or 512}
    ran = {}
    for column in tests:
        programs = [program(task, item, answer, column) for item, _, _, answers in answered for answer in answers]
        ran[column] = from_first(lambda: sandbox.check_many(programs, **bounds))  # noqa: B023 (called at once)
    samples = []
    for number, (item, context, _, own) in enumerate(answered):
        ends = {column: some[number * repeats : (number + 1) * repeats] for column, some in ran.items()}
        sample = sample_of(task, item, context, own, ends)
        lost = [answer.problem for answer in own if answer.problem]
        lost += [end.stderr for some in ends.values() for end in some if end.stderr.startswith("[not run")]
        if lost:
            outcomes.flag(sample, problems, "no_generation" if own[0].problem else "not_run", lost[0])
            sample |= {"metrics": dict.fromkeys(sample["metrics"]), "failed": False}
        else:
            outcomes.flag_cuts(sample, problems, own)
            if any(seen.finished and not end.finished for end, seen in zip(ends["test"], ends.get("visible_test", ()))):
                outcomes.flag(sample, problems, "only_visible_examples", sample["complaint"])
        samples.append(sample)
    scored = [sample for sample in samples if None not in sample["metrics"].values()]
    names = [f"{TESTS[column]}@{k}" for column in tests for k in ks] + ["visible_gap"] * ("visible_test" in tests)
    return Outcome(task.summary(scored, names, problems) | {"repeats": repeats}, samples)


def completion(task: FileTask, answer: Generated) -> str:
    return answer.text.split(task.values["cut"])[0] if task.values.get("cut") else answer.text


def program(task: FileTask, item: TaskItem, answer: Generated, column: str) -> sandbox.Check:
    return sandbox.function_check(item.doc["prompt"], completion(task, answer), item.doc[column], item.doc["entry_point"])


def metrics_of(ends: Mapping[str, Sequence[sandbox.Result]], ks: Sequence[int]) -> dict[str, float]:
    """Return pass@k for each of the tests, and visible_gap at the first k if there are visible ones."""
    rights = {name: [end.finished for end in ends[column]] for column, name in TESTS.items() if column in ends}
    metrics = {f"{name}@{k}": pass_at_k(len(right), sum(right), k) for name, right in rights.items() for k in ks}
    gap = {"visible_gap": metrics[f"visible_pass@{ks[0]}"] - metrics[f"pass@{ks[0]}"]} if "visible_test" in ends else {}
    return metrics | gap


def sample_of(
    task: FileTask, item: TaskItem, context: Context, answers: Sequence[Generated], ends: Mapping[str, Sequence[sandbox.Result]]
) -> dict[str, Any]:
    hidden = ends["test"]
    return {
        **task.about(item),
        "prompt": context.text,
        "target": None,
        "generation": answers[0].text,
        "completion": completion(task, answers[0]),
        **({"generations": [answer.text for answer in answers]} if len(answers) > 1 else {}),
        **({"reference": item.doc["canonical_solution"]} if item.doc.get("canonical_solution") else {}),
        "test": item.doc["test"],
        "entry_point": item.doc["entry_point"],
        "outcomes": ["passed" if end.finished else end.outcome if end.outcome != "ok" else "left early" for end in hidden],
        # The exception's name. Its message may hold memory addresses, which differ between runs.
        "complaint": next(
            (end.stderr.strip().rpartition("\n")[2].partition(":")[0][:80] for end in hidden if not end.finished), ""
        ),
        "metrics": metrics_of(ends, task.values.get("pass_at") or [1]),
        "failed": not any(end.finished for end in hidden),
    } | outcomes.message_fields(context.messages)


def build(name: str, spec: dict, settings: TaskSettings) -> FileTask:
    """Build the task. Raises: UserError for an invalid key or missing data."""
    values = resolved(name, spec, settings, KEYS, needed=("doc_to_text",))
    repeats, ks = values.get("repeats") or 1, values.get("pass_at") or [1]
    if not all(isinstance(k, int) and 1 <= k <= repeats for k in ks):
        raise UserError(f"task {name}: pass_at: {ks} must be numbers from 1 to repeats={repeats}")
    generation.sampling_of(name, values)  # raises UserError for invalid keys
    return open_file_task(name, values, settings, evaluate)
