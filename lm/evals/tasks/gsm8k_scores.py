"""GSM8K: grade-school maths whose answers are numbers (Cobbe et al. 2021, "Training verifiers to solve math word problems").

Both figures are exact matches as lm-evaluation-harness has them in its task gsm8k, version 3: strict takes the number after
the first "#### ", flexible the last number of all. A saved response is taken as it stands; the harness cuts what a model writes
at "Question:" and at marks of the end.
"""

import re
from collections.abc import Sequence

from lm.evals.stats.joining import Malformed, Problems, by_id, text
from lm.evals.stats.measures import mean

STRICT = re.compile(r"#### (-?[0-9.,]+)")
FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def score(items: Sequence[dict], answers: Sequence[dict]) -> tuple[dict, list[dict]]:
    """Answers are {"id", "response"}; the id is the number of the row from 0. A response without a number is wrong, and named.

    Returns: exact_match_strict, exact_match_flexible.
    """
    problems = Problems()
    pairs, missing = by_id(items, answers, problems, _read)
    samples = []
    for id, (question, target), response in pairs:
        strict, flexible = STRICT.search(response), FLEXIBLE.findall(response)
        if not flexible:
            problems.add("responses_without_number", f"{id}: {response!r}")
        samples.append(
            {
                "task": "gsm8k",
                "id": id,
                "question": question,
                "response": response,
                "target": target,
                "strict": strict[1] if strict else None,
                "flexible": flexible[-1] if flexible else None,
                "strict_correct": bool(strict) and normal(strict[1]) == target,
                "flexible_correct": bool(flexible) and normal(flexible[-1]) == target,
            }
        )
    results = mean("exact_match_strict", [s["strict_correct"] for s in samples])
    results |= mean("exact_match_flexible", [s["flexible_correct"] for s in samples])
    return results | {"n": len(samples), "missing": missing, "problems": problems.kinds}, samples


def normal(number: str) -> str:
    """As numbers are compared: without thousands, dollars and a full stop. 18.00 is not 18."""
    return re.sub("[,$]", "", number).strip().removesuffix(".")


def _read(item: dict) -> tuple[str, str]:
    solution, mark, number = text(item, "answer").rpartition("#### ")
    if not mark or not normal(number):
        raise Malformed("'answer' has no number after '#### '")
    return text(item, "question"), normal(number)
