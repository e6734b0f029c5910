"""Where a report comes from: when, and by which code, command and config file it was made.

This module loads nothing slow, because curate.py and its worker processes import it.
"""

import importlib.metadata
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lm.saving import plain
from lm.workdir import kind_of

ROOT = Path(__file__).resolve().parents[2]
GIT_SECONDS = 5
STOPPED = "steps before the last start"
MASK = "***"
SECRETS = ("keys", "key", "apikey", "token", "password", "passwd", "secret", "credentials", "credential")
NO_SECRETS = {"text_key"}  # flags that end like a secret
OPTION = re.compile(rf"([\w.-]*(?:{'|'.join(SECRETS)}))(=|: +)([^=&,;|\s\"'{{}}()]+)")  # inside an argument
ACCOUNT = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")  # USER:PASSWORD@ of an address


def signed(config: Mapping[str, Any], stages: Mapping[str, float], *, devices: bool = True) -> dict[str, Any]:
    """Return `machine` and `provenance` for the report of a run that ends in this process. devices: see `machine`."""
    from lm.reports.page import machine

    return {"machine": machine(devices), "provenance": provenance(config, stages)}


def traced(workdir: Path) -> dict[str, Any] | None:
    """Return {"steps": the traces of a run by their steps, "command": that opens them}, or None if it has none."""
    steps = sorted(path.name.removeprefix("steps-") for path in workdir.glob("profile/plugins/profile/steps-*"))
    return {"steps": steps, "command": shlex.join(["xprof", f"--logdir={workdir / 'profile'}"])} if steps else None


def with_stopped(stages: Mapping[str, float], lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the stages, with the seconds of steps of earlier processes of the run, which stopped before they could report.

    The seconds of all steps come from the tokens and tokens_per_second of metrics.jsonl's training lines, ascending by step.
    """
    seconds, before = 0.0, 0
    for line in lines:
        tokens, rate = line.get("tokens"), line.get("tokens_per_second")
        if isinstance(tokens, int | float) and isinstance(rate, int | float) and rate > 0:
            seconds, before = seconds + max(0, tokens - before) / rate, tokens
    stopped = seconds - stages.get("training", 0.0)
    return dict(stages) | ({STOPPED: stopped} if stopped > 1 else {})


def provenance(
    config: Mapping[str, Any],
    stages: Mapping[str, float],
    argv: Sequence[str] | None = None,
    at: datetime | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """Return where a report comes from.

    written: date and time in UTC, as ISO 8601. code: see `code_version`. command: see `command_line`. config_file: the value
    of --config. changed: see `changed_keys`. seconds: sum of the stages, which are the seconds of each stage.

    Args: argv, at, code: None: those of this process.
    """
    argv = sys.argv if argv is None else argv
    return {
        "written": (at or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "code": CODE if code is None else code,
        "command": command_line(argv),
        "config_file": config_file(argv),
        "changed": changed_keys(config),
        "seconds": sum(stages.values()),
    }


def code_version(root: Path = ROOT) -> str | None:
    """Return the short hash of the git commit in `root`, with "+ changes" if tracked files differ from it.

    Without git, or if `root` is not the top of a clone, return "lmcraft VERSION"; None if no package is installed.
    """
    if (root / ".git").exists():  # otherwise git would find the repository of a project that holds this package
        command = ["git", "-C", str(root), "describe", "--always", "--dirty= + changes", "--exclude=*"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's repository
        environment["GIT_OPTIONAL_LOCKS"] = "0"
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=GIT_SECONDS)
        except (OSError, subprocess.SubprocessError):
            done = None
        if done is not None and done.returncode == 0:
            return done.stdout.strip()
    try:
        return f"lmcraft {importlib.metadata.version('lmcraft')}"
    except importlib.metadata.PackageNotFoundError:
        return None


# Read at the start, because files may change while a run lasts. Worker processes write no report.
CODE = code_version() if multiprocessing.parent_process() is None else None


def command_line(argv: Sequence[str], module: str | None = None) -> str:
    """Return the command as a shell takes it: "python …", with *** for secrets.

    module: the name after `python -m`; None: that of this process, if it was started so.
    """
    if module is None and argv is sys.argv and (spec := getattr(sys.modules["__main__"], "__spec__", None)) is not None:
        module = spec.name.removesuffix(".__main__")
    start = ["python", "-m", module] if module else ["python", *argv[:1]]
    return shlex.join([*start, *_masked(argv[1:])])


def _masked(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with *** for the values of flags and options that are named like a secret."""
    found, hidden = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if hidden and not argument.startswith("-"):
            argument = MASK
        elif name.startswith("-") and equals:
            argument = f"{name}={MASK if _is_secret(name) else _inside(value)}"
        hidden = name.startswith("-") and not equals and _is_secret(name)
        found.append(argument if name.startswith("-") else _inside(argument))
    return found


def _inside(value: str) -> str:
    hidden = OPTION.sub(lambda match: match[1] + match[2] + MASK if _is_secret(match[1]) else match[0], value)
    return ACCOUNT.sub(rf"\g<1>{MASK}@", hidden)


def _is_secret(name: str) -> bool:
    """Return whether a flag names a secret by its last word, as api_key does, and max_new_tokens and key_file do not.

    >>> [_is_secret(name) for name in ("--config.api_key", "--hf-token", "--config.tokenizer", "--config.data.text_key")]
    [True, True, False, False]
    """
    last = name.lower().rpartition(".")[2].lstrip("-")
    words = re.split(r"[^a-z0-9]+", last)
    return last not in NO_SECRETS and (words[-1] in SECRETS or bool({"password", "secret"} & set(words)))


def config_file(argv: Sequence[str]) -> str | None:
    """Return the value of --config, or None.

    >>> config_file(["train.py", "--config=configs/train/tiny.py", "--config.steps=9"])
    'configs/train/tiny.py'
    """
    for argument, following in zip(argv, [*argv[1:], None]):
        if argument.startswith("--config="):
            return argument.partition("=")[2]
        if argument == "--config":
            return following
    return None


def changed_keys(config: Mapping[str, Any]) -> list[str] | None:
    """Return the dotted keys of a run's config whose values differ from configs/VERB/default.py.

    None if that file is not there, as in an installed package.
    """
    name = "safety" if config.get("method") == "safety" else "default"  # the other methods have no keys of their own
    file = ROOT / "configs" / kind_of(config) / f"{name}.py"
    if not file.is_file():
        return None
    try:
        usual = runpy.run_path(str(file))["get_config"]()
    except Exception:  # whoever edits the file while a run lasts must not break its report
        return None
    usual, own = _flat(usual.to_dict()), _flat(config)
    return [key for key, value in own.items() if key not in usual or usual[key] != value]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    from lm.reports.page import flatten

    return flatten(plain(config))
