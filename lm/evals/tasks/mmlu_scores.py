"""MMLU: questions with four choices (Hendrycks et al. 2021, "Measuring massive multitask language understanding").

A response is read for the letter that it settles on; see `letter`.
"""

import re
from collections.abc import Sequence

from lm.evals.stats.joining import Problems, by_id
from lm.evals.stats.measures import mean
from lm.evals.tasks.formats import LETTERS, mmlu

_ALONE = re.compile(r"[\s(\[*\"']*([A-Da-d])[\s)\].:,*\"']*")
_MARKED = re.compile(
    r"(?:(?i:\banswer(?:\s+(?:is|was|would\s+be|should\s+be))?)(?:\s*[:=]|\b)(?i:[\s(*]*(?:option|choice)\b)?"
    r"|\\boxed)[\s(\[{*\"']*(?:\\text\{)?([A-D])(?![\w'’])(?!\s+or\b)"
)
# The word A is an article too: to begin with, it must stand apart.
_FIRST = re.compile(r"[\s(\[*]*(?:([A-D])\s*[)\].:,*\n]|([B-D])\b(?![-+#'’]))")
_NAMED = re.compile(r"\(([A-D])\)|\b(?i:option|choice)\s+([A-D])\b")


def score(items: Sequence[dict], answers: Sequence[dict]) -> tuple[dict, list[dict]]:
    """Score answers to MMLU. Items are {"question", "A", "B", "C", "D", "answer"} or {"question", "choices", "answer": 0–3},
    perhaps with "subject". Answers are {"id", "response"}; the id is the number of the row from 0. A response without a letter
    is wrong, and named.

    Returns: acc, overall and in "subjects".
    """
    problems = Problems()
    pairs, missing = by_id(items, answers, problems, lambda item: item | mmlu(item))
    samples = []
    for id, item, response in pairs:
        chosen, target = letter(response, item["choices"]), LETTERS[item["answer"]]
        if chosen is None:
            problems.add("responses_without_letter", f"{id}: {response!r}")
        samples.append(
            {
                "task": "mmlu",
                "id": id,
                "subject": str(item.get("subject") or ""),
                "question": item["question"],
                "choices": item["choices"],
                "response": response,
                "letter": chosen,
                "target": target,
                "correct": chosen == target,
            }
        )
    results = mean("acc", [s["correct"] for s in samples]) | {"n": len(samples), "missing": missing, "subjects": {}}
    for subject in sorted({s["subject"] for s in samples}):
        some = [s["correct"] for s in samples if s["subject"] == subject]
        results["subjects"][subject] = mean("acc", some) | {"n": len(some)}
    return results | {"problems": problems.kinds}, samples


def letter(response: str, choices: Sequence[str]) -> str | None:
    """Return the letter of a response: all that it is, or that of the choice whose text it is; else the last that "answer" or
    \\boxed marks; else the one that it begins with; else the only one that it names "(X)" or "option X". None: none of these.

    >>> [letter(r, ("2", "4", "6", "8")) for r in ("b", "6", "C) 6", "It cannot be A, so the answer is **D**.", "A guess: 5")]
    ['B', 'C', 'C', 'D', None]
    """
    if alone := _ALONE.fullmatch(response):
        return alone[1].upper()
    same = [i for i, choice in enumerate(choices) if _plain(choice) == _plain(response)]
    if same:
        return LETTERS[same[0]] if len(same) == 1 else None
    if marked := _MARKED.findall(response):
        return marked[-1]
    if first := _FIRST.match(response):
        return first[1] or first[2]
    named = {bracketed or called for bracketed, called in _NAMED.findall(response)}
    return named.pop() if len(named) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
