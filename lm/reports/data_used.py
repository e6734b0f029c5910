"""The data of a run in short: which sources it read, how much of them, how many epochs, and what was cut or dropped."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lm.reports.page import count, number

SOURCE = re.compile(r"([a-z0-9_]+)=(.+)")  # NAME=FILES in data.input
INSTALLATION = "this Python installation"
DROPPED = {"exact_duplicates": "exact duplicates", "near_copies": "near copies of documents that are held out"}
KINDS = {
    "conversation": "conversations",
    "pair": "pairs",
    "labelled": "labelled answers",
    "steps": "answers with labelled steps",
    "task": "prompts",
}


def text_sources(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each source of a training run; unknown values are None.

    source, files (of data.input), documents, bytes, tokens (in rows), read (tokens that the run trained on), epochs.
    """
    sources = (report.get("data") or {}).get("sources") or {}
    read = (report.get("mixture") or {}).get("sources") or {}
    files = files_of((report.get("config") or {}).get("data"), list(sources))
    return [
        {
            "source": name,
            "files": files.get(name),
            "documents": counts.get("documents"),
            "bytes": counts.get("bytes"),
            "tokens": counts.get("tokens_packed"),
            "read": read.get(name, {}).get("tokens"),
            "epochs": read.get(name, {}).get("epochs"),
        }
        for name, counts in sources.items()
    ]


def files_of(data: Mapping[str, Any] | None, names: list[str]) -> dict[str, str]:
    """Return the files of each source by its name, from the config's section `data`; {} if it is unknown.

    >>> files_of({"input": "web=a/*.gz,b.txt,web=c"}, ["web", "b"])
    {'web': 'a/*.gz, c', 'b': 'b.txt'}
    >>> files_of({"input": "corpus"}, ["web", "books"])
    {'web': 'corpus', 'books': 'corpus'}
    """
    if not isinstance(data, Mapping) or "input" not in data:
        return {}
    if not data["input"]:
        return dict.fromkeys(names, INSTALLATION)
    named: dict[str, list[str]] = {}
    rest = []
    for part in str(data["input"]).split(","):
        match = SOURCE.fullmatch(part.strip())
        if match and match[1] in names:
            named.setdefault(match[1], []).append(match[2])
        else:
            rest.append(part.strip())
    return {name: ", ".join(named.get(name, rest or [str(data["input"])])) for name in names}


def text_notes(report: Mapping[str, Any]) -> list[str]:
    """Return sentences on what was dropped, held out and cut from the text of a training run."""
    sources = ((report.get("data") or {}).get("sources") or {}).values()
    if not sources:
        return []
    total = Counter()
    for counts in sources:
        total.update({key: value for key, value in counts.items() if isinstance(value, int)})
    dropped = [f"{number(total[key])} {name}" for key, name in DROPPED.items() if total[key]]
    notes = [f"Dropped: {', '.join(dropped)}." if dropped else "No document was dropped as a duplicate."]
    if total["valid_documents"]:
        notes.append(
            f"Held out for validation: {count(total['valid_documents'], 'document')} ({number(total['valid_bytes'])} bytes)."
        )
    limit = ((report.get("config") or {}).get("data") or {}).get("max_bytes")
    if limit:
        notes.append(f"Each source is cut at data.max_bytes = {number(limit)} bytes.")
    return notes


def epochs_text(rows: list[dict[str, Any]]) -> str | None:
    """Return the epochs of the sources as "2.92", or "0.5 – 4.56" if they differ; None if they are unknown."""
    epochs = [row["epochs"] for row in rows if isinstance(row["epochs"], int | float)]
    if not epochs:
        return None
    low, high = f"{min(epochs):.3g}", f"{max(epochs):.3g}"
    return low if low == high else f"{low} – {high}"


def example_notes(report: Mapping[str, Any]) -> list[str]:
    """Return sentences on the examples of an alignment run: how many, from where, and what was dropped or cut."""
    data = report.get("data") or {}
    used = data if "train" in data else data.get("tasks") or {}
    train, valid = used.get("train") or {}, used.get("valid") or {}
    if not train.get("examples"):
        return []
    kind = KINDS.get(used.get("kind"), "examples")
    trained = f", {number(train['trained_tokens'])} of them in the loss" if train.get("trained_tokens") else ""
    tokens = f" ({number(train['tokens'])} tokens{trained})" if train.get("tokens") else ""
    held_out = f" and {number(valid['examples'])} held out" if valid.get("examples") else ""
    source = ((report.get("config") or {}).get("data") or {}).get("input")
    notes = [f"{number(train['examples'])} {kind} to train on{tokens}{held_out}{f', from {source}' if source else ''}."]
    dropped: Counter = Counter()
    for part in (data, data.get("tasks") or {}):
        for split in ("read", "train", "valid"):
            reasons = (part.get(split) or {}).get("dropped")
            dropped.update(reasons if isinstance(reasons, Mapping) else {})
    reasons = ", ".join(f"{number(count)} ({reason})" for reason, count in dropped.most_common() if count)
    notes.append(f"Dropped: {reasons}." if reasons else "No example was dropped.")
    if cut := (train.get("truncated") or 0) + (valid.get("truncated") or 0):
        notes.append(f"Cut at sequence_length: {number(cut)}.")
    return notes


def alignment_epochs(report: Mapping[str, Any]) -> float | None:
    """Return how often an alignment run went through its training examples: steps × examples of a step / examples.

    Packed rows count as examples. A step of reinforcement learning has batch_size / rl.group_size prompts. None if a count is
    unknown.
    """
    data, config = report.get("data") or {}, report.get("config") or {}
    steps, rows = (report.get("training") or {}).get("steps"), config.get("batch_size")
    if "train" in data:
        count = data["train"].get("rows")
    else:
        count = ((data.get("tasks") or {}).get("train") or {}).get("examples")
        if config.get("method") == "rl" and rows:
            rows = rows // ((config.get("rl") or {}).get("group_size") or 1)
    return steps * rows / count if steps and rows and count else None
