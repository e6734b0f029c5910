"""The report of an alignment run, as JSON and as one self-contained HTML page; and a page for a pipeline of runs.

    python -m lm.reports.align WORKDIR                  # redraw a run's page from its workdir
    python -m lm.reports.align PRETRAINED SFT GRPO      # write pipeline.html into the last workdir

It works for every method: it draws all metrics in metrics.jsonl. See lm/reports/page.py for how pages are made.
"""

import fnmatch
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from lm import saving
from lm.align.alarms import Alarm, alarms, is_better, is_validation, words
from lm.errors import UserError
from lm.reports.charts import INK, SERIES, VALID, dots, from_zero, svg, thin, trend
from lm.reports.page import machine, number, render, replace_json
from lm.reports.samples import same_prompt, shown_samples
from lm.saving import plain
from lm.train.history import column, json_lines
from lm.workdir import read_object

__all__ = ["Alarm", "alarms", "load_lines", "load_samples", "write", "write_stages", "html"]


class Group(NamedTuple):
    """A chart with all metrics that match one of its patterns."""

    title: str
    note: str
    patterns: tuple[str, ...]


GROUPS = (
    Group("Loss", "of the method", ("loss",)),
    Group("Reward", "mean over completions; the band is one standard deviation of them", ("reward",)),
    Group("Each reward", "mean of each function before its weight", ("rewards/*/mean",)),
    Group("Rewards of pairs", "chosen and rejected answers", ("rewards/chosen", "rewards/rejected")),
    Group("Margin", "reward of the chosen answer − that of the rejected one", ("rewards/margins",)),
    Group("Preference accuracy", "pairs whose chosen answer has the greater reward", ("rewards/accuracies",)),
    Group("Distance from the reference", "Kullback-Leibler divergence, nats", ("kl", "objective/kl", "policy/approxkl_avg")),
    Group("Entropy", "of the policy, nats a token", ("entropy", "objective/entropy")),
    Group("Clipped ratios", "share of tokens with a clipped ratio", ("clip_ratio/*_mean", "policy/clipfrac_avg")),
    Group("Completion length", "tokens", ("completions/*length",)),
    Group("Cut and idle", "completions that the limit cut, groups of equal rewards", ("*/clipped_ratio", "frac_reward_*")),
    Group("Log-probabilities", "of the answers under the policy, nats", ("logps/*",)),
    Group("Tools", "calls and failures a completion", ("tools/*",)),
    Group("Sampler and trainer", "difference of their log-probabilities, and the weights that correct it", ("sampling/*",)),
    Group("Learning rate", "as applied", ("learning_rate",)),
    Group("Gradient norm", "global, before clipping", ("grad_norm",)),
    Group("Throughput", "trained tokens per second", ("tokens_per_second",)),
)
OWN = ("reward", "rewards/accuracies", "accuracy", "rewards/margins", "agreement")
NEUTRAL = {"kl", "length", "entropy", "logps", "chosen", "rejected", "min", "max", "ratio"}
# Metrics without a curve here: shown on the axis or in a tile, or with their own chart.
LEFT_OUT = ("step", "tokens", "skipped", "mfu", "reward_std", "seconds/*", "rewards/*/std", "clip_ratio/*_m[ai][xn]")
MAKE = "run the command of the run again to recreate it"
SCHEDULE = "*learning_rate*"  # curves given by a formula are not smoothed


def write(workdir: str | os.PathLike, report: dict) -> None:
    """Write `report.json` and `report.html` into `workdir`, each atomically; reads its metrics.jsonl and samples.jsonl.

    Args:
        workdir: an existing directory.
        report: any of these keys. title, method, finished (bool), config (nested), machine (lm.reports.page.machine),
            parameters (count), trained (count), before and after ({measure: value}, see `own_measure`),
            measures {measure: its description}, data ({split: {label: count or {reason: count}}}, and the same for `tasks`),
            notes (list of str), training {steps, tokens, skipped}, stages {name: seconds}.

    The JSON also gets alarms (list of {step, kind, text}), rollout_share, and best_of, the statistics of a run that answered
    each prompt several times.
    """
    workdir, report = Path(workdir), plain(report)
    lines, samples = load_lines(workdir / "metrics.jsonl"), load_samples(workdir / "samples.jsonl")
    report["alarms"] = [alarm._asdict() for alarm in alarms(lines, samples)]
    report["rollout_share"] = rollout_share(lines)
    if (statistics := workdir / "best_of" / "statistics.json").is_file():
        report["best_of"] = read_object(statistics, MAKE)
    replace_json(workdir / "report.json", report)
    saving.write(workdir / "report.html", html(report, lines, samples))


def write_run(workdir: Path, report: dict) -> None:
    """Write the report of a run that ended on this machine (see `write`)."""
    write(workdir, report | {"machine": machine()})


def load_lines(path: str | os.PathLike) -> list[dict]:
    """Return the lines of a metrics.jsonl by step, validation after training. Of equal kind and step the last one is used."""
    rows = json_lines(path) if Path(path).exists() else []
    kept = {(row["step"], is_validation(row)): row for row in rows if isinstance(row.get("step"), (int, float))}
    return [kept[key] for key in sorted(kept)]


def load_samples(path: str | os.PathLike) -> list[dict]:
    """Return the lines of a samples.jsonl by step. Of equal step and prompt the last one is used."""
    rows = json_lines(path) if Path(path).exists() else []
    kept = {(row["step"], same_prompt(row)): row for row in rows if isinstance(row.get("step"), (int, float))}
    return sorted(kept.values(), key=lambda row: row["step"])


def html(report: dict, lines: Sequence[dict] = (), samples: Sequence[dict] = ()) -> str:
    """Return the page, from plain values (`plain` of lm/saving.py) and the results of `load_lines` and `load_samples`."""
    before, after = report.get("before") or {}, report.get("after") or {}
    own = own_measure(after)
    return render(
        "align.html.j2",
        report,
        verdict=verdict(before, after, report.get("measures") or {}),
        measures=[(name, before.get(name), after.get(name)) for name in dict.fromkeys((*filter(None, [own]), *after, *before))],
        columns=_columns(report.get("data") or {}),
        curves=curves(lines),
        prompts=shown_samples(samples),
        last_step=max((line["step"] for line in lines), default=None),
        judged=judged,
    )


def verdict(before: dict, after: dict, measures: dict) -> str | None:
    """Return one sentence about the method's own measure, or None."""
    measure = own_measure(after)
    if measure is None:
        return None
    what = f"{measure}{f', {measures[measure]},' if measures.get(measure) else ''}"
    if before.get(measure) is None:
        return f"{what} is {number(after[measure])}."
    if after[measure] == before[measure]:
        return f"{what} stayed at {number(after[measure])}."
    better = "better" if is_better(measure, before[measure], after[measure]) else "worse"
    return f"{what} went from {number(before[measure])} to {number(after[measure])}: {better}."


def own_measure(after: dict) -> str | None:
    """Return the measure that a method optimises, the first known one of: rewards of generated answers, preference accuracy,
    and then any in order."""
    known = {name for name, value in after.items() if value is not None}
    return next((name for name in (*OWN, *after) if name in known), None)


def judged(measure: str, before: float, after: float) -> str:
    """Return the CSS class of a change: good, bad, or "" for no change and for measures without a direction."""
    if before == after or words(measure) & NEUTRAL:
        return ""
    return "good" if is_better(measure, before, after) else "bad"


def rollout_share(lines: Iterable[dict]) -> float | None:
    """Return the share of logged seconds spent in rollouts; None if nothing was timed."""
    seconds = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith("seconds/") and isinstance(value, (int, float)):
                seconds[key] = seconds.get(key, 0.0) + value
    return seconds.get("seconds/rollout", 0.0) / sum(seconds.values()) if sum(seconds.values()) else None


def _columns(data: dict) -> dict[str, dict]:
    """Return a table's columns, one per split, also of the tasks. Counts by reason have one row per reason."""
    found = {}
    for split, counts in data.items():
        if split == "tasks":
            found |= {f"tasks, {name}": column for name, column in _columns(counts).items()}
        elif isinstance(counts, dict):
            by_reason = {f"{k}, {why}": n for k, x in counts.items() if isinstance(x, dict) for why, n in x.items()}
            found[split] = {k: n for k, n in counts.items() if not isinstance(n, dict)} | by_reason
    return {split: counts for split, counts in found.items() if any(counts.values())}


def curves(lines: Sequence[dict], name: str = "chart") -> list[dict]:
    """Return charts of all metrics in the lines: [{title, note, svg}]. Held-out and training curves share a chart."""
    train = [line for line in lines if not is_validation(line)]
    keys = dict.fromkeys(key for line in train for key in line)
    valid = [{_twin(key, keys): x for key, x in line.items()} for line in lines if is_validation(line)]
    keys |= dict.fromkeys(key.removeprefix("valid_") for line in valid for key in line)
    drawn = {key for key in keys if len(column(train, key)[0]) or len(column(valid, f"valid_{key}")[0])}
    groups = list(GROUPS)
    for key in (key for key in keys if not any(fnmatch.fnmatch(key, p) for group in GROUPS for p in group.patterns)):
        if key in drawn and not any(fnmatch.fnmatch(key, pattern) for pattern in LEFT_OUT):
            prefix = key.rpartition("/")[0]
            group = Group("", "", (f"{prefix}/*" if prefix else key,))
            groups += [group] if group not in groups else []
    charts, taken = [], set()
    for group in groups:
        found = [key for key in keys if key in drawn - taken and any(fnmatch.fnmatch(key, p) for p in group.patterns)]
        found = [key for key in found if not any(fnmatch.fnmatch(key, pattern) for pattern in LEFT_OUT)]
        taken |= set(found)
        for begin in range(0, len(found), len(SERIES)):  # one chart has only that many colours
            part = found[begin : begin + len(SERIES)]
            picture = svg(f"{name}{len(charts)}", lambda ax, part=part: _draw(ax, part, train, valid))
            title = group.title or (part[0].replace("_", " ") if len(part) == 1 else part[0].rpartition("/")[0])
            note = group.note or ("as logged" if any(len(column(train, key)[0]) for key in part) else "held out")
            charts.append({"title": title, "note": note, "svg": picture})
    if picture := _seconds(train, f"{name}{len(charts)}"):
        charts.append({"title": "Where the time goes", "note": "share of a step's seconds", "svg": picture})
    return charts


def _twin(key: str, trained: Iterable[str]) -> str:
    """Return a validation key with the name of its training metric: valid_rewards/answer matches rewards/answer/mean."""
    name = key.removeprefix("valid_")
    other = next((twin for twin in (f"{name}/mean", f"completions/{name}") if twin in trained), name)
    return key if key == name else f"valid_{name if name in trained else other}"


def _draw(ax: Axes, keys: Sequence[str], train: Sequence[dict], valid: Sequence[dict]) -> None:
    for key, colour in zip(keys, SERIES):
        name = key.partition("/")[2] or key
        label = "train" if len(keys) == 1 else name.removesuffix("/mean") if key.startswith("rewards/") else name
        steps, values = column(train, key)
        noisy = len(steps) > 50 and not fnmatch.fnmatch(key, SCHEDULE)
        if noisy:
            ax.plot(*thin(steps, values), color=colour, alpha=0.3, linewidth=0.8)
        if len(steps):
            shown = trend(steps, values) if noisy else thin(steps, values)
            ax.plot(*shown, color=colour, linewidth=1.8, label=label, **dots((steps, values)))
        if key == "reward":
            both = [row for row in train if len(column([row], key)[0]) and len(column([row], "reward_std")[0])]
            (steps, values), (_, spread) = column(both, key), column(both, "reward_std")
            ax.fill_between(steps, values - spread, values + spread, color=colour, alpha=0.12, linewidth=0)
        held_out = column(valid, f"valid_{key}")
        if len(held_out[0]):
            style = {"color": VALID, "label": "held out"} if len(keys) == 1 else {"color": colour, "linestyle": (0, (4, 2))}
            ax.plot(*thin(*held_out), linewidth=1.8, **style, **dots(held_out))
    low, high = ax.dataLim.intervaly
    if keys == ["grad_norm"] and low > 0 and high > 10 * low:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif keys != ["loss"]:
        from_zero(ax)
    if len(ax.get_legend_handles_labels()[0]) > 1:
        ax.legend(frameon=False, labelcolor=INK, loc="best", fontsize=10)


def _seconds(train: Sequence[dict], name: str) -> Markup | None:
    """Return a stacked chart of the shares of each step's parts in its seconds; None without times."""
    keys = sorted({key for line in train for key in line if key.startswith("seconds/")})
    rows = [line for line in train if all(isinstance(line.get(key), (int, float)) for key in keys)]
    values = np.array([[row[key] for row in rows] for key in keys], np.float64).reshape(len(keys), len(rows))
    if not values.sum():
        return None
    every = np.array([row["step"] for row in rows], np.float64)
    trends = [trend(every, row, 300) for row in values]
    steps, values = trends[0][0], np.maximum([seconds for _, seconds in trends], 0.0)
    shares = values / np.maximum(values.sum(0), 1e-12)

    def draw(ax: Axes) -> None:
        labels = [key.removeprefix("seconds/") for key in keys]
        ax.stackplot(steps, shares, colors=SERIES, labels=labels, alpha=0.7, linewidth=0)
        ax.set_ylim(0, 1)
        ax.legend(loc="lower left", fontsize=10, labelcolor=INK, frameon=False)

    return svg(name, draw)


def write_stages(workdirs: Sequence[str | os.PathLike], to: str | os.PathLike | None = None) -> Path:
    """Write one page for runs that each start from the previous one; return its path.

    Each stage is shown by its own measure, before and after. For a pretraining run that is bits per byte, compared with the
    best n-gram.

    Args:
        workdirs: of the runs, in order, each with its report.json.
        to: an existing folder for pipeline.html and pipeline.json; None: the last workdir.
    Raises: UserError if a run has no report yet.
    """
    stages = [_stage(Path(workdir), f"stage{i}-") for i, workdir in enumerate(workdirs)]
    to = Path(to or workdirs[-1])
    for stage in stages:
        stage["link"] = os.path.relpath(Path(stage["workdir"]) / "report.html", to)
    names = [stage["name"] for stage in stages]
    for i, stage in enumerate(stages):
        if names.count(stage["name"]) > 1:
            stage["name"] = f"{stage['name']} {names[: i + 1].count(names[i])}"
    seconds = {stage["name"]: stage["seconds"] for stage in stages}
    report = {"title": "From text to " + stages[-1]["name"], "stages": seconds, "machine": stages[-1]["machine"]}
    columns = ("name", "workdir", "measure", "before", "after", "better", "seconds", "alarms")
    saved = {**report, "pipeline": [{key: stage[key] for key in columns} for stage in stages]}
    worse = [stage["name"] for stage in stages if not stage["better"]]
    sentence = f"Not better by its own measure: {', '.join(worse)}." if worse else "Each stage is better by its own measure."
    replace_json(to / "pipeline.json", plain(saved))
    saving.write(
        to / "pipeline.html", render("pipeline.html.j2", plain(report), pipeline=stages, verdict=sentence, last_step=None)
    )
    return to / "pipeline.html"


def _stage(workdir: Path, name: str) -> dict:
    path = workdir / "report.json"
    if not path.exists():
        raise UserError(f"{workdir} has no report.json: let the run finish first")
    report, lines = read_object(path, MAKE), load_lines(workdir / "metrics.jsonl")
    before, after = report.get("before") or {}, report.get("after") or {}
    if not after and (validation := report.get("validation")):
        ours = validation.get("bits_per_byte")
        grams = {key: value for key, value in validation.items() if key.endswith("gram") and value is not None}
        after = {"bits per byte": ours}
        before = {"bits per byte": min(grams.values())} if grams else {}
    measure = own_measure(after)
    pair = before.get(measure), after.get(measure)
    prompts = shown_samples(load_samples(workdir / "samples.jsonl"))
    wanted = ("Loss", "Reward", "Preference accuracy", "bits per byte")
    return {
        "name": report.get("method") or "pretraining",
        "workdir": str(workdir),
        "measure": measure,
        "before": pair[0],
        "after": pair[1],
        "better": None not in pair and is_better(measure, *pair),
        "seconds": sum(report.get("stages", {}).values()),
        "machine": report.get("machine"),
        "alarms": report.get("alarms") or [],
        "prompts": prompts[:2],
        "samples": [] if prompts else (report.get("samples") or [])[:2],
        "curves": [chart for chart in curves(lines, name) if chart["title"] in wanted][:2],
    }


def main(workdirs: list[str]) -> None:
    if len(workdirs) > 1:
        print(write_stages(workdirs))
        return
    path = Path(workdirs[0] if workdirs else ".") / "report.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: name a workdir with a report, or several runs for a pipeline page")
    write(path.parent, read_object(path, MAKE))
    print(path.with_suffix(".html"))


if __name__ == "__main__":
    from lm import cli

    cli.guard(lambda: main(sys.argv[1:]))
