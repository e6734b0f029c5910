"""CORE: one score over 22 tasks that separate models early (DCLM, Li et al. 2024, "DataComp-LM", section 3.5 and appendix G).

Each accuracy is centred, (acc − chance) / (1 − chance), so that 0 is chance and 1 is perfect; CORE is the mean. Tasks and
chance levels are those of DCLM's eval_meta_data_v1.csv and mmlu_and_lowvar.yaml. Multiple choice takes the greatest likelihood
per token; the other tasks require each token of the answer to be the most likely one. Examples come from the same file as in
DCLM but are drawn as in lm/evals/tasks/documents.py, so scores agree except for the choice of examples.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

PREFIX = "core_"  # of the task files' names


class Part(NamedTuple):
    """chance: accuracy of guessing (for boolq, of the more frequent answer). metric: the one to centre."""

    chance: float
    metric: str


CORE = {
    "hellaswag_zeroshot": Part(0.25, "acc_per_token"),
    "jeopardy": Part(0, "acc_macro"),
    "bigbench_qa_wikidata": Part(0, "acc"),
    "arc_easy": Part(0.25, "acc_per_token"),
    "arc_challenge": Part(0.25, "acc_per_token"),
    "copa": Part(0.5, "acc_per_token"),
    "commonsense_qa": Part(0.2, "acc_per_token"),
    "piqa": Part(0.5, "acc_per_token"),
    "openbook_qa": Part(0.25, "acc_per_token"),
    "lambada_openai": Part(0, "acc"),
    "hellaswag": Part(0.25, "acc_per_token"),
    "winograd": Part(0.5, "acc_per_token"),
    "winogrande": Part(0.5, "acc_per_token"),
    "bigbench_dyck_languages": Part(0, "acc"),
    "agi_eval_lsat_ar": Part(0.2, "acc_per_token"),
    "bigbench_cs_algorithms": Part(0, "acc"),
    "bigbench_operators": Part(0, "acc"),
    "bigbench_repeat_copy_logic": Part(0, "acc"),
    "squad": Part(0, "acc"),
    "coqa": Part(0, "acc"),
    "boolq": Part(0.62, "acc_per_token"),
    "bigbench_language_identification": Part(0.091, "acc_per_token"),
}


def core(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return CORE from {task name: results}, with tasks `core_…`.

    Returns: {"core": the mean, "core_stderr", "n": 22, "centred": {task: its centred score}, "missing": []}. If some tasks are
    missing or have no score, "missing" lists them, and "core_partial" over the n others replaces "core". {} if all are missing.
    """
    centred, squares = {}, []
    for name, part in CORE.items():
        reported = results.get(PREFIX + name) or {}
        # With only one category there is no mean over categories.
        value = reported.get(part.metric, reported.get(part.metric.removesuffix("_macro")))
        if value is None:
            continue
        centred[name] = (value - part.chance) / (1 - part.chance)
        error = reported.get(f"{part.metric}_stderr", reported.get(f"{part.metric.removesuffix('_macro')}_stderr"))
        squares.append(None if error is None else (error / (1 - part.chance)) ** 2)
    if not centred:
        return {}
    n, missing = len(centred), [name for name in CORE if name not in centred]
    called = "core_partial" if missing else "core"
    stderr = None if None in squares else math.sqrt(math.fsum(squares)) / n
    figures = {called: math.fsum(centred.values()) / n, f"{called}_stderr": stderr}
    return figures | {"n": n, "centred": centred, "missing": missing}
