"""A reward for following instructions that programs verify: those of IFEval (lm/evals/tasks/ifeval)."""

import re
from collections.abc import Sequence

from lm.errors import UserError
from lm.evals.tasks.ifeval.instructions import Instruction, follows, parsed


def instructions(
    prompts: Sequence, completions: Sequence[str], *, all: int = 0, least_words: int = 0, **columns
) -> list[float | None]:
    """Return the share of a prompt's instructions that the completion follows strictly; with all=1, 1 for all of them, else 0.

    Columns `instruction_id_list` and `kwargs` are as in IFEval's file (builtin:verifiable has them). A completion with fewer
    than `least_words` words follows nothing, and neither does an empty one: bare marks, such as "{}" for JSON, earn nothing.
    """
    for name in ("instruction_id_list", "kwargs"):
        if name not in columns:
            raise UserError(f"reward instructions reads column {name!r}, which the task's records lack: use builtin:verifiable")
    rewards: list[float | None] = []
    for completion, ids, kwargs in zip(completions, columns["instruction_id_list"], columns["kwargs"], strict=True):
        if not ids:
            rewards.append(None)
            continue
        enough = len(re.findall(r"\w+", completion)) >= least_words
        followed = [enough and follows(one, completion) for one in _read(ids, kwargs)]
        rewards.append(float(min(followed)) if all else sum(followed) / len(followed))
    return rewards


def _read(ids: Sequence[str], kwargs: Sequence[dict] | None) -> list[Instruction]:
    if not isinstance(kwargs, Sequence) or len(kwargs) != len(ids):
        raise UserError(f"reward instructions: column kwargs holds {kwargs!r}, not one object for each of {', '.join(ids)}")
    try:
        return [parsed(id, one) for id, one in zip(ids, kwargs)]
    except ValueError as error:
        raise UserError(f"reward instructions: {error}") from None
