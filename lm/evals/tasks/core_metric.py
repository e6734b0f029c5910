"""CORE: one figure of 22 tasks that tell models apart early (DCLM, Li et al. 2024, "DataComp-LM", section 3.5 and appendix G).

Each accuracy is centred, (acc − chance) / (1 − chance), so that 0 is chance and 1 is all right, and CORE is their mean. Tasks,
chances and shots are those of DCLM's eval_meta_data_v1.csv and mmlu_and_lowvar.yaml. A choice is what has the greatest
likelihood per token; the other tasks ask that every token of the answer be the likeliest one. Examples are drawn as
lm/evals/tasks/documents.py draws them, from the same file, where DCLM draws others: figures agree but for that.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

PREFIX = "core_"  # of the names of their task files


class Part(NamedTuple):
    """chance: accuracy of guessing (of boolq, of the more frequent answer). metric: which figure is centred."""

    chance: float
    shots: int
    metric: str


CORE = {
    "hellaswag_zeroshot": Part(0.25, 0, "acc_per_token"),
    "jeopardy": Part(0, 10, "acc_macro"),
    "bigbench_qa_wikidata": Part(0, 10, "acc"),
    "arc_easy": Part(0.25, 10, "acc_per_token"),
    "arc_challenge": Part(0.25, 10, "acc_per_token"),
    "copa": Part(0.5, 0, "acc_per_token"),
    "commonsense_qa": Part(0.2, 10, "acc_per_token"),
    "piqa": Part(0.5, 10, "acc_per_token"),
    "openbook_qa": Part(0.25, 0, "acc_per_token"),
    "lambada_openai": Part(0, 0, "acc"),
    "hellaswag": Part(0.25, 10, "acc_per_token"),
    "winograd": Part(0.5, 0, "acc_per_token"),
    "winogrande": Part(0.5, 0, "acc_per_token"),
    "bigbench_dyck_languages": Part(0, 10, "acc"),
    "agi_eval_lsat_ar": Part(0.2, 3, "acc_per_token"),
    "bigbench_cs_algorithms": Part(0, 10, "acc"),
    "bigbench_operators": Part(0, 10, "acc"),
    "bigbench_repeat_copy_logic": Part(0, 10, "acc"),
    "squad": Part(0, 10, "acc"),
    "coqa": Part(0, 0, "acc"),
    "boolq": Part(0.62, 10, "acc_per_token"),
    "bigbench_language_identification": Part(0.091, 10, "acc_per_token"),
}


def core(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """CORE of the results of tasks by name, `core_…` among them.

    Returns: {"core": the mean, "core_stderr", "n": 22, "centred": {task: its figure}, "missing": []}; if some of the tasks are
    missing, or have no figure, "core_partial" instead, over the n that there are, and they are named; {} without any.
    """
    centred, squares = {}, []
    for name, part in CORE.items():
        told = results.get(PREFIX + name) or {}
        # One category alone has no mean over categories.
        value = told.get(part.metric, told.get(part.metric.removesuffix("_macro")))
        if value is None:
            continue
        centred[name] = (value - part.chance) / (1 - part.chance)
        error = told.get(f"{part.metric}_stderr", told.get(f"{part.metric.removesuffix('_macro')}_stderr"))
        squares.append(None if error is None else (error / (1 - part.chance)) ** 2)
    if not centred:
        return {}
    n, missing = len(centred), [name for name in CORE if name not in centred]
    called = "core_partial" if missing else "core"
    stderr = None if None in squares else math.sqrt(math.fsum(squares)) / n
    figures = {called: math.fsum(centred.values()) / n, f"{called}_stderr": stderr}
    return figures | {"n": n, "centred": centred, "missing": missing}
