"""`train.py --plan=[auto:]TOPOLOGY`: print a plan and write plan.json."""

import json
import os
from pathlib import Path

import ml_collections

from lm.cli import config_files
from lm.errors import UserError
from lm.files import saving

FILE = "plan.json"
# The TPU compiler runs in this process, on the CPU, and must not look for a TPU machine around it.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any that it knows; without one it complains
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def run(config: ml_collections.ConfigDict, topology: str, tries: int, workdir: Path | None) -> None:
    """Plan a config. Prints a table and writes plan.json to the workdir, or to this folder without one.

    Raises: UserError for a topology that does not exist, a config that does not fit a mesh, or a missing TPU compiler.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from lm.train import dial
    from lm.train.plan.plan import plan
    from lm.train.plan.search import search
    from lm.train.plan.table import table
    from lm.train.start import adopt

    if tries < 1:
        raise UserError(f"--plan_tries={tries} must be at least 1")
    adopt(config, None)
    dial.horizon(config, config_files.given_keys())
    if topology.startswith("auto:"):
        found, tried = search(config, topology.removeprefix("auto:"), tries, lambda line: print(line, flush=True))
        found["tried"] = tried
        print()
    else:
        found = plan(config, topology)
    print(table(found))
    if "keys" in found:
        print("\nUse it with " + " ".join(f"--config.{key}={value}" for key, value in found["keys"].items()))
    path = (workdir or Path()) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    saving.write(path, json.dumps(found, indent=1) + "\n")
    print(f"\nwritten to {path}")
