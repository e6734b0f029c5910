"""Record each start of a run in starts.jsonl, and describe a run for trackers.

A line of starts.jsonl has `written` (UTC), `step` (of the checkpoint that the start resumes from), `code` (git commit or
version), `command` (secrets are ***), `machine` (lm.runs.provenance.machine: processor, memory, versions of packages, devices)
and `data` (see `data_of`).
"""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lm.files.saving import plain
from lm.runs import provenance as origin

STARTS = "starts.jsonl"


def record_start(workdir: Path, step: int) -> dict[str, Any]:
    """Append this start to starts.jsonl, and return its line."""
    start = {
        "written": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "step": step,
        "code": origin.CODE,
        "command": origin.command_line(sys.argv),
        "machine": origin.machine(),
        "data": data_of(workdir),
    }
    with open(workdir / STARTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(start) + "\n")
    return start


def data_of(workdir: Path) -> dict[str, Any]:
    """Return the fingerprints of a run's tokenizer and of its prepared data: {"tokenizer", "prepared": {hash: input digest}}.

    The hash is that of the folder in WORKDIR/data, of the settings of the data; the digest is of the content of the input
    files, and None if they were not recorded.
    """

    def text(path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def digest(folder: Path) -> str | None:
        try:
            return json.loads(text(folder / "input.json")).get("digest")
        except (ValueError, AttributeError):
            return None

    folders = sorted(path for path in workdir.glob("data/*") if path.is_dir() and not path.name.startswith("."))
    tokenizer = text(workdir / "tokenizer.fingerprint").strip() or None
    return {"tokenizer": tokenizer, "prepared": {folder.name: digest(folder) for folder in folders}}


def facts(config: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a run by dotted name: the keys of the config, then `run.code`, `run.command` and so on.

    Texts have *** in place of secrets.
    """
    return flat(plain(config)) | flat({"run": {name: start[name] for name in ("code", "command", "machine", "data")}})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names; other values are kept, and lists become text."""
    found = dict[str, Any]()
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            found[prefix + name] = origin.without_secrets(value)
        else:
            found[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return found
