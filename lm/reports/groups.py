"""The groups of tasks on the radar of an evaluation: bias, safety, factuality, coherence, following, knowledge, reasoning."""

import statistics
from collections.abc import Mapping
from fnmatch import fnmatchcase

from lm.evals.stats.chance import chance
from lm.evals.stats.measures import ideal, is_number, level, main_metric, metrics, tasks

GROUPS = {  # axes of the radar; a task belongs to the first with a matching pattern (without "core_")
    "bias": (
        "bbq*",
        "crows*",
        "stereoset*",
        "winobias*",
        "wino_bias*",
        "winogender*",
        "*regard*",
        "*counterfactual*",
        "toxi*",
        "*bias*",
    ),
    "safety": ("redteam*", "harmbench*", "advbench*", "xstest*", "jailbreak*", "strongreject*", "*safety*", "*refusal*"),
    "factuality": (
        "truthfulqa*",
        "*closed_book*",
        "triviaqa*",
        "nq*",
        "popqa*",
        "simpleqa*",
        "*cloze*",
        "support*",
        "*selfcheck*",
        "*factscore*",
        "*fact*",
        "*hallucinat*",
    ),
    "coherence": ("*coherence*", "lambada*", "wikitext*", "*perplexity*", "*rolling*", "storycloze*"),
    "following": ("ifeval*", "*instruction*", "mt_bench*", "*following*"),
    "knowledge": (
        "mmlu*",
        "arc*",
        "openbook*",
        "sciq*",
        "gpqa*",
        "commonsense*",
        "jeopardy*",
        "*wikidata*",
        "*language_identification*",
    ),
    "reasoning": (
        "gsm8k*",
        "math*",
        "bbh*",
        "bigbench*",
        "humaneval*",
        "mbpp*",
        "hellaswag*",
        "winogra*",
        "piqa*",
        "boolq*",
        "copa*",
        "squad*",
        "coqa*",
        "drop*",
        "agi*",
        "*code*",
        "*arithmetic*",
    ),
}


def groups(results: Mapping, chances: Mapping[str, float | None] | None = None) -> dict[str, float | None]:
    """Return for each group the mean level (stats/measures.py) of its tasks: of the task's metrics with an ideal in the middle,
    if it has any, else of its main metric. chances: {task: chance level from its samples}."""
    found: dict[str, list[float]] = {name: [] for name in GROUPS}
    for task, result in tasks(results).items():
        group = result.get("group")
        if group not in GROUPS:
            name = task.removeprefix("core_")
            group = next((group for group, patterns in GROUPS.items() if any(fnmatchcase(name, p) for p in patterns)), None)
        known = [name for name in metrics(result) if is_number(result.get(name))]
        names = [name for name in known if ideal(name) is not None] or [name for name in known if name == main_metric(result)]
        levels = [level(name, result[name], chance(name, result, (chances or {}).get(task))) for name in names]
        levels = [one for one in levels if one is not None]
        if group and levels:
            found[group].append(statistics.fmean(levels))
    return {name: statistics.fmean(values) if values else None for name, values in found.items()}
