"""Export failed items as training files for align.py.

    sft.jsonl         {"messages"}: the prompt and the right answer             configs/align/sft.py
    preference.jsonl  {"prompt", "chosen", "rejected"}: the right answer and the model's wrong one      dpo.py
    prompts.jsonl     {"prompt", "answer", …}: prompts with verifiable answers  grpo.py
    redteam.jsonl     {"prompt", "kind": "harmful", "hazard", "family", "messages"}: attacks that succeeded   safety.py
    benign.jsonl      the same of kind "benign": harmless requests that were refused                          safety.py
    manifest.json     row counts by task and file, and a warning about test sets

Empty files are not written. Each row names its task and item, because most benchmarks are test sets: a score on a benchmark is
void once the model has trained on it.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.evals.stats.measures import is_number
from lm.files import saving

FILES = {  # file: (contents, command that trains on it)
    "sft.jsonl": ("conversations", "align.py --config=configs/align/sft.py --config.data.input={path}"),
    "preference.jsonl": ("preference pairs", "align.py --config=configs/align/dpo.py --config.data.input={path}"),
    "prompts.jsonl": ("tasks", "align.py --config=configs/align/grpo.py --config.rewards=answer=1 --config.data.input={path}"),
    "redteam.jsonl": ("successful attacks", "align.py --config=configs/align/safety.py --config.safety.failures={path}"),
    "benign.jsonl": (
        "harmless requests that were refused",
        "align.py --config=configs/align/safety.py --config.safety.prompts=YOUR_HARMFUL_REQUESTS,{path}",
    ),
}
WARNING = (
    "Most of these items are from test sets. After training on them, a model's scores on the tasks below mean nothing. "
    "Train on them to repair a model, and measure it on other tasks."
)
ANSWERED = ("generation", "response", "completion")  # keys that may hold the model's answer
VERIFIERS = ("instruction_id_list", "kwargs", "contains", "test", "entry_point")  # columns that verifiers read
WANTED = ("hazard", "family", "answer", "completion", "harmful_if")  # columns of a red-team sample that safety_prompts reads


def export(samples: Iterable[Mapping[str, Any]], folder: str | os.PathLike) -> dict[str, Any]:
    """Write the failed samples (lm/evals/task.py) into `folder`. Each file is written atomically, the manifest last.

    Returns: the manifest: {"warning", "files": {name: {"rows", "what", "use"}}, "tasks": {task: {"failed", "split", file:
    rows}}, "left_out": {reason: failed samples that gave no row}}.
    Raises: UserError if the folder holds files that no export wrote.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"export_failures={folder}: is a file; name a folder")
    names = {re.sub(r"^\.?(.+?)(\.\d+)?\.new$", r"\1", path.name) for path in folder.iterdir()} if folder.exists() else set()
    strangers = sorted(names - {*FILES, "manifest.json", "README.md"})
    if strangers:
        raise UserError(f"export_failures={folder}: holds {strangers[0]}, which is not part of an export; name an empty folder")
    rows: dict[str, list[dict]] = {name: [] for name in FILES}
    tasks: dict[str, dict[str, Any]] = {}
    left_out: Counter = Counter()
    for sample in samples:
        if not sample.get("failed"):
            continue
        split = str(sample.get("split") or "test")
        counts = tasks.setdefault(str(sample.get("task")), {"split": split, "failed": 0})
        counts["failed"] += 1
        made, reason = lessons(sample)
        if not all(map(_encodes, made.values())):
            made, reason = {}, "half a surrogate pair, which UTF-8 cannot encode"
        if not made:
            left_out[reason] += 1
        note = f"an item of {sample.get('task')}, split {split}: do not measure a model on it after training on it"
        origin = {"task": sample.get("task"), "doc_id": sample.get("doc_id"), "split": split, "note": note}
        for name, row in made.items():
            rows[name].append(row | origin)
            counts[name] = counts.get(name, 0) + 1
    manifest = {
        "warning": WARNING,
        "files": {
            name: {"rows": len(own), "what": FILES[name][0], "use": FILES[name][1].format(path=folder / name)}
            for name, own in rows.items()
            if own
        },
        "tasks": tasks,
        "left_out": dict(left_out),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("manifest.json", "README.md", *(name for name, own in rows.items() if not own)):
        (folder / name).unlink(missing_ok=True)
    for name, own in rows.items():
        if own:
            saving.write_lines(folder / name, own)
    saving.write(folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def lessons(sample: Mapping) -> tuple[dict[str, dict], str]:
    """Return the rows of a failed sample by file, and the reason if there are none."""
    kind = sample.get("kind")
    if kind == "harmful" or (kind == "benign" and (sample.get("metrics") or {}).get("over_refusal") == 1.0):
        request = _text(sample.get("request"))
        if not request:
            return {}, "no request"
        return {"redteam.jsonl" if kind == "harmful" else "benign.jsonl": _attack(sample, kind, request)}, ""
    prompt, right = _messages(sample), _text(sample.get("reference"))
    if not prompt:
        return {}, "no prompt"
    made = {}
    if right:
        chosen = {"role": "assistant", "content": right}
        made["sft.jsonl"] = {"messages": [*prompt, chosen]}
        if wrong := wrong_answer(sample, right):
            rejected = {"role": "assistant", "content": wrong}
            made["preference.jsonl"] = {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}
    target = sample.get("target")
    target = target[0] if isinstance(target, list) and target else target
    answer = _text(sample.get("answer")) if kind else _text(target) or right
    columns = _given(sample, *VERIFIERS)
    if answer or columns:
        made["prompts.jsonl"] = {"prompt": prompt, "answer": answer or None} | columns
    return made, "" if made else "no right answer known"


def _attack(sample: Mapping, kind: str, request: str) -> dict[str, Any]:
    """Return a row for redteam/prompts.py, without the evaluation's system message.

    If the model's own answers are part of an attack, the sample's `attack` holds the attack without them."""
    row = {"prompt": request, "kind": kind, **_given(sample, *WANTED)}
    messages = [m for m in sample.get("attack") or sample.get("messages") or () if m.get("role") != "system"]
    if messages and messages != [{"role": "user", "content": request}]:
        row["messages"] = [{"role": m["role"], "content": m.get("content")} for m in messages]
    return row


def wrong_answer(sample: Mapping, right: str) -> str:
    """Return the model's answer or its likeliest wrong choice; "" if there is none or it is the right answer."""
    for key in ANSWERED:
        if text := _text(sample.get(key)):
            return text if text != right else ""
    choices, scores = sample.get("choices"), sample.get("loglikelihoods")
    if not choices or not scores or len(choices) != len(scores):
        return ""
    targets = sample.get("target")
    targets = targets if isinstance(targets, list) else [targets]
    wrong = [
        (score, _text(choice))
        for n, (choice, score) in enumerate(zip(choices, scores))
        if n not in targets and is_number(score) and _text(choice) not in ("", right)
    ]
    return max(wrong, key=lambda pair: pair[0])[1] if wrong else ""


def _messages(sample: Mapping) -> list[dict]:
    """Return the conversation up to the answer; [] if each choice has its own prompt."""
    prompt = sample.get("messages") or sample.get("prompt")
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if prompt.strip() else []
    prompt = [m for m in prompt or () if isinstance(m, Mapping)]
    return [{"role": m["role"], "content": m.get("content") or ""} for m in prompt]


def _given(sample: Mapping, *keys: str) -> dict[str, Any]:
    return {key: sample[key] for key in keys if sample.get(key) not in (None, "", [], ())}


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _encodes(row: dict) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
