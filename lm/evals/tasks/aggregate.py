"""Metrics of a task over its items and over each group, and the versions that distinguish two runs."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import UserError
from lm.evals.stats.joining import Problems
from lm.evals.stats.measures import mean
from lm.evals.task import TaskSettings, summed_up
from lm.evals.tasks.documents import Documents, TaskItem
from lm.evals.tasks.settings import check

PLURALS = {"category": "categories"}


def metrics_of(name: str, spec: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return metric_list as {metric: options}. An entry is a name, or {metric: name, option: value}.

    known: {metric: {option: type}}. Raises UserError."""
    metrics = {}
    for entry in spec.get("metric_list") or []:
        options = {"metric": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else {}
        metric = options.pop("metric", None)
        if metric not in known:
            raise UserError(f"task {name}: metric_list: {entry!r} is none of {', '.join(known)}")
        check(f"task {name}: metric_list: {metric}", options, known[metric])
        metrics[metric] = options
    if not metrics:
        raise UserError(f"task {name}: metric_list is empty")
    return metrics


def summary(samples: Sequence[dict], metrics: Sequence[str], problems: Problems, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return means over the samples.

    With `group_by`, add the results of each group under its plural, and METRIC_macro, the mean over groups, with standard error
    √Σ stderr² / groups. With `areas` {area: groups}, add the results of each area."""
    results = summed_up(samples, metrics, problems)
    if not spec.get("group_by"):
        return results
    groups = {group: [s for s in samples if s["group"] == group] for group in sorted({s["group"] for s in samples})}
    parts = {group: _means(some, metrics) for group, some in groups.items()}
    for metric in metrics if len(parts) > 1 else ():
        means, errors = ([part[f"{metric}{end}"] for part in parts.values()] for end in ("", "_stderr"))
        if None not in means:
            error = None if None in errors else math.sqrt(sum(one * one for one in errors)) / len(errors)
            results |= {f"{metric}_macro": sum(means) / len(means), f"{metric}_macro_stderr": error}
    results[PLURALS.get(spec["group_by"], spec["group_by"] + "s")] = parts
    areas = spec.get("areas") or {}
    of_area = {area: [s for group in names for s in groups.get(group, ())] for area, names in areas.items()}
    if any(of_area.values()):
        results["areas"] = {area: _means(some, metrics) for area, some in of_area.items() if some}
    return results


def _means(samples: Sequence[dict], metrics: Sequence[str]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for metric in metrics:
        figures |= mean(metric, [s["metrics"][metric] for s in samples if s["metrics"].get(metric) is not None])
    return figures | {"n": len(samples)}


def about(name: str, spec: Mapping[str, Any], item: TaskItem, documents: Documents) -> dict[str, Any]:
    """Return the first fields of every sample: its task and item, and its group, also under the key that defines groups."""
    group = {"group": item.group, spec["group_by"]: item.group} if spec.get("group_by") else {}
    return {"task": name, "doc_id": item.id, **group, "split": documents.versions["split"]}


def versions_of(spec: Mapping[str, Any], settings: TaskSettings, documents: Documents) -> dict[str, Any]:
    """Return the versions of the documents, and a digest of everything that the prompts depend on."""
    made_by = [dict(spec), settings.chat, settings.system, settings.fewshot_as_multiturn, settings.seed, documents.num_fewshot]
    text = json.dumps(made_by, sort_keys=True, ensure_ascii=True, default=str)
    return documents.versions | {"prompts": "sha256:" + hashlib.sha256(text.encode()).hexdigest()}
