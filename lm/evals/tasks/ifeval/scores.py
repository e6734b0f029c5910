"""IFEval: does a model follow instructions that a program can check? (Zhou et al. 2023, "Instruction-Following Evaluation for
Large Language Models"; the 25 programs are in lm/evals/tasks/ifeval/)

An item is a prompt with one or more instructions. By prompt, a response counts that follows all of them; by instruction, each
one counts that is followed. Strictly, the response is read as it stands; loosely, one of eight variants of it has to follow,
as `lm.evals.tasks.ifeval.instructions.variants` has them, a variant of its own for each instruction.
"""

import math
from collections.abc import Sequence

from lm.evals.stats.joining import Malformed, Problems, join, text
from lm.evals.stats.measures import mean
from lm.evals.tasks.ifeval.instructions import Instruction, follows, follows_loosely, parsed


def score(items: Sequence[dict], answers: Sequence[dict]) -> tuple[dict, list[dict]]:
    """Score answers to IFEval. Items are {"key", "prompt", "instruction_id_list", "kwargs"}, answers {"prompt", "response"}. An
    empty response follows nothing, and is named.

    Returns: prompt_strict, prompt_loose, instruction_strict, instruction_loose, and the last two by type in "instructions".
    """
    problems = Problems()
    pairs, missing = join(
        items, answers, problems, read_item, lambda answer: (text(answer, "prompt"), text(answer, "response"))
    )
    samples = []
    for (id, prompt, instructions), response in pairs:
        if not response.strip():
            problems.add("empty_responses", id)
        followed = []
        for instruction in instructions:
            marks = {"strict": follows(instruction, response), "loose": follows_loosely(instruction, response)}
            followed.append({"id": instruction.id, "kwargs": instruction.kwargs} | marks)
        samples.append({"task": "ifeval", "id": id, "prompt": prompt, "response": response, "instructions": followed})
    results = {}
    followed = [sample["instructions"] for sample in samples]
    for kind in ("strict", "loose"):
        results |= mean(f"prompt_{kind}", [all(instruction[kind] for instruction in own) for own in followed])
    results |= {f"instruction_{name}": value for name, value in figures(followed).items()}
    by_type = {}
    for name in sorted({instruction["id"] for some in followed for instruction in some}):
        of_type = [[instruction for instruction in some if instruction["id"] == name] for some in followed]
        by_type[name] = {"n": sum(map(len, of_type))} | figures(of_type)
    counts = {"n": len(samples), "n_instructions": sum(map(len, followed)), "missing": missing}
    return results | counts | {"instructions": by_type, "problems": problems.kinds}, samples


def figures(followed: Sequence[Sequence[dict]]) -> dict[str, float | None]:
    """Return strict and loose shares of the instructions of each response."""
    marks = {kind: [[instruction[kind] for instruction in some] for some in followed if some] for kind in ("strict", "loose")}
    return share("strict", marks["strict"]) | share("loose", marks["loose"])


def share(name: str, marks: Sequence[Sequence[bool]]) -> dict[str, float | None]:
    """Return {name: r = Σf/Σc, name_stderr: √(m/(m−1) · Σ(f − r·c)²) / Σc} of m responses, f of whose c instructions are
    followed.

    The instructions of one prompt share a response, so what is drawn at random are the m prompts: r is a ratio of two sums over
    them, and this its error to first order (Cochran 1977, "Sampling Techniques", chapter 6). With one instruction each it is
    that of a mean, as in `mean`.
    """
    m, total = len(marks), sum(map(len, marks))
    if not m:
        return {name: None, f"{name}_stderr": None}
    r = sum(map(sum, marks)) / total
    squares = sum((sum(some) - r * len(some)) ** 2 for some in marks)
    return {name: r, f"{name}_stderr": math.sqrt(squares * m / (m - 1)) / total if m > 1 else None}


def read_item(row: int, item: dict) -> tuple[Sequence[str], tuple[str, str, list[Instruction]]]:
    """Return the prompt as the item's key, and (id, prompt, instructions). Raises Malformed."""
    prompt, ids, kwargs = text(item, "prompt"), item.get("instruction_id_list"), item.get("kwargs")
    if not isinstance(ids, list) or not ids or not all(isinstance(id, str) for id in ids):
        raise Malformed("'instruction_id_list' is no list of instructions")
    if not isinstance(kwargs, list) or len(kwargs) != len(ids) or not all(isinstance(some, dict) for some in kwargs):
        raise Malformed(f"'kwargs' is no list of {len(ids)} objects, one for each instruction")
    try:
        instructions = [parsed(id, some) for id, some in zip(ids, kwargs)]
    except ValueError as error:
        raise Malformed(str(error)) from None
    return [prompt], (str(item.get("key", row)), prompt, instructions)
