"""The page of a sweep: the best trial, its history, parallel coordinates, the importance of each key, and all trials."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from lm.files import saving
from lm.reports.charts import FIFTH, MUTED, TRAIN, VALID, Row, clean, forest, legend, svg
from lm.reports.page import render, short
from lm.runs.provenance import CODE, command_line

STATES = ("complete", "pruned", "running", "fail")


def write(path: Path, sweep: Mapping[str, Any]) -> None:
    """Write the page of a sweep.

    Args:
      sweep: title, method, metric, maximize (bool), logarithmic (names of keys), trials [{number, state, value, step, params,
        seconds, why, folder, best}], importance {key: share}, command (arguments of a run with the best values, or None).
    """
    saving.write(path, html(sweep))


def html(sweep: Mapping[str, Any]) -> str:
    trials = sweep["trials"]
    counts = {state: sum(trial["state"] == state for trial in trials) for state in STATES}
    best = next((trial for trial in trials if trial["best"]), None)
    report = {"title": sweep["title"], "provenance": {"command": _command(), "code": CODE}}
    if sweep["command"]:
        report["next"] = [{"what": "Run the best values again, or longer", "command": shlex.join(sweep["command"])}]
    keys = list(dict.fromkeys(name for trial in trials for name in trial["params"]))
    shown = sorted(trials, key=lambda trial: _rank(trial, sweep["maximize"]))
    return render(
        "sweep.html.j2",
        report,
        verdict=_verdict(best, sweep["metric"]),
        counts=counts,
        best=best,
        keys=keys,
        trials=shown,
        metric=sweep["metric"],
        charts_drawn=charts(sweep, keys),
    )


def charts(sweep: Mapping[str, Any], keys: Sequence[str]) -> list[dict]:
    """Return [{title, note, svg}]: history, coordinates and importance, as far as there are trials for them."""
    done = [trial for trial in sweep["trials"] if trial["state"] == "complete"]
    found = []
    if done:
        found = [_history(sweep, done), _coordinates(sweep, done, keys)]
    if sweep["importance"]:
        rows = [Row(name, [(share, None, None)]) for name, share in sweep["importance"].items()]
        note = "share of the variance of the metric that the key explains (fANOVA), over finished trials"
        found.append(forest("importance", "Importance of each key", note, rows, ["importance"], "share", bars=True))
    return found


def _history(sweep: Mapping[str, Any], done: Sequence[Mapping]) -> dict:
    better = max if sweep["maximize"] else min
    best, line = done[0]["value"], []
    for trial in done:
        best = better(best, trial["value"])
        line.append(best)
    pruned = [trial for trial in sweep["trials"] if trial["state"] == "pruned" and trial["value"] is not None]

    def draw(ax: Axes) -> None:
        numbers = [trial["number"] for trial in done]
        ax.plot(numbers, [trial["value"] for trial in done], "o", color=TRAIN, markersize=5, label="finished")
        style = {"color": MUTED, "markersize": 5, "label": "pruned, at its last step"}
        if pruned:
            ax.plot([trial["number"] for trial in pruned], [trial["value"] for trial in pruned], "x", **style)
        ax.step(numbers, line, where="post", color=VALID, linewidth=1.6, label="best so far")
        ax.set_xlabel("trial")
        ax.set_ylabel(clean(sweep["metric"]))
        legend(ax)

    return {"title": "History", "note": f"{sweep['metric']} of each trial", "svg": svg("history", draw, steps=False)}


def _coordinates(sweep: Mapping[str, Any], done: Sequence[Mapping], keys: Sequence[str]) -> dict:
    """Draw a line for each finished trial over an axis for each key and one for the metric; the best one is thick."""
    scales = [_scale([trial["params"][key] for trial in done], key in sweep["logarithmic"]) for key in keys]
    scales.append(_scale([trial["value"] for trial in done], False))
    ranked = sorted(done, key=lambda trial: trial["value"], reverse=not sweep["maximize"])  # the best comes last, on top

    def draw(ax: Axes) -> None:
        for place, trial in enumerate(ranked):
            values = [*(trial["params"][key] for key in keys), trial["value"]]
            good = place >= 0.75 * len(ranked)
            style = {"color": VALID if trial["best"] else FIFTH if good else MUTED, "linewidth": 2.4 if trial["best"] else 1.1}
            heights = [scale(value) for (scale, _), value in zip(scales, values, strict=True)]
            ax.plot(range(len(values)), heights, alpha=1.0 if good else 0.45, **style)
        for at, (_, ticks) in enumerate(scales):
            ax.axvline(at, color=MUTED, linewidth=0.8)
            for height, text in ticks:
                ax.annotate(clean(text), (at, height), (4, 0), textcoords="offset points", va="center", fontsize=9, color=MUTED)
        ax.set_xticks(range(len(scales)), [clean(name.rpartition(".")[2]) for name in (*keys, sweep["metric"])])
        ax.set_xlim(-0.1, len(scales) - 0.6)
        ax.set_yticks([])
        ax.set_ylim(-0.08, 1.08)

    note = "a line is a finished trial; the best one is thick, the best quarter coloured"
    size = (max(5.4, 1.5 * len(scales)), 3.4)
    return {"title": "Parallel coordinates", "note": note, "svg": svg("coordinates", draw, size=size, steps=False)}


def _scale(values: Sequence[Any], log: bool):
    """Return (value -> height from 0 to 1, [(height, text of a tick)])."""
    if not all(isinstance(value, int | float) for value in values):
        names = list(dict.fromkeys(map(str, values)))
        heights = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
        return lambda value: heights[str(value)], [(height, name) for name, height in heights.items()]
    place = math.log if log else float
    low, high = place(min(values)), place(max(values))
    width = (high - low) or 1.0

    def height(value: float) -> float:
        return (place(value) - low) / width if high > low else 0.5

    return height, [(height(value), short(value)) for value in dict.fromkeys((min(values), max(values)))]


def _rank(trial: Mapping, maximize: bool) -> tuple:
    value = trial["value"]
    state = STATES.index(trial["state"])
    return (state, value is None, (-value if maximize else value) if value is not None else 0, trial["number"])


def _verdict(best: Mapping | None, metric: str) -> str:
    if best is None:
        return "No trial has finished yet."
    values = ", ".join(f"{name}={short(v) if isinstance(v, int | float) else v}" for name, v in best["params"].items())
    return f"The best trial is number {best['number']}, with {metric} {best['value']:.4g} at {values}."


def _command() -> str:
    import sys

    return command_line(sys.argv)
