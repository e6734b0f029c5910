"""The verdict of an evaluation in plain words, the settings that its results depend on, and differences from another one."""

from collections.abc import Mapping
from typing import Any

from lm.evals.stats.chance import value_text, words
from lm.evals.stats.measures import badness, ideal, interval, is_number, main_metric, scale, tasks
from lm.reports.page import count

ALPHA = 0.05
NAMED = 4  # most tasks that a sentence names
TEMPLATES = {"none": "none: plain prompts", "own": "the model's own", "plain": "plain: “User: …”, “Assistant: …”"}


def verdict(runs: Mapping[str, Mapping], judged: Mapping[str, Mapping], comparison: Mapping[str, Mapping]) -> list[str]:
    """Return sentences: what was evaluated, how it compares with chance and with the other runs.

    Args: runs: results by name, this run first. judged: "tasks" of report.json. comparison: result of compare_runs by name.
    """
    (name, results), *others = runs.items()
    evaluated = {task: result for task, result in tasks(results).items() if "centred" not in result}  # CORE combines others
    items = sum(result["n"] for result in evaluated.values() if is_number(result["n"]))
    names = ", ".join(evaluated)
    named = f": {names}" if len(evaluated) == 1 else f" ({names})" if 1 < len(evaluated) <= NAMED else ""
    sentences = [f"{name} was evaluated on {count(items, 'item')} of {count(len(evaluated), 'task')}{named}."]
    sentences += against_chance(results, judged)
    for task, result in evaluated.items():
        if (interval(result, "visible_gap") or (0.0,))[0] > 0:
            gap = 100 * result["visible_gap"]
            sentences.append(f"{task}: {gap:.3g} % of its programs fit only the visible examples, not the hidden tests.")
    for other, theirs in others:
        sentences += [against(other, comparison[other]), *differing(theirs, results, other)]
    return sentences


def against_chance(results: Mapping, judged: Mapping[str, Mapping]) -> list[str]:
    """Return sentences about the main metrics: the best and the worst relative to chance, or all if they are few."""
    known, others, sentences = [], [], []
    for task, result in tasks(results).items():
        metric = main_metric(result)
        if metric is None or not is_number(result.get(metric)):
            continue
        value, row = result[metric], judged[task]["metrics"][metric]
        level, above, most = row["chance"], row["above_chance"], 100.0 if scale(metric, value) == "percent" else 1.0
        figure = f"{metric} {value_text(metric, value)}{', ' * (above is not None)}{words(metric, level, above)}"
        if "centred" in result:
            sentences.append(f"{task}: {figure}.")
        elif above is None:
            others.append(f"{task}: {figure}")
        else:
            known.append(((value - level) / (most - level) if level < most else 0.0, above, task, figure))
    known.sort(key=lambda entry: -entry[0])
    above = sum(entry[1] for entry in known)
    if len(known) > 1:
        share = "None" if not above else "All" if above == len(known) else str(above)
        (*_, best, figure), (*_, worst, lowest) = known[0], known[-1]
        sentences.append(
            f"{share} of the {len(known)} tasks with a chance level {'is' if above < 2 else 'are'} above it. "
            f"Relative to chance, {best} is best: {figure}; {worst} is worst: {lowest}."
        )
    elif known:
        sentences.append(f"{known[0][2]}: {known[0][3]}.")
    if 0 < len(others) <= NAMED:
        sentences.append(f"{'Without a chance level: ' if known else ''}{'; '.join(others)}.")
    return sentences


def against(other: str, comparison: Mapping) -> str:
    """Return a sentence about the significant differences of the main metrics against another run."""
    sure = [row for row in rows(comparison) if row["main"] and row["p_holm"] is not None and row["p_holm"] < ALPHA]
    better = [row["task"] for row in sure if row["better"]]
    worse = [row["task"] for row in sure if row["better"] is False]
    outcomes = [f"better at {', '.join(better)}"] * bool(better) + [f"worse at {', '.join(worse)}"] * bool(worse)
    left = sum(part["differing"]["n"] for part in comparison["tasks"].values())
    note = f" ({count(left, 'item')} asked differently are left out)" if left else ""
    return f"Against {other}: {'; '.join(outcomes) or 'no significant difference'}{note}."


def differing(theirs: Mapping, results: Mapping, other: str) -> list[str]:
    """Return a sentence about the settings, known of both runs and for their common tasks, in which another run differs."""
    alone = tasks(theirs).keys() ^ tasks(results).keys()
    before, after = (settings({key: run[key] for key in run if key not in alone}) for run in (theirs, results))
    differences = [
        f"{key} ({before[key]} there, {value} here)"
        for key, value in after.items()
        if key not in ("model", "seed") and before.get(key) not in (None, value)
    ]
    return [f"Its settings differ from those of {other}: {'; '.join(differences)}."] if differences else []


def limited(limit: float | None) -> str:
    """Return a limit in words.

    >>> limited(40), limited(0.1)
    ('40 items of each task or group', '10 % of each task or group')
    """
    if limit is None:
        return "none: all items"
    return f"{f'{100 * limit:g} %' if limit < 1 else count(int(limit), 'item')} of each task or group"


def settings(results: Mapping[str, Any]) -> dict[str, str]:
    """Return what results depend on beside the weights and the items, in words: model, dtype, chat template, examples, limit,
    seed. What an evaluation did not record is left out."""
    model, template, facts = results.get("model"), results.get("chat_template"), {}
    if isinstance(model, Mapping):
        facts["model"] = f"{model.get('name')}, fingerprint {model.get('fingerprint')}"
        if model.get("dtype"):
            facts["dtype of matrix products"] = str(model["dtype"])
    if isinstance(template, Mapping) and "kind" in template:
        facts["chat template"] = TEMPLATES.get(template["kind"], template["kind"])
    versions = (results.get("versions") or {}).get("tasks") or {}
    shots: dict[int, list[str]] = {}
    for task, result in tasks(results).items():
        n = result.get("num_fewshot")
        n = (versions.get(task) or {}).get("num_fewshot") if n is None else n
        if n is not None:
            shots.setdefault(n, []).append(task)
    if len(shots) == 1:
        facts["examples in the prompt (num_fewshot)"] = str(next(iter(shots)))
    elif shots:
        facts["examples in the prompt (num_fewshot)"] = "; ".join(f"{n}: {', '.join(shots[n])}" for n in sorted(shots))
    if "limit" in results:
        facts["limit"] = limited(results["limit"])
    if "seed" in results:
        facts["seed"] = str(results["seed"])
    return facts


def rows(comparison: Mapping) -> list[dict]:
    """Return the rows of a comparison with their task and metric, the main metrics first.

    "line", if the interval is known: low, difference and high in percent of the widest interval of the same scale; 50 is no
    difference.
    """
    all_rows = [
        {"task": task, "metric": metric, "main": metric == part["main"], **row}
        for task, part in comparison["tasks"].items()
        for metric, row in part["metrics"].items()
    ]
    widest: dict[str, float] = {}
    drawn = [row for row in all_rows if None not in (row["low"], row["difference"], row["high"])]
    for row in drawn:
        row["scale"] = row["metric"] if scale(row["metric"], row["after"]) == "open" else "closed"
        widest[row["scale"]] = max(widest.get(row["scale"], 0.0), abs(row["low"]), abs(row["high"]))
    for row in drawn:
        limit = widest[row["scale"]] or 1.0
        row["line"] = [50 + 50 * row[key] / limit for key in ("low", "difference", "high")]
    return sorted(all_rows, key=lambda row: not row["main"])


def arrow(metric: str | None) -> str:
    """Return a metric's suffix: ↓ if lower is better, → and its ideal if it has one."""
    if not metric or (bad := badness(metric, 1.0)) is None:
        return ""
    middle = ideal(metric)
    return f" → {middle:g}" if middle is not None else " ↓" if bad > 0 else ""
