"""The plan as text."""

import textwrap
from typing import Any

GIB = 2**30


def table(plan: dict[str, Any]) -> str:
    """Return a plan as lines for a terminal."""
    memory = plan["memory"]
    free = memory["limit"] - memory["peak"]
    rows = [
        ("topology", f"{plan['topology']}: {plan['devices']} × {plan['device_kind']}"),
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in plan.get("mesh", {}).items()) or "-"),
        ("model", f"{plan['parameters'] / 1e9:,.2f} B parameters, remat={plan['remat']}"),
        (
            "a step",
            f"{plan['batch_size']:,} × {plan['sequence_length']:,} tokens in {plan['accumulate']} slices, "
            f"{plan['model_flops_per_step'] / 1e15:,.2f} PFLOP",
        ),
    ]
    if plan["fits"]:
        rows.append(
            ("memory", f"fits: {memory['peak'] / GIB:.2f} of {memory['limit'] / GIB:.2f} GiB a device, {free / GIB:.2f} free")
        )
    else:
        rows.append(("memory", f"does not fit: {memory['peak'] / GIB:.2f} GiB a device, {-free / GIB:.2f} more than it has"))
    names = ("parameters", "optimizer", "activations", "temporaries")
    rows += [("", f"{name} {memory[name] / GIB:.2f} GiB") for name in names if name in memory]
    if (host := memory.get("host", {})).get("all"):
        parts = ", ".join(f"{name} {host[name] / GIB:.2f}" for name in ("optimizer", "activations"))
        rows.append(("host memory", f"{host['all'] / GIB:.2f} GiB a device: {parts}"))
    if "seconds" in plan:
        rows += _times(plan)
    lines = [f"{name:<14}{text}" for name, text in rows]
    return "\n".join([*lines, "", *textwrap.wrap(plan["explained"], 110)])


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
