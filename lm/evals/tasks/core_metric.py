"""CORE: one score over 22 tasks that separate models early (DCLM, Li et al. 2024, "DataComp-LM", section 3.5 and appendix G).

Each accuracy is centred, (acc − chance) / (1 − chance), so that 0 is chance and 1 is perfect; CORE is the mean. Tasks and
chance levels are those of DCLM's eval_meta_data_v1.csv and mmlu_and_lowvar.yaml. Multiple choice takes the greatest likelihood
per token; the other tasks require each token of the answer to be the most likely one. Examples come from the same file as in
DCLM but are drawn as in lm/evals/tasks/documents.py, so scores agree except for the choice of examples.
"""

import math
from collections.abc import Mapping
from typing import Any

PREFIX = "core_"  # of the task files' names
# {task: accuracy of guessing; for boolq, of the more frequent answer}
CORE = {
    "hellaswag_zeroshot": 0.25, "jeopardy": 0, "bigbench_qa_wikidata": 0, "arc_easy": 0.25, "arc_challenge": 0.25,
    "copa": 0.5, "commonsense_qa": 0.2, "piqa": 0.5, "openbook_qa": 0.25, "lambada_openai": 0, "hellaswag": 0.25,
    "winograd": 0.5, "winogrande": 0.5, "bigbench_dyck_languages": 0, "agi_eval_lsat_ar": 0.2,
    "bigbench_cs_algorithms": 0, "bigbench_operators": 0, "bigbench_repeat_copy_logic": 0, "squad": 0, "coqa": 0,
    "boolq": 0.62, "bigbench_language_identification": 0.091,
}  # fmt: skip


def core(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return CORE from {task name: results}, with tasks `core_…`.

    Returns: {"core": the mean, "core_stderr", "n": 22, "centred": {task: its centred score}, "missing": []}. If some tasks are
    missing or have no score, "missing" lists them, and "core_partial" over the n others replaces "core". {} if all are missing.
    """
    centred, squares = {}, []
    for name, chance in CORE.items():
        reported = results.get(PREFIX + name) or {}
        # Only jeopardy has acc_macro: the mean over its categories, if there are several.
        metric = next((metric for metric in ("acc_per_token", "acc_macro", "acc") if metric in reported), "acc")
        if (value := reported.get(metric)) is None:
            continue
        centred[name] = (value - chance) / (1 - chance)
        error = reported.get(f"{metric}_stderr")
        squares.append(None if error is None else (error / (1 - chance)) ** 2)
    if not centred:
        return {}
    n, missing = len(centred), [name for name in CORE if name not in centred]
    called = "core_partial" if missing else "core"
    stderr = None if None in squares else math.sqrt(math.fsum(squares)) / n
    figures = {called: math.fsum(centred.values()) / n, f"{called}_stderr": stderr}
    return figures | {"n": n, "centred": centred, "missing": missing}
