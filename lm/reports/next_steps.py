"""What to do after a run: commands that the verbs print at their end and the reports show at their top.

Words in capitals, such as CHATS.jsonl, stand for what only the user can name.
"""

import os
import shlex
from collections.abc import Mapping
from typing import Any

from lm.runs.workdir import KEPT, kind_of

Steps = list[dict[str, str]]


def next_commands(report: Mapping[str, Any], workdir: str | os.PathLike) -> list[str]:
    """Return at most three commands for a shell, the most useful first; [] if the report is of no known kind of run."""
    return [step["command"] for step in next_steps(report, workdir)]


def next_steps(report: Mapping[str, Any], workdir: str | os.PathLike) -> Steps:
    """Return at most three steps, the most useful first: [{"what" (to do), "command" (for a shell)}].

    report: the content of a report.json. Its keys config, finished, provenance, best_of and sources are read.
    """
    run, config = os.fspath(workdir), report.get("config") or {}
    command = (report.get("provenance") or {}).get("command") or ""
    kind, method = kind_of(config), config.get("method")
    if report.get("finished") is False:
        return _steps(("Resume it", command)) if command else []
    if kind == "curate":
        return _after_curation(config, run)
    if kind == "evaluate":
        return _after_evaluation(config, run, command)
    if kind == "train":
        return _after_weights(config, run) if "sources" in report else _after_training(run)
    if kind != "align":
        return []
    if method == "reward":
        return _after_reward_model(config, run)
    if method == "safety":
        return _after_safety(config, run)
    return _after_best_of(run) if report.get("best_of") else _after_alignment(run)


def _after_curation(config: Mapping[str, Any], run: str) -> Steps:
    rows = {"data.input": run}
    if config.get("tokenizer"):
        length = (config.get("dataset") or {}).get("sequence_length")
        rows = {"data.input": os.path.join(run, "dataset")} | ({"sequence_length": length} if length else {})
    return _steps(("Train on it", _verb("train", "train/small", f"{run}-train", rows)))


def _after_weights(config: Mapping[str, Any], run: str) -> Steps:
    keys = {"data.input": (config.get("data") or {}).get("input") or "CORPUS/dataset"}
    keys |= {"data.weights": os.path.join(run, "weights.json")}
    return _steps(("Train with these weights", _verb("train", "train/small", f"{run}-train", keys)))


def _after_training(run: str) -> Steps:
    chats = {"init_from": run, "data.input": "CHATS.jsonl"}
    return _steps(
        ("Let it write", shlex.join(["python", "-m", "lm.generate", f"--checkpoint={run}", "--prompt=Once upon a time"])),
        ("Teach it to chat", _verb("align", "align/sft", f"{run}-sft", chats)),
        ("Measure it", _evaluation(run)),
    )


def _after_alignment(run: str) -> Steps:
    return _steps(
        ("Talk to it", _chat(run)),
        ("Measure it", _evaluation(run)),
        ("Serve it behind OpenAI's API", _verb("serve", "serve/default", f"{run}-serve", {"checkpoint": run})),
    )


def _after_safety(config: Mapping[str, Any], run: str) -> Steps:
    failures = {"init_from": run, "safety.failures": os.path.join(run, "failing.jsonl")}
    if prompts := (config.get("safety") or {}).get("prompts"):
        failures["safety.prompts"] = prompts
    again = _verb("align", "align/safety", f"{run}-again", failures)
    return _steps(("Talk to it", _chat(run)), ("Measure it", _evaluation(run)), ("Train on what still fails", again))


def _after_reward_model(config: Mapping[str, Any], run: str) -> Steps:
    keys = {"init_from": config.get("init_from") or "MODEL", "rewards": f"reward_model:{run}"}
    keys |= {"data.input": (config.get("data") or {}).get("input") or "PROMPTS.jsonl"}
    return _steps(("Use it as the reward", _verb("align", "align/grpo", f"{run}-grpo", keys)))


def _after_best_of(run: str) -> Steps:
    kept = {"init_from": "MODEL", "data.input": os.path.join(run, KEPT)}
    pairs = {"init_from": run, "data.input": os.path.join(run, os.path.dirname(KEPT), "pairs.jsonl")}
    return _steps(
        ("Talk to it", _chat(run)),
        ("Fine-tune another model on the answers that were kept", _verb("align", "align/sft", f"{run}-sft", kept)),
        ("Train it on pairs of its best and worst answers", _verb("align", "align/dpo", f"{run}-dpo", pairs)),
    )


def _after_evaluation(config: Mapping[str, Any], run: str, command: str) -> Steps:
    names = ("checkpoint", "tasks", "data_dir", "num_fewshot", "limit", "chat_template")
    asked = {key: config[key] for key in names if config.get(key) not in (None, "")}
    command = command or _verb("evaluate", "evaluate/default", run, asked)
    parts = [part for part in shlex.split(command) if not part.startswith("--config.export_failures=")]
    other = {"--workdir=": "OTHER-eval", "--config.checkpoint=": "OTHER", "--config.compare=": run}
    kept = [part for part in parts if not part.startswith(tuple(other))]
    return _steps(
        ("Save what it got wrong, as data for align.py", shlex.join([*parts, f"--config.export_failures={run}-failures"])),
        ("Compare another model with it", shlex.join([*kept, *(name + value for name, value in other.items())])),
    )


def _steps(*steps: tuple[str, str]) -> Steps:
    return [{"what": what, "command": command} for what, command in steps]


def _chat(run: str) -> str:
    return shlex.join(["python", "-m", "lm.chat", f"--checkpoint={run}"])


def _evaluation(run: str) -> str:
    keys = {"checkpoint": run, "tasks": "hellaswag,mmlu", "data_dir": "DIR"}
    return _verb("evaluate", "evaluate/default", f"{run}-eval", keys)


def _verb(verb: str, config: str, workdir: str, keys: Mapping[str, Any]) -> str:
    flags = [f"--config=configs/{config}.py", f"--workdir={workdir}", *(f"--config.{key}={x}" for key, x in keys.items())]
    return shlex.join(["python", f"{verb}.py", *flags])
