"""Whether a checkpoint is one of a run.

The meta of each checkpoint holds the config of the run and "fingerprints", digests of contents: "tokenizer", "data" (the packed
rows) and "input" (the files that they were made of). A run does not resume from a checkpoint with other fingerprints, or with
other values of the IDENTITY keys (lm/runs/workdir.py): it is that of another run, or the data were replaced.
"""

import json
from pathlib import Path
from typing import Any

import ml_collections
import xxhash

from data.text.fingerprints import INPUT, TOKENIZER, json_object
from lm.bucket.places import with_paths
from lm.errors import UserError
from lm.runs.workdir import check_resumable

# Keys with paths. A path may change when a run moves, so its content is compared instead.
PATHS = ("init_from", "tokenizer", "chat_template", "checkpoint")
CURES = {
    "tokenizer": "put the run's own tokenizer back",
    "data": "put the data back as they were",
    "input": "put the input back as it was",
}


def data_of(workdir: Path) -> dict[str, Any]:
    """Return the fingerprints of a run's data: {"tokenizer", "prepared": {hash: digest of the input}}; None: not recorded.

    The hash is that of the settings of the data, which names their folder in WORKDIR/data.
    """
    tokenizer = workdir / TOKENIZER
    name = tokenizer.read_text(errors="replace").strip() if tokenizer.is_file() else ""
    return {
        "tokenizer": name or None,
        "prepared": {path.name: json_object(path / INPUT).get("digest") for path in _prepared(workdir)},
    }


def of(workdir: Path) -> dict[str, str]:
    """Return digests of the contents of the run's tokenizer and prepared data, as far as they are recorded."""
    data = data_of(workdir)
    rows = [json_object(path / "dataset.json").get("digests") for path in _prepared(workdir)]
    found = {"tokenizer": data["tokenizer"]} if data["tokenizer"] else {}
    for name, values in (("data", rows), ("input", data["prepared"].values())):
        if contents := [content for content in values if content]:
            found[name] = xxhash.xxh3_64_hexdigest(json.dumps(contents, sort_keys=True).encode())
    return found


def check(meta: dict[str, Any], config: ml_collections.ConfigDict, workdir: Path, step: int) -> None:
    """Raise UserError if a checkpoint is one of another run than that of `config` in `workdir`. meta: of the checkpoint.

    What the checkpoint does not record, as one of an older version, is not compared.
    """
    place = workdir / "checkpoints" / str(step)
    here, there = of(workdir), meta.get("fingerprints") or {}
    for name, cure in CURES.items():
        if name in here and name in there and here[name] != there[name]:
            raise UserError(
                f"{place} was trained with another {name} than that of the workdir (fingerprint {there[name]}, here "
                f"{here[name]}): {cure}, or use another --workdir"
            )
    check_resumable(_without_paths(with_paths(meta["config"])), _without_paths(config.to_dict()), place)


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in PATHS}
    for section, key in (("data", "input"), ("distill", "teacher")):
        if isinstance(kept.get(section), dict):
            kept[section] = {name: value for name, value in kept[section].items() if name != key}
    return kept


def _prepared(workdir: Path) -> list[Path]:
    return sorted(path for path in workdir.glob("data/*") if path.is_dir() and not path.name.startswith("."))
