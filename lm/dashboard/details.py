"""What the page says about one run, and about several that are compared, as JSON."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.dashboard.alerts import Alert
from lm.dashboard.files import plain
from lm.dashboard.series import rounded
from lm.dashboard.watched import SAMPLES, Watched
from lm.files.untrusted import shown
from lm.reports.evaluation_items import item_summary
from lm.reports.items import SAID
from lm.reports.page import flatten
from lm.reports.run_folders import at, start
from lm.reports.run_metrics import CHARTS, LOGARITHMIC, PER_TOKEN, chart_of, is_number
from lm.reports.runs import cut, differences, result_rows, sources, told
from lm.reports.samples import shown_samples
from lm.train.goodput import summary

MOST_KEYS = 2000  # of a config
LONGEST = 300  # characters of a value
MOST_ITEMS = 30  # samples
MOST_FILES = 20_000  # of a checkpoint whose size is summed up
MOST_CHECKPOINTS = 500
SPEED = ("tokens_per_second", "tflops", "mfu", "goodput", "seconds", "stragglers/", "packing", "rollout")


def row(one: Watched) -> dict[str, Any]:
    """Return what the list and the table of runs say of a run."""
    run = one.run
    of, last = run.config.get("steps"), run.metrics.last
    account = accounted(one)
    size = run.report.get("parameters")
    return {
        "id": one.id,
        "version": one.version,
        "name": one.name,
        "kind": shown(cut(run.kind)),
        "state": run.state,
        "place": run.place,
        "steps": run.steps,
        "of": of if is_number(of) else None,
        "tokens": run.tokens,
        "seconds": run.seconds or (account and account["wall"]),
        "written": one.evidence.newest or run.written,
        "loss": last.get("loss") if is_number(last.get("loss")) else None,
        "speed": last.get("tokens_per_second") if is_number(last.get("tokens_per_second")) else None,
        "goodput": account and account["goodput"],
        "parameters": size if is_number(size) else None,
        "by_token": run.kind in PER_TOKEN,
        "main": [{"name": shown(one.name), "text": told(one), "value": one.value} for one in one.figures if one.main][:2],
        "alerts": [alert(one) for one in one.alerts],
        "share": round(one.share, 3),
        "metrics": [key for key in one.series if shown(key) == key],
    }


def alert(one: Alert) -> dict[str, Any]:
    return {**one._asdict(), "text": shown(one.text)[:LONGEST], "kind": shown(one.kind)}


def about(metric: str) -> dict[str, Any]:
    """Return what a chart of a metric says: {"title", "unit", "log", "by_token", "group", "order"}.

    by_token: it is a mean over tokens in runs whose row says so, and has another scale in others.
    """
    place = chart_of(metric)
    chart = CHARTS[place] if place is not None else None
    if metric.startswith("system_"):
        group = "system"
    elif metric.startswith(SPEED):
        group = "speed"
    elif chart is None:
        group = "more"
    else:
        group = "validation" if metric.startswith("valid_") else "training"
    return {
        "title": chart.title if chart and chart.title else metric,
        "unit": chart.unit if chart else "",
        "log": metric == LOGARITHMIC,
        "by_token": metric.endswith("loss") and chart is not None,
        "group": group,
        "order": len(CHARTS) if place is None else place,
    }


def curves(one: Watched, metrics: Sequence[str], points: int, low: float, high: float) -> dict[str, Any]:
    """Return {"version", "tokens", "clock": [steps, values], "steps": lists, "curves": {metric: {"x": index of its steps, "y",
    and if a point stands for several lines, "low", "high"}}}. A value that is not finite is null."""
    found, steps = {}, dict[bytes, int]()
    for metric in metrics:
        if metric in one.series:
            curve = one.series[metric].curve(points, low, high)
            parts = ("y",) if (curve["low"] == curve["high"]).all() else ("y", "low", "high")
            x = steps.setdefault(curve["x"].tobytes(), len(steps))
            found[metric] = {"x": x, **{part: rounded(curve[part]) for part in parts}}
    return {
        "steps": [rounded(np.frombuffer(one), 15) for one in steps],
        "version": one.version,
        "tokens": [rounded(part, 8) for part in one.over_tokens()],
        "clock": [rounded(part, 8) for part in one.over_time()],
        "curves": found,
    }


def details(one: Watched) -> dict[str, Any]:
    """Return all that the page shows of one run beside its curves."""
    run = one.run
    return {
        "row": row(one),
        "folder": shown(run.folder),
        "facts": facts(one),
        "report": one.folder.inside("report.html") and (run.folder / "report.html").is_file(),
        "config": settings(run.config),
        "goodput": accounted(one),
        "checkpoints": checkpoints(one),
        "samples": samples(one),
        "figures": [{"name": shown(figure.name), "text": told(figure)} for figure in one.figures][:100],
        "starts": starts(one),
    }


def facts(one: Watched) -> list[tuple[str, str]]:
    """Return (what, value) of the origin of a run."""
    run = one.run
    found = {
        "starts from": start(run),
        "data": sources(run),
        "code": at(run.report, "provenance.code"),
        "command": at(run.report, "provenance.command"),
    }
    return [(name, plain(value, 1000)) for name, value in found.items() if value]


def settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (key, value) of a config, each value cut."""
    try:
        flat = flatten(config)
    except (RecursionError, TypeError, ValueError):
        return [("", "the config is nested too deeply to be shown")]
    return [(shown(key)[:LONGEST], shown(value)[:LONGEST]) for key, value in list(flat.items())[:MOST_KEYS]]


def accounted(one: Watched) -> dict[str, Any] | None:
    """Return the summary of goodput.jsonl, or None if there is none that can be read."""
    try:
        found = summary(one.evidence.accounts) if one.evidence.accounts else None
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError):
        return None
    sound = found and found["attempts"] and is_number(found["wall"]) and all(map(is_number, found["seconds"].values()))
    return found if sound else None


def checkpoints(one: Watched) -> list[dict[str, Any]]:
    """Return {"step", "bytes", "time", "damaged"} of the checkpoints on disk, the newest first."""
    found = []
    for name in one.folder.names("checkpoints"):
        step, _, rest = name.partition(".")
        inner = f"checkpoints/{name}"
        if step.isdecimal() and len(step) < 16 and (not rest or rest.startswith("damaged")) and one.folder.inside(inner):
            stamp = one.folder.stamp(inner)
            if one.weights.get(name, (None,))[0] != stamp:  # a checkpoint that is whole does not change
                one.weights[name] = (stamp, *weight(one.run.folder / inner))
            _, size, when = one.weights[name]
            found.append({"step": int(step), "bytes": size, "time": when, "damaged": bool(rest)})
    return sorted(found, key=lambda checkpoint: -checkpoint["step"])[:MOST_CHECKPOINTS]


def weight(folder: os.PathLike) -> tuple[int | None, float]:
    """Return (bytes, seconds since 1970 of the newest file) of a folder. Links are not followed; None bytes: too many files."""
    total, newest, files = 0, 0.0, 0
    for place, _, names in os.walk(folder):
        for name in names:
            files += 1
            if files > MOST_FILES:
                return None, newest
            try:
                found = os.lstat(os.path.join(place, name))
            except OSError:
                continue
            total, newest = total + found.st_size, max(newest, found.st_mtime)
    return total, newest


def samples(one: Watched) -> list[dict[str, Any]]:
    """Return {"prompt", "answers": [{"about", "text"}], the newest first} of texts that a run sampled."""
    run = one.run
    given = run.report.get("samples")
    if isinstance(given, list):
        parts = [part for part in given[:MOST_ITEMS] if isinstance(part, Mapping)]
        return [
            {
                "prompt": plain(part.get("prompt") or ""),
                "answers": [{"about": "after training", "text": plain(part.get("text") or "")}],
            }
            for part in parts
        ]
    if run.origin == "evaluate":
        return [item(line) for line in one.folder.lines(SAMPLES, [])[:MOST_ITEMS]]
    lines = [line for line in one.folder.lines(SAMPLES, []) if is_number(line.get("step"))]
    found = []
    for entry in shown_samples(lines):
        prompt = "\n".join(f"{message['role']}: {message['content']}".removeprefix(": ") for message in entry["prompt"])
        answers = [entry["newest"], *reversed(entry["earlier"])]
        found.append(
            {
                "prompt": plain(prompt),
                "answers": [{"about": plain(said(one), 200), "text": plain(one["text"])} for one in answers],
            }
        )
    return found


def said(sample: Mapping[str, Any]) -> str:
    """Return the step and reward of a sample."""
    reward = sample.get("reward")
    return f"step {sample['step']:,.0f}" + (f", reward {reward:.4g}" if is_number(reward) else "")


def item(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item of an evaluation as a sample."""
    metrics = line.get("metrics") if isinstance(line.get("metrics"), Mapping) else {}
    scores = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if is_number(value))
    found = item_summary(line)
    prompt = "\n".join(f"{turn['role']}: {turn['content']}".removeprefix(": ") for turn in found["prompt"])
    answers = [
        ("answer", found["said"] or next((line[key] for key in SAID if line.get(key)), "")),
        ("right answer", found["target"]),
    ]
    about = f"{found['task']} {found['item']}: {scores}"
    return {
        "prompt": plain(prompt),
        "answers": [{"about": plain(f"{what}, {about}", 200), "text": plain(text)} for what, text in answers if text],
    }


def starts(one: Watched) -> list[dict[str, Any]]:
    """Return {"written", "step", "code", "command"} of the starts of a run, the newest first."""
    lines = one.folder.lines("starts.jsonl", [])[-50:]
    keys = ("written", "step", "code", "command")
    return [{key: plain(line.get(key) if line.get(key) is not None else "", 500) for key in keys} for line in reversed(lines)]


def compared(runs: Sequence[Watched]) -> dict[str, Any]:
    """Return {"differences": [key, values], "results": [{"name", "cells", "best"}]} of some runs, in their order."""
    try:
        found = differences([one.run.config for one in runs])
    except (RecursionError, TypeError, ValueError):
        found = {}
    rows = result_rows([one.figures for one in runs])
    return {
        "differences": [
            (shown(key)[:LONGEST], [None if value is None else shown(value)[:LONGEST] for value in values])
            for key, values in list(found.items())[:MOST_KEYS]
        ],
        "results": [
            {"name": shown(part["name"]), "cells": [cell and told(cell) for cell in part["cells"]], "best": part["best"]}
            for part in rows[:200]
        ],
        "now": time.time(),
    }
