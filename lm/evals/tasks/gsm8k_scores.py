"""GSM8K: grade-school maths whose answers are numbers (Cobbe et al. 2021, "Training verifiers to solve math word problems").

Both figures are exact matches as lm-evaluation-harness has them in its task gsm8k, version 3: strict takes the number after
the first "#### ", flexible the last number of all. A saved response is taken as it stands; the harness cuts what a model writes
at "Question:" and at marks of the end.
"""

import re
from collections.abc import Sequence

from lm.evals.stats.joining import Malformed, Problems, by_id, text
from lm.evals.stats.measures import mean
from lm.evals.tasks.catalogue import path_of, read_spec
from lm.evals.tasks.filters import INVALID, open_pipelines

FILTERS = open_pipelines("gsm8k", read_spec(path_of("gsm8k"), "gsm8k")["filter_list"])  # strict and flexible


def score(items: Sequence[dict], answers: Sequence[dict]) -> tuple[dict, list[dict]]:
    """Score answers to GSM8K. They are {"id", "response"}; the id is the number of the row from 0. A response without a number
    is wrong, and named.

    Returns: exact_match_strict, exact_match_flexible.
    """
    problems = Problems()
    pairs, missing = by_id(items, answers, problems, _read)
    samples = []
    for id, (question, target), response in pairs:
        texts = {name: find([response]) for name, find in FILTERS.items()}
        numbers = {name: None if text == INVALID else text for name, text in texts.items()}
        if numbers["flexible"] is None:
            problems.add("responses_without_number", f"{id}: {response!r}")
        samples.append(
            {
                "task": "gsm8k",
                "id": id,
                "question": question,
                "response": response,
                "target": target,
                **numbers,
                **{f"{name}_correct": number is not None and normal(number) == target for name, number in numbers.items()},
            }
        )
    results = mean("exact_match_strict", [s["strict_correct"] for s in samples])
    results |= mean("exact_match_flexible", [s["flexible_correct"] for s in samples])
    return results | {"n": len(samples), "missing": missing, "problems": problems.kinds}, samples


def normal(number: str) -> str:
    """Return a number as it is compared: without thousands, dollars and a full stop. 18.00 is not 18."""
    return re.sub("[,$]", "", number).strip().removesuffix(".")


def _read(item: dict) -> tuple[str, str]:
    solution, mark, number = text(item, "answer").rpartition("#### ")
    if not mark or not normal(number):
        raise Malformed("'answer' has no number after '#### '")
    return text(item, "question"), normal(number)
