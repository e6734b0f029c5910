"""Where a run comes from: the code, the command and the machine of this process.

This module loads nothing slow, because curate.py and its worker processes import it.
"""

import contextlib
import importlib.metadata
import multiprocessing
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
GIT_SECONDS = 5
CHANGES = " + changes"  # after a commit: tracked files differed from it
MASK = "***"
SECRETS = ("keys", "key", "apikey", "token", "password", "passwd", "secret", "credentials", "credential")
NO_SECRETS = {"text_key"}  # flags that end like a secret
OPTION = re.compile(rf"([\w.-]*(?:{'|'.join(SECRETS)}))(=|: +)([^=&,;|\s\"'{{}}()]+)")  # inside an argument
ACCOUNT = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")  # USER:PASSWORD@ of an address


def git(arguments: Sequence[str], root: Path = ROOT) -> str | None:
    """Return what git prints on the clone in `root`; None without git, if it fails, or if `root` is not the top of a clone."""
    if not (root / ".git").exists():  # otherwise git would find the repository of a project that holds this package
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's repository
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def code_version(root: Path = ROOT) -> str | None:
    """Return the short hash of the git commit in `root`, with "+ changes" if tracked files differ from it.

    Without git, or if `root` is not the top of a clone, return "lmcraft VERSION"; None if no package is installed.
    """
    version = git(["describe", "--always", f"--dirty={CHANGES}", "--exclude=*"], root)
    if version is not None:
        return version.strip()
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
            argument = f"{name}={MASK if _is_secret(name) else without_secrets(value)}"
        hidden = name.startswith("-") and not equals and _is_secret(name)
        found.append(argument if name.startswith("-") else without_secrets(argument))
    return found


def without_secrets(value: str) -> str:
    """Return a text with *** for the values of options in it that are named like a secret, and for passwords of addresses."""
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


def machine(devices: bool = True) -> dict:
    """Return the machine's description: cpu, flags (its matmul extensions), cores (usable by this process), memory_gib, system,
    python, versions of the array libraries and, if JAX is installed, its devices {kind: count}.

    devices: False leaves them out, and JAX is not started.
    """
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        cpuinfo = ""
    fields = dict(re.findall(r"^([^\t:]+?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    flags = fields.get("flags", fields.get("Features", "")).split()
    answer = {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile") if flag in flags],
        "cores": _cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    for package in ("jax", "jaxlib", "flax", "optax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            answer[package] = importlib.metadata.version(package)
    if not devices:
        return answer
    try:
        import jax  # here, because reports can be redrawn without JAX, and importing it takes a second
    except ImportError:
        return answer
    kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    return answer | {"devices": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}}


def _cores() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
