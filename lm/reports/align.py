"""The report of an alignment run, as JSON and as one self-contained HTML page: of every method, with all logged metrics."""

import difflib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape

from lm.align.alarms import alarms
from lm.files.saving import plain
from lm.reports.alignment_verdict import alignment_verdict
from lm.reports.curves import curves
from lm.reports.data_used import alignment_epochs, example_notes
from lm.reports.metric_groups import judged, meaning, own_measure
from lm.reports.next_steps import next_steps
from lm.reports.page import render, save
from lm.reports.provenance import accounts, signed, with_stopped
from lm.runs.workdir import read_object
from lm.train.history import json_lines, load_metrics

SHOWN_PROMPTS, SHOWN_STEPS, SHOWN_CHARACTERS = 10, 5, 2000
METHODS = {  # the short name of a method: its title
    "sft": "Supervised fine-tuning",
    "dpo": "Preference tuning (DPO)",
    "orpo": "Preference tuning (ORPO)",
    "simpo": "Preference tuning (SimPO)",
    "ipo": "Preference tuning (IPO)",
    "kto": "Preference tuning (KTO)",
    "reward": "Reward model",
    "grpo": "Reinforcement learning (GRPO)",
    "rloo": "Reinforcement learning (RLOO)",
    "ppo": "Reinforcement learning (PPO)",
    "distill": "Distillation",
}


def write(workdir: str | os.PathLike, report: dict) -> None:
    """Write `report.json` and `report.html` into `workdir`, each atomically; reads its metrics.jsonl and samples.jsonl.

    Args:
        workdir: an existing directory.
        report: any of these keys. title, method, finished (bool), config (nested), machine (lm.runs.provenance.machine),
            provenance (lm/reports/provenance.py), parameters (count), trained (count), before and after ({measure: value},
            see `own_measure`),
            measures {measure: its description}, data ({split: {label: count or {reason: count}}}, and the same for `tasks`),
            notes (list of str), training {steps, tokens, skipped}, stages {name: seconds}.

    The JSON also gets alarms (list of {step, kind, text}), rollout_share, training.epochs, next (see `next_steps`), profile and
    goodput (see `accounts`), and best_of, the statistics of a run that answered each prompt several times.
    """
    workdir, report = Path(workdir), plain(report)
    train, valid = load_metrics(workdir / "metrics.jsonl")
    lines, samples = [*train, *valid], load_samples(workdir / "samples.jsonl")
    report["alarms"] = [alarm._asdict() for alarm in alarms(lines)]
    report["rollout_share"] = rollout_share(lines)
    if (statistics := workdir / "best_of" / "statistics.json").is_file():
        report["best_of"] = read_object(statistics, "run the command of the run again to recreate it")
    if (epochs := alignment_epochs(report)) is not None:
        report["training"]["epochs"] = epochs
    report["verdict"] = alignment_verdict(report, workdir)
    report["next"] = next_steps(report, workdir)
    report |= accounts(workdir)
    save(workdir, report, html(report, lines, samples))


def write_run(workdir: Path, report: dict) -> None:
    """Write the report of a run that ended on this machine (see `write`)."""
    method = report.get("method")
    stages = with_stopped(report["stages"], load_metrics(workdir / "metrics.jsonl")[0])
    about = {"title": f"{METHODS.get(method, method)}: {workdir.name}", "stages": stages}
    write(workdir, report | about | signed(report["config"], stages))


def load_samples(path: str | os.PathLike) -> list[dict]:
    """Return the lines of a samples.jsonl by step. Of equal step and prompt the last one is used."""
    rows = json_lines(path) if Path(path).exists() else []
    newest = {(row["step"], same_prompt(row)): row for row in rows if isinstance(row.get("step"), (int, float))}
    return sorted(newest.values(), key=lambda row: row["step"])


def html(report: dict, lines: Sequence[dict] = (), samples: Sequence[dict] = ()) -> str:
    """Return the page, from plain values (`plain` of lm/files/saving.py) and the lines of `load_metrics` and `load_samples`."""
    before, after = report.get("before") or {}, report.get("after") or {}
    own, method = own_measure(after), str(report.get("method") or "")
    names = dict.fromkeys((*filter(None, [own]), *after, *before))
    return render(
        "align.html.j2",
        report,
        verdict=report["verdict"] if "verdict" in report else alignment_verdict(report),
        measures=[(name, before.get(name), after.get(name)) for name in names],
        meanings={name: meaning(name, report.get("measures") or {}, method) for name in names},
        data_notes=example_notes(report),
        columns=_columns(report.get("data") or {}),
        curves=curves(lines, method=method),
        prompts=shown_samples(samples),
        last_step=max((line["step"] for line in lines), default=None),
        judged=judged,
    )


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
    columns = {}
    for split, counts in data.items():
        if split == "tasks":
            columns |= {f"tasks, {name}": column for name, column in _columns(counts).items()}
        elif isinstance(counts, dict):
            by_reason = {f"{k}, {why}": n for k, x in counts.items() if isinstance(x, dict) for why, n in x.items()}
            columns[split] = {k: n for k, n in counts.items() if not isinstance(n, dict)} | by_reason
    return {split: counts for split, counts in columns.items() if any(counts.values())}


# Samples by prompt, with marks on the words that changed.


def same_prompt(sample: dict) -> str:
    """Return a key that samples of one prompt share."""
    return json.dumps(sample.get("prompt"), sort_keys=True)


def shown_samples(samples: Sequence[dict]) -> list[dict]:
    """Return what the page shows for each prompt: {"prompt": messages, "newest": sample, "earlier": [samples]}.

    A sample's `text` is its completion; `marked` also marks the words that the sample before did not have. Of many steps a few
    are shown, evenly spread, including the first and the newest.
    """
    prompts: dict[str, list[dict]] = {}
    for sample in samples:
        prompts.setdefault(same_prompt(sample), []).append(sample)
    shown = []
    for of_prompt in list(prompts.values())[:SHOWN_PROMPTS]:
        picked = sorted({round(i) for i in np.linspace(0, len(of_prompt) - 1, min(len(of_prompt), SHOWN_STEPS))})
        entries, before = [], None
        for sample in (of_prompt[i] for i in picked):
            text = _cut(_completion(sample))
            entries.append({**sample, "text": text, "marked": marked(before, text)})
            before = text
        shown.append({"prompt": _messages(of_prompt[-1].get("prompt")), "newest": entries[-1], "earlier": entries[:-1]})
    return shown


def marked(before: str | None, after: str) -> Markup:
    """Return `after`, escaped, with <ins> around words that are not in `before`; no marks if `before` is None."""
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


def _completion(sample: dict) -> str:
    """Return the completion; with tool calls, all its turns."""
    turns = [turn for turn in sample.get("messages") or () if isinstance(turn, dict)]
    if len(turns) < 2:
        return str(sample.get("completion") or "")
    lines = []
    for turn in turns:
        calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls") or ()]
        lines.append(f"[{turn.get('role', '')}] " + " → ".join(filter(None, [str(turn.get("content") or ""), *calls])))
    return "\n".join(lines)


def _messages(prompt) -> list[dict]:
    """Return a prompt, given as messages or as a text, as [{role, content}]."""
    messages = prompt if isinstance(prompt, list) else [{"role": "", "content": prompt}]
    messages = [message for message in messages if isinstance(message, dict)]
    return [{"role": m.get("role", ""), "content": _cut(str(m.get("content") or ""))} for m in messages]
