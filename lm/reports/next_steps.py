"""What to do after a run: commands that the verbs print at their end and the reports show at their top.

Words in capitals, such as CHATS.jsonl, stand for what only the user can name.
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.bucket.places import as_urls
from lm.errors import runnable
from lm.runs.workdir import KEPT, kind_of

Steps = list[tuple[str, str]]  # what to do, and its command


def show(workdir: Path) -> None:
    """Print the result, the report's path and the next commands of a run that has a report.json; nothing without one."""
    try:
        report = json.loads((workdir / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    verdict = report.get("verdict") or []
    print(flush=True)
    for sentence in [verdict] if isinstance(verdict, str) else verdict:
        print(as_urls(f"result  {sentence}"), flush=True)
    print(as_urls(f"report  {workdir / 'report.html'}"), flush=True)
    for step in report.get("next") or ():
        print(as_urls(f"next: {step['what'][0].lower()}{step['what'][1:]}\n    {runnable(step['command'])}"), flush=True)


def next_steps(report: Mapping[str, Any], workdir: str | os.PathLike) -> list[dict[str, str]]:
    """Return at most three steps, the most useful first: [{"what" (to do), "command" (for a shell)}].

    report: the content of a report.json. Its keys config, finished, provenance, best_of and safety are read.
    """
    config, command = report.get("config") or {}, (report.get("provenance") or {}).get("command") or ""
    if report.get("finished") is False:
        steps = [("Resume it", command)] if command else []
    else:
        steps = _after(report, config, command, os.fspath(workdir))
    return [{"what": what, "command": text} for what, text in steps]


def _after(report: Mapping[str, Any], config: Mapping[str, Any], command: str, run: str) -> Steps:
    kind, method, data = kind_of(config), config.get("method"), (config.get("data") or {}).get("input")
    talk, serve = (
        _talk(run),
        ("Serve it behind OpenAI's API", _verb("serve", "serve/default", f"{run}-serve", {"checkpoint": run})),
    )
    quiz = {"checkpoint": run, "tasks": os.path.join(run, "quiz.yaml"), "chat_template": "own"}  # lm/align/quiz.py
    ask = [("Ask it the questions that were held out", _verb("evaluate", "evaluate/default", f"{run}-eval", quiz))]
    ask = ask if os.path.exists(quiz["tasks"]) else []
    if kind == "curate":
        rows = {"data.input": os.path.join(run, "dataset") if config.get("tokenizer") else run}
        if config.get("tokenizer") and (length := (config.get("dataset") or {}).get("sequence_length")):
            rows["sequence_length"] = length
        return [("Train on it", _verb("train", "train/small", f"{run}-train", rows))]
    if kind == "evaluate":
        return _after_evaluation(config, run, command)
    if kind == "train":
        prompt = next((sample["prompt"] for sample in report.get("samples") or ()), "") or "Once upon a time"
        text = shlex.join(["python", "-m", "lm.generate", f"--checkpoint={run}", f"--prompt={prompt}"])
        chats = {"init_from": run, "data.input": "CHATS.jsonl"}
        return [("Let it write", text), ("Teach it to chat", _verb("align", "align/sft", f"{run}-sft", chats))]
    if kind != "align":
        return []
    if method == "reward":
        keys = {"init_from": config.get("init_from") or "MODEL", "rewards": f"reward_model:{run}"}
        keys |= {"data.input": data or "PROMPTS.jsonl"}
        return [("Use it as the reward", _verb("align", "align/grpo", f"{run}-grpo", keys))]
    if method == "safety":
        return _after_safety(report, config, run) or [talk, *ask, serve]
    if statistics := report.get("best_of"):
        kept = {"init_from": "MODEL", "data.input": os.path.join(run, KEPT)}
        pairs = {"init_from": run, "data.input": os.path.join(run, os.path.dirname(KEPT), "pairs.jsonl")}
        again = [("Train it on pairs of its best and worst answers", _verb("align", "align/dpo", f"{run}-dpo", pairs))]
        return [
            talk,
            ("Fine-tune another model on the answers that were kept", _verb("align", "align/sft", f"{run}-sft", kept)),
            *(again if statistics.get("pairs", 1) else []),
        ]
    return [talk, *ask, serve]


def _talk(model: str) -> tuple[str, str]:
    return "Talk to it", shlex.join(["python", "-m", "lm.chat", f"--checkpoint={model}"])


def _after_safety(report: Mapping[str, Any], config: Mapping[str, Any], run: str) -> Steps:
    """Return the steps after a safety loop of which an attack still succeeds, or in which nothing failed; [] for others."""
    loop, start = report.get("safety") or {}, config.get("init_from") or "MODEL"
    is_trained = os.path.normpath(loop.get("model") or run) != os.path.normpath(start)
    model = run if is_trained else start  # without a failure the run has no checkpoint
    failures = {"init_from": model, "safety.failures": os.path.join(run, "failing.jsonl")}
    if prompts := (config.get("safety") or {}).get("prompts"):
        failures["safety.prompts"] = prompts
    again = ("Train on what still fails", _verb("align", "align/safety", f"{run}-again", failures))
    if loop.get("failing", 1):
        return [_talk(model), again]
    return [] if is_trained else [_talk(model)]


def _after_evaluation(config: Mapping[str, Any], run: str, command: str) -> Steps:
    names = ("checkpoint", "tasks", "data_dir", "num_fewshot", "limit", "chat_template")
    keys = {key: config[key] for key in names if config.get(key) not in (None, "")}
    command = command or _verb("evaluate", "evaluate/default", run, keys)
    parts = [part for part in shlex.split(command) if not part.startswith("--config.export_failures=")]
    other = {"--workdir=": "OTHER-eval", "--config.checkpoint=": "OTHER", "--config.compare=": run}
    same = [part for part in parts if not part.startswith(tuple(other))]
    return [
        ("Save what it got wrong, as data for align.py", shlex.join([*parts, f"--config.export_failures={run}-failures"])),
        ("Compare another model with it", shlex.join([*same, *(name + value for name, value in other.items())])),
    ]


def _verb(verb: str, config: str, workdir: str, keys: Mapping[str, Any]) -> str:
    flags = [f"--config=configs/{config}.py", f"--workdir={workdir}", *(f"--config.{key}={x}" for key, x in keys.items())]
    return shlex.join(["python", f"{verb}.py", *flags])
