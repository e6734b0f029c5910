"""IFEval: does a model follow instructions that a program can check? (Zhou et al. 2023, "Instruction-Following Evaluation for
Large Language Models"; instructions.py has the 25 programs)

An item is a prompt with one or more instructions. By prompt, a response counts that follows all of them; by instruction, each
one counts that is followed. Strictly, the response is read as it stands; loosely, one of eight variants of it has to follow,
as `lm.evals.tasks.ifeval.instructions.variants` has them, a variant of its own for each instruction.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lm.evals import outcomes
from lm.evals.stats.joining import Malformed, Problems, join, text, unique
from lm.evals.stats.measures import mean, ratio
from lm.evals.task import Outcome, Subject, TaskSettings
from lm.evals.tasks import file_task, generation
from lm.evals.tasks.file_task import FileTask, open_file_task
from lm.evals.tasks.ifeval.instructions import Instruction, follows, follows_loosely, parsed
from lm.evals.tasks.settings import resolved

KEYS = file_task.KEYS | {"generation_kwargs": dict}
KINDS = ("strict", "loose")


class IFEvalItem(NamedTuple):
    """id: the item's key, or the number of its row."""

    id: str
    prompt: str
    instructions: list[Instruction]


def evaluate(task: FileTask, subject: Subject) -> Outcome:
    """Return the results of `summary`. Items with the same prompt are not scored."""
    problems = task.documents.new_problems()
    answered = generation.answers_of(task, subject, problems, lambda item: read_item(item.id, item.doc))
    for item, _, _, (answer,) in answered:
        if answer.problem:
            problems.add("no_generation", f"{item.id}: {answer.problem}")
    answered = [each for each in answered if not each.answers[0].problem]
    items, _ = unique([each.item.doc for each in answered], problems, lambda row, _: answered[row].read)
    samples = []
    for row, read in items.items():
        item, context, _, (answer,) = answered[row]
        followed = verified(read, answer.text, problems)
        marks = {kind: [instruction[kind] for instruction in followed] for kind in KINDS}
        samples.append(
            {
                **task.about(item),
                "prompt": context.text,
                "target": None,
                "generation": answer.text,
                "instructions": followed,
                "instruction_id_list": item.doc["instruction_id_list"],
                "kwargs": item.doc["kwargs"],
                "metrics": {f"prompt_{kind}": float(all(marks[kind])) for kind in marks}
                | {f"instruction_{kind}": sum(marks[kind]) / len(marks[kind]) for kind in marks},
                "failed": not all(marks["strict"]),
            }
            | outcomes.message_fields(context.messages)
        )
        outcomes.flag_cuts(samples[-1], problems, [answer])
    return Outcome(summary(samples) | {"problems": problems.kinds}, samples)


def build(name: str, spec: dict, settings: TaskSettings) -> FileTask:
    """Build the task. Raises: UserError for an invalid key or missing data."""
    values = resolved(name, spec, settings, KEYS, needed=("doc_to_text",))
    generation.sampling_of(name, values)  # raises UserError for invalid keys
    return open_file_task(name, values, settings, evaluate)


def score(items: Sequence[dict], answers: Sequence[dict]) -> tuple[dict, list[dict]]:
    """Score saved answers. Items are {"key", "prompt", "instruction_id_list", "kwargs"}, answers {"prompt", "response"}.

    Returns: the results of `summary`, and the samples.
    """
    problems = Problems()
    pairs, missing = join(
        items, answers, problems, read_item, lambda answer: (text(answer, "prompt"), text(answer, "response"))
    )
    samples = []
    for item, response in pairs:
        about = {"task": "ifeval", "id": item.id, "prompt": item.prompt, "response": response}
        samples.append(about | {"instructions": verified(item, response, problems)})
    return summary(samples) | {"missing": missing, "problems": problems.kinds}, samples


def read_item(row: int | str, item: dict) -> tuple[tuple[str], IFEvalItem]:
    """Return the prompt, which is the key of a row's item, and the item. Raises: Malformed."""
    prompt, ids, kwargs = text(item, "prompt"), item.get("instruction_id_list"), item.get("kwargs")
    if not isinstance(ids, list) or not ids or not all(isinstance(id, str) for id in ids):
        raise Malformed("'instruction_id_list' is no list of instructions")
    if not isinstance(kwargs, list) or len(kwargs) != len(ids) or not all(isinstance(some, dict) for some in kwargs):
        raise Malformed(f"'kwargs' is no list of {len(ids)} objects, one for each instruction")
    try:
        instructions = [parsed(id, some) for id, some in zip(ids, kwargs)]
    except ValueError as error:
        raise Malformed(str(error)) from None
    return (prompt,), IFEvalItem(str(item.get("key", row)), prompt, instructions)


def verified(item: IFEvalItem, response: str, problems: Problems) -> list[dict[str, Any]]:
    """Return {"id", "kwargs", "strict", "loose"} of each instruction. An empty response follows nothing, and is a problem."""
    if not response.strip():
        problems.add("empty_responses", item.id)
    followed = []
    for instruction in item.instructions:
        marks = {"strict": follows(instruction, response), "loose": follows_loosely(instruction, response)}
        followed.append({"id": instruction.id, "kwargs": instruction.kwargs} | marks)
    return followed


def summary(samples: Sequence[dict]) -> dict[str, Any]:
    """Return prompt_strict, prompt_loose, instruction_strict, instruction_loose; the last two by type in "instructions"."""
    followed = [sample["instructions"] for sample in samples]
    results: dict[str, Any] = {}
    for kind in KINDS:
        results |= mean(f"prompt_{kind}", [all(instruction[kind] for instruction in own) for own in followed])
    results |= {f"instruction_{name}": value for name, value in figures(followed).items()}
    by_type = {}
    for name in sorted({instruction["id"] for some in followed for instruction in some}):
        of_type = [[instruction for instruction in some if instruction["id"] == name] for some in followed]
        by_type[name] = {"n": sum(map(len, of_type))} | figures(of_type)
    return results | {"n": len(samples), "n_instructions": sum(map(len, followed)), "instructions": by_type}


def figures(followed: Sequence[Sequence[dict]]) -> dict[str, float | None]:
    """Return {kind, kind_stderr} for strict and loose: the share of followed instructions. Those of one prompt share a
    response, so it is a `ratio` of two sums over the prompts."""
    followed = [some for some in followed if some]
    shares: dict[str, float | None] = {}
    for kind in KINDS:
        counts = [sum(instruction[kind] for instruction in some) for some in followed]
        shares[kind], shares[f"{kind}_stderr"] = ratio(counts, [len(some) for some in followed])
    return shares
