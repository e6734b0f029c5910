"""`train.py --plan=[auto:]TOPOLOGY`: print a plan and write plan.json."""

import json
import os
import textwrap
from pathlib import Path
from typing import Any

import ml_collections

from lm.cli import config_files
from lm.errors import UserError
from lm.files import saving

FILE = "plan.json"
GIB = 2**30
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
    use_compiler()
    from lm.train import dial
    from lm.train.plan.plan import plan
    from lm.train.plan.search import search
    from lm.train.start import adopt

    if tries < 1:
        raise UserError(f"--plan_tries={tries} must be at least 1")
    config.dtype = "bfloat16" if config.dtype == "auto" else config.dtype  # as on the TPUs
    config.accumulate = config.accumulate or 1
    adopt(config, None)
    dial.horizon(config, config_files.given_keys())
    if topology.startswith("auto:"):
        result, tried = search(config, topology.removeprefix("auto:"), tries, lambda line: print(line, flush=True))
        result["tried"] = tried
        print()
    else:
        result = plan(config, topology)
    text = table(result)
    if "keys" in result:
        text += "\n\nUse it with " + " ".join(f"--config.{key}={value}" for key, value in result["keys"].items())
    show(result, text, workdir)


def use_compiler() -> None:
    """Prepare this process for the TPU compiler. Call it before JAX loads."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def show(result: dict[str, Any], text: str, workdir: Path | None) -> None:
    """Print a plan as text, and write plan.json to the workdir, or to this folder without one."""
    print(text)
    path = (workdir or Path()) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    saving.write(path, json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {path}")


def table(plan: dict[str, Any]) -> str:
    """Return a plan as lines for a terminal."""
    memory = plan["memory"]
    rows = [
        *where(plan),
        ("model", f"{plan['parameters'] / 1e9:,.2f} B parameters, remat={plan['remat']}"),
        (
            "a step",
            f"{plan['batch_size']:,} × {plan['sequence_length']:,} tokens in {plan['accumulate']} slices, "
            f"{plan['model_flops_per_step'] / 1e15:,.2f} PFLOP",
        ),
    ]
    rows += memory_rows(plan)
    if (host := memory.get("host", {})).get("all"):
        parts = ", ".join(f"{name} {host[name] / GIB:.2f}" for name in ("optimizer", "activations"))
        rows.append(("host memory", f"{host['all'] / GIB:.2f} GiB a device: {parts}"))
    if "seconds" in plan:
        rows += _times(plan)
    return as_lines(rows, plan["explained"])


def where(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Return rows of a table: the devices of a plan, and its mesh."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.get("mesh", {}).items()) or "-"
    return [("topology", f"{plan['topology']}: {plan['devices']} × {plan['device_kind']}"), ("mesh", mesh)]


def memory_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Return rows of a table: whether a plan fits, and the kinds of its memory."""
    memory = plan["memory"]
    free = memory["limit"] - memory["peak"]
    fits = f"fits: {memory['peak'] / GIB:.2f} of {memory['limit'] / GIB:.2f} GiB a device, {free / GIB:.2f} free"
    if not plan["fits"]:
        fits = f"does not fit: {memory['peak'] / GIB:.2f} GiB a device, {-free / GIB:.2f} more than it has"
    kinds = [name for name in ("parameters", "optimizer", "activations", "pages", "temporaries") if name in memory]
    return [("memory", fits), *[("", f"{name} {memory[name] / GIB:.2f} GiB") for name in kinds]]


def as_lines(rows: list[tuple[str, str]], explained: str) -> str:
    """Return rows of a table, and below them what they mean, as text."""
    return "\n".join([*[f"{name:<14}{text}" for name, text in rows], "", *textwrap.wrap(explained, 110)])


def _times(plan: dict[str, Any]) -> list[tuple[str, str]]:
    seconds = plan["seconds"]
    parts = ["compute", "kernels", "exposed_collectives", *(["exposed_transfers"] if plan["transfers"] else [])]
    shown = ", ".join(f"{part.replace('_', ' ')} {seconds[part]:.3f}" for part in parts)
    rows = [
        ("time", f"{seconds['step']:.3f} s a step: {shown}"),
        ("MFU", f"estimated {plan['mfu']:.1%}; {plan['mfu_without_collectives']:.1%} if all that is sent were hidden"),
        ("tokens", f"{plan['tokens_per_second']:,.0f} a second, {plan['tokens_per_second'] / plan['devices']:,.0f} a device"),
        (
            "collectives",
            f"{'kind':<20}{'count':>7}{'in background':>15}{'GiB':>10}{'largest MiB':>13}{'s':>9}{'exposed s':>11}",
        ),
    ]
    for kind, sent in (plan["collectives"] | plan["transfers"]).items():
        rows.append(
            (
                "",
                f"{kind:<20}{sent['count']:>7}{sent['in_background']:>15}{sent['bytes'] / GIB:>10.2f}"
                f"{sent['largest'] / 2**20:>13.1f}{sent['seconds']:>9.3f}{sent['exposed']:>11.3f}",
            )
        )
    return rows
