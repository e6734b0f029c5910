"""The report of an alignment run: one JSON file to compute with, one self-contained HTML page to read; and a page for a
pipeline of runs.

    python -m lm.reports.align WORKDIR                  # draws the page of a run anew, from what lies in its workdir
    python -m lm.reports.align PRETRAINED SFT GRPO      # writes pipeline.html into the last one

Any method's run will do: curves are drawn of whatever its metrics.jsonl holds. See lm/reports/page.py for how pages are made.
"""

import difflib
import fnmatch
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from lm.align.alarms import Alarm, alarms, is_better, is_validation, words
from lm.errors import UserError
from lm.reports.charts import INK, SERIES, VALID, dots, from_zero, svg, thin, trend
from lm.reports.page import machine, number, plain, render, replace, replace_json
from lm.train.history import column, json_lines
from lm.workdir import read_object

__all__ = ["Alarm", "alarms", "load_lines", "load_samples", "write", "write_stages", "html"]


class Group(NamedTuple):
    """Curves that share a chart: those of the metrics that match a pattern."""

    title: str
    note: str
    patterns: tuple[str, ...]


GROUPS = (
    Group("Loss", "of the method", ("loss",)),
    Group("Reward", "mean over completions; the band is one standard deviation of them", ("reward",)),
    Group("Each reward", "mean of each function before its weight", ("rewards/*/mean",)),
    Group("Rewards of pairs", "chosen and rejected answers", ("rewards/chosen", "rewards/rejected")),
    Group("Margin", "reward of the chosen answer less that of the rejected one", ("rewards/margins",)),
    Group("Preference accuracy", "pairs whose chosen answer has the greater reward", ("rewards/accuracies",)),
    Group("Distance from the reference", "Kullback-Leibler divergence, nats", ("kl", "objective/kl", "policy/approxkl_avg")),
    Group("Entropy", "of the policy, nats a token", ("entropy", "objective/entropy")),
    Group("Clipped ratios", "share of the tokens whose ratio the clip holds", ("clip_ratio/*_mean", "policy/clipfrac_avg")),
    Group("Completion length", "tokens", ("completions/*length",)),
    Group("Cut and idle", "completions that the limit cut, groups of equal rewards", ("*/clipped_ratio", "frac_reward_*")),
    Group("Log-probabilities", "of the answers under the policy, nats", ("logps/*",)),
    Group("Tools", "calls and failures a completion", ("tools/*",)),
    Group("Sampler and trainer", "difference of their log-probabilities, and the weights that mend it", ("sampling/*",)),
    Group("Learning rate", "as applied", ("learning_rate",)),
    Group("Gradient norm", "global, before clipping", ("grad_norm",)),
    Group("Throughput", "trained tokens per second", ("tokens_per_second",)),
)
OWN = ("reward", "rewards/accuracies", "accuracy", "rewards/margins", "agreement")
NEUTRAL = {"kl", "length", "entropy", "logps", "chosen", "rejected", "min", "max", "ratio"}
# Not drawn: what the axis or a tile says, or what has a chart of its own.
LEFT_OUT = ("step", "tokens", "skipped", "mfu", "reward_std", "seconds/*", "rewards/*/std", "clip_ratio/*_m[ai][xn]")
MAKE = "run the line of the run again, which makes it anew"
SCHEDULE = "*learning_rate*"  # what follows a formula is not smoothed
SHOWN_PROMPTS, SHOWN_STEPS, SHOWN_CHARACTERS = 8, 5, 2000


def write(workdir: str | os.PathLike, report: dict) -> None:
    """Writes `report.json` and `report.html` into `workdir`, each atomically, from its metrics.jsonl and samples.jsonl too.

    Args:
        workdir: an existing directory.
        report: any of these keys. title, method, finished (bool), config (nested), machine (lm.reports.page.machine),
            parameters (count), trained (count), before and after ({measure: value}, see `own_measure`),
            measures {measure: what it is}, data ({split: {label: count or {reason: count}}}, and the same of `tasks`),
            notes (list of str), training {steps, tokens, skipped}, stages {name: seconds}.

    What the page says beyond that is put into the JSON: alarms (list of {step, kind, text}), rollout_share, and best_of, the
    statistics of a run that answered each prompt several times.
    """
    workdir, report = Path(workdir), plain(report)
    lines, samples = load_lines(workdir / "metrics.jsonl"), load_samples(workdir / "samples.jsonl")
    report["alarms"] = [alarm._asdict() for alarm in alarms(lines, samples)]
    report["rollout_share"] = rollout_share(lines)
    if (statistics := workdir / "best_of" / "statistics.json").is_file():
        report["best_of"] = read_object(statistics, MAKE)
    replace_json(workdir / "report.json", report)
    replace(workdir / "report.html", html(report, lines, samples))


def write_run(workdir: Path, report: dict) -> None:
    """Writes the report of a run that ended on this machine (see `write`)."""
    write(workdir, report | {"machine": machine()})


def load_lines(path: str | os.PathLike) -> list[dict]:
    """The lines of a metrics.jsonl by step, validation after training; of those of one kind and step the last counts."""
    rows = json_lines(path) if Path(path).exists() else []
    kept = {(row["step"], is_validation(row)): row for row in rows if isinstance(row.get("step"), (int, float))}
    return [kept[key] for key in sorted(kept)]


def load_samples(path: str | os.PathLike) -> list[dict]:
    """The lines of a samples.jsonl by step; of those of one step and prompt the last counts."""
    rows = json_lines(path) if Path(path).exists() else []
    kept = {(row["step"], _same(row)): row for row in rows if isinstance(row.get("step"), (int, float))}
    return sorted(kept.values(), key=lambda row: row["step"])


def _same(sample: dict) -> str:
    return json.dumps(sample.get("prompt"), sort_keys=True)


def html(report: dict, lines: Sequence[dict] = (), samples: Sequence[dict] = ()) -> str:
    """The page as a string, from plain values (`plain` of lm/reports/page.py) and what `load_lines` and `load_samples` give."""
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
    """One sentence about the method's own measure."""
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
    """What a method is after, of all that was measured: the rewards of generated answers, if there are any, then how often the
    better answer is preferred, then whatever stands first."""
    known = {name for name, value in after.items() if value is not None}
    return next((name for name in (*OWN, *after) if name in known), None)


def judged(measure: str, before: float, after: float) -> str:
    """The class of a change: good, bad, or neither, as where it is a distance, a size or a half of a comparison."""
    if before == after or words(measure) & NEUTRAL:
        return ""
    return "good" if is_better(measure, before, after) else "bad"


def rollout_share(lines: Iterable[dict]) -> float | None:
    """The share of the logged seconds in which the policy wrote; None where nothing was timed."""
    seconds = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith("seconds/") and isinstance(value, (int, float)):
                seconds[key] = seconds.get(key, 0.0) + value
    return seconds.get("seconds/rollout", 0.0) / sum(seconds.values()) if sum(seconds.values()) else None


def _columns(data: dict) -> dict[str, dict]:
    """A table's columns: a split each, also of the tasks; what is counted by reason has a row a reason."""
    found = {}
    for split, counts in data.items():
        if split == "tasks":
            found |= {f"tasks, {name}": column for name, column in _columns(counts).items()}
        elif isinstance(counts, dict):
            by_reason = {f"{k}, {why}": n for k, x in counts.items() if isinstance(x, dict) for why, n in x.items()}
            found[split] = {k: n for k, n in counts.items() if not isinstance(n, dict)} | by_reason
    return {split: counts for split, counts in found.items() if any(counts.values())}


def curves(lines: Sequence[dict], name: str = "chart") -> list[dict]:
    """The charts of every metric in the lines: [{title, note, svg}]. Held-out ones stand beside their training twins."""
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
        for begin in range(0, len(found), len(SERIES)):  # more would not be told apart
            part = found[begin : begin + len(SERIES)]
            picture = svg(f"{name}{len(charts)}", lambda ax, part=part: _draw(ax, part, train, valid))
            title = group.title or (part[0].replace("_", " ") if len(part) == 1 else part[0].rpartition("/")[0])
            note = group.note or ("as logged" if any(len(column(train, key)[0]) for key in part) else "held out")
            charts.append({"title": title, "note": note, "svg": picture})
    if picture := _seconds(train, f"{name}{len(charts)}"):
        charts.append({"title": "Where the time goes", "note": "share of a step's seconds", "svg": picture})
    return charts


def _twin(key: str, trained: Iterable[str]) -> str:
    """A validation's key, named after what training logs of the same: valid_rewards/answer is rewards/answer/mean there."""
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
    """The seconds of each step's parts, one on the other, as shares of all of them."""
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


def shown_samples(samples: Sequence[dict]) -> list[dict]:
    """What the page shows of each prompt: {"prompt": messages, "newest": sample, "earlier": [samples]}.

    A sample's `text` is its completion, `marked` the same with the words marked that the one shown before it did not have. Of
    many steps some are shown, evenly spread, the first and the newest among them.
    """
    prompts: dict[str, list[dict]] = {}
    for sample in samples:
        prompts.setdefault(_same(sample), []).append(sample)
    shown = []
    for found in list(prompts.values())[:SHOWN_PROMPTS]:
        picked = sorted({round(i) for i in np.linspace(0, len(found) - 1, min(len(found), SHOWN_STEPS))})
        entries, before = [], None
        for sample in (found[i] for i in picked):
            text = _cut(_said(sample))
            entries.append({**sample, "text": text, "marked": marked(before, text)})
            before = text
        shown.append({"prompt": _messages(found[-1].get("prompt")), "newest": entries[-1], "earlier": entries[:-1]})
    return shown


def marked(before: str | None, after: str) -> Markup:
    """`after`, escaped, with <ins> around the words that were not in `before`; plain if there is nothing before it."""
    if before is None:
        return escape(after)
    old, new = (re.findall(r"\s*\S+|\s+", text) for text in (before, after))
    pieces = []
    for kind, _, _, begin, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        text = escape("".join(new[begin:end]))
        pieces.append(text if kind == "equal" or not text else Markup("<ins>{}</ins>").format(text))
    return Markup("").join(pieces)


def _cut(text: str) -> str:
    more = len(text) - SHOWN_CHARACTERS
    return f"{text[:SHOWN_CHARACTERS]} … ({more:,} more characters)" if more > 0 else text


def _said(sample: dict) -> str:
    """The completion; where tools were called, every turn of it."""
    turns = [turn for turn in sample.get("messages") or () if isinstance(turn, dict)]
    if len(turns) < 2:
        return str(sample.get("completion") or "")
    said = []
    for turn in turns:
        calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls") or ()]
        said.append(f"[{turn.get('role', '')}] " + " → ".join(filter(None, [str(turn.get("content") or ""), *calls])))
    return "\n".join(said)


def _messages(prompt) -> list[dict]:
    """Of a prompt as messages or as a text: [{role, content}]."""
    messages = prompt if isinstance(prompt, list) else [{"role": "", "content": prompt}]
    messages = [message for message in messages if isinstance(message, dict)]
    return [{"role": m.get("role", ""), "content": _cut(str(m.get("content") or ""))} for m in messages]


def write_stages(workdirs: Sequence[str | os.PathLike], to: str | os.PathLike | None = None) -> Path:
    """Writes one page for runs that each start from the one before; returns its path.

    Each stage is shown by its own measure, before and after: the first one of its report. Of a pretraining run that is the bits
    per byte, before which stands the best n-gram.

    Args:
        workdirs: of the runs, in order, with the report.json of each.
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
    told = ("name", "workdir", "measure", "before", "after", "better", "seconds", "alarms")
    saved = {**report, "pipeline": [{key: stage[key] for key in told} for stage in stages]}
    worse = [stage["name"] for stage in stages if not stage["better"]]
    sentence = f"Not better by its own measure: {', '.join(worse)}." if worse else "Each stage is better by its own measure."
    replace_json(to / "pipeline.json", plain(saved))
    replace(to / "pipeline.html", render("pipeline.html.j2", plain(report), pipeline=stages, verdict=sentence, last_step=None))
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
        raise UserError(f"{path} is not there: name a workdir that has a report, or several runs for the page of a pipeline")
    write(path.parent, read_object(path, MAKE))
    print(path.with_suffix(".html"))


if __name__ == "__main__":
    from lm import cli

    cli.guard(lambda: main(sys.argv[1:]))
