"""IFEval as a task: the model answers, and programs verify that it followed the instructions."""

from lm.evals import outcomes
from lm.evals.task import Outcome, Subject, TaskSettings
from lm.evals.tasks import file_task, generation
from lm.evals.tasks.documents import TaskItem
from lm.evals.tasks.file_task import FileTask, open_file_task, readable
from lm.evals.tasks.ifeval import scores
from lm.evals.tasks.prompting import Context
from lm.evals.tasks.settings import resolved

KEYS = file_task.KEYS | {"generation_kwargs": dict}


def evaluate(task: FileTask, subject: Subject) -> Outcome:
    """Return the scorer's metrics. The scorer treats items with the same prompt as duplicates and does not score them."""
    problems = task.documents.new_problems()

    def context_of(item: TaskItem) -> Context:
        scores.read_item(0, item.doc)  # raises Malformed
        return task.prompts.contexts(item, subject)[0]

    prompted = readable(task.documents.items, context_of, problems)
    sampling = generation.sampling_of(task.name, task.values)
    answers = generation.generated(subject, [context for _, context in prompted], sampling, 1, task.seed)
    rows, answered = [], []
    for (item, context), (answer,) in zip(prompted, answers, strict=True):
        if answer.problem:
            problems.add("no_generation", f"{item.id}: {answer.problem}")
            continue
        # The scorer names an item by its key. A unique key per row lets its samples be matched to items again.
        answered.append((item, context, answer))
        rows.append(item.doc | {"key": len(answered) - 1})
    responses = [{"prompt": item.doc.get("prompt"), "response": answer.text} for item, _, answer in answered]
    results, verified = scores.score(rows, responses)
    for kind, problem in results.pop("problems").items():
        counted = problems.kinds.setdefault(kind, {"n": 0, "examples": []})
        counted["n"] += problem["n"]
        counted["examples"] += problem["examples"]
    del results["missing"]
    samples = []
    for scored in verified:
        item, context, answer = answered[int(scored["id"])]
        marks = {kind: [instruction[kind] for instruction in scored["instructions"]] for kind in ("strict", "loose")}
        samples.append(
            {
                **task.about(item),
                "prompt": context.text,
                "target": None,
                "generation": answer.text,
                "instructions": scored["instructions"],
                "instruction_id_list": item.doc["instruction_id_list"],
                "kwargs": item.doc["kwargs"],
                "metrics": {f"prompt_{kind}": float(all(marks[kind])) for kind in marks}
                | {f"instruction_{kind}": sum(marks[kind]) / len(marks[kind]) for kind in marks},
                "failed": not all(marks["strict"]),
            }
            | outcomes.message_fields(context.messages)
        )
        outcomes.flag_cuts(samples[-1], problems, [answer])
    return Outcome(results | {"problems": problems.kinds}, samples)


def build(name: str, spec: dict, settings: TaskSettings) -> FileTask:
    """Build the task. Raises: UserError for an invalid key or missing data."""
    values = resolved(name, spec, settings, KEYS, needed=("doc_to_text",))
    generation.sampling_of(name, values)  # raises UserError for invalid keys
    return open_file_task(name, values, settings, evaluate)
