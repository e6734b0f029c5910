"""The training report: one JSON file to compute with, one self-contained HTML page to read.

The page asks nothing of the network and runs no script: curves are inline SVG (lm/evals/charts.py), bars are CSS, and
both follow the reader's light or dark theme. Every part of the report may be missing; the page leaves that section out,
so it can be written at any moment of a run. What other reports share with it stands in page.html.j2.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
import psutil
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from lm.evals.charts import INK, MUTED, SERIES, TRAIN, VALID, column, dots, from_zero, short, svg, thin, trend

BASELINES = ("unigram", "3-gram", "5-gram")

COUNTS = {  # the rows of the data table; its columns are the sources
    "documents": "documents",
    "exact_duplicates": "exact duplicates",
    "near_copies": "near copies",
    "train_documents": "train documents",
    "valid_documents": "validation documents",
    "bytes": "bytes",
    "train_bytes": "train bytes",
    "valid_bytes": "validation bytes",
    "tokens_in": "tokens in",
    "tokens_packed": "tokens packed",
    "tokens_padded": "tokens padded",
    "rows": "rows",
}


def write(workdir: str | os.PathLike, report: dict) -> None:
    """Writes `report.json` and `report.html` into `workdir`, each atomically; curves come from its `metrics.jsonl`.

    Args:
        workdir: an existing directory.
        report: any of these keys. Loss is in nats per token; `mfu` is a fraction of the peak.
            title, finished (bool), config (nested), machine (see `machine`), parameters (count),
            parameter_table {part: count}, tokenizer {vocab_size, bytes_per_token},
            data {sources: {name: {a key of COUNTS: count}}, notes (how they were counted: list of str)},
            validation {loss, bits_per_byte, tokens, bytes, unigram, 3-gram, 5-gram (bits per byte)},
            samples [{prompt, text}], throughput {tokens_per_second, mfu, mfu_formula},
            stages {name: seconds}, training {steps, tokens, skipped}.

    Numbers that are not finite become null in the JSON and are left out of the page.
    """
    workdir, report = Path(workdir), plain(report)
    metrics = workdir / "metrics.jsonl"
    train, valid = load_metrics(metrics) if metrics.exists() else ([], [])
    replace_json(workdir / "report.json", report)
    replace(workdir / "report.html", html(report, train, valid))


def load_metrics(path: str | os.PathLike) -> tuple[list[dict], list[dict]]:
    """The training lines (they have "loss") and validation lines ("valid_…") of a metrics.jsonl, ascending by step.

    A run that was killed and resumed leaves a torn line and repeats steps: what is no JSON object with a "step" is
    passed over, and of lines with one step the last counts; of validation, what each of them has. Raises FileNotFoundError.
    """
    train, valid = {}, {}
    for row in json_lines(path):
        if "step" in row and "loss" in row:
            train[row["step"]] = row
        elif "step" in row and any(key.startswith("valid_") for key in row):
            valid.setdefault(row["step"], {}).update(row)
    return [train[step] for step in sorted(train)], [valid[step] for step in sorted(valid)]


def json_lines(path: str | os.PathLike) -> list[dict]:
    """The JSON objects of a file that a killed process may have torn; lines that are none are passed over."""
    found = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def machine() -> dict:
    """What the run runs on: cpu, flags (the matmul extensions it has), cores (usable by this process), memory_gib,
    system, python, versions of the array libraries and, where JAX is installed, its devices {kind: count}.
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
        try:
            answer[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    try:
        import jax  # here, since a report can be redrawn where there is no JAX, and JAX takes a second to import
    except ImportError:
        return answer
    kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    return answer | {"devices": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}}


def html(report: dict, train: Sequence[dict] = (), valid: Sequence[dict] = ()) -> str:
    """The page as a string, from a `report` of plain values (see `plain`) and the lines of `load_metrics`."""
    sources = (report.get("data") or {}).get("sources") or {}
    counted = [key for key in COUNTS if any(row.get(key) is not None for row in sources.values())]
    return render(
        "report.html.j2",
        report,
        verdict=verdict(report.get("validation") or {}),
        bars=_bars(report.get("validation") or {}),
        curves=_curves(report, train, valid),
        counts={key: COUNTS[key] for key in counted},
        totals={key: sum(row.get(key) or 0 for row in sources.values()) for key in counted},
        last_step=max((row["step"] for row in (*train, *valid)), default=None),
    )


def render(template: str, report: dict, **context) -> str:
    """The page of a template of this folder that extends page.html.j2."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "short": short, "duration": duration}
    return environment.get_template(template).render(report=report, config=flatten(report.get("config") or {}), **context)


def verdict(validation: Mapping) -> str | None:
    """One sentence: does the model beat the best n-gram, and by how much. None without a bits_per_byte."""
    ours = validation.get("bits_per_byte")
    if ours is None:
        return None
    baselines = {name: validation[name] for name in BASELINES if validation.get(name) is not None}
    sentence = f"{ours:.3f} bits per byte on held-out text"
    if not baselines:
        return f"{sentence}."
    best = min(baselines, key=baselines.get)
    share = 1 - ours / baselines[best]
    if share > 0:
        return f"{sentence}: {share:.0%} fewer than the {best} baseline ({baselines[best]:.3f})."
    return f"{sentence}: it does not beat the {best} baseline ({baselines[best]:.3f})."


def plain(value):
    """`value` as JSON has it: mappings, lists, strings, numbers; not-finite numbers become None, the rest strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def flatten(config: Mapping, prefix: str = "") -> dict[str, str]:
    """A nested config as {"a.b.c": JSON of the value}: the names that `--config.a.b.c=` takes."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
    return flat


def number(value: float, digits: int = 3) -> str:
    """A count in full with thousands separated, anything else to `digits` significant digits."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if isinstance(value, float) and abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _bars(validation: Mapping) -> list[tuple[str, float]]:
    """The bars of the headline, longest first as a rule: the baselines, then the model."""
    bars = [(name, validation.get(name)) for name in BASELINES] + [("this model", validation.get("bits_per_byte"))]
    return [(name, value) for name, value in bars if value is not None]


def _curves(report: dict, train: Sequence[dict], valid: Sequence[dict]) -> list[dict]:
    """The charts that have data: [{title, note, svg}]."""
    tokens = column(train, "tokens")
    loss, valid_loss = column(train, "loss"), column(valid, "valid_loss")
    charts = []

    def chart(title: str, note: str, draw: Callable[[Axes], None]) -> None:
        charts.append({"title": title, "note": note, "svg": svg(f"chart{len(charts)}", draw, tokens)})

    if len(loss[0]) or len(valid_loss[0]):
        smoothed = trend(*loss) if len(loss[0]) else loss
        shown = np.concatenate([smoothed[1][len(smoothed[1]) // 20 :], valid_loss[1][len(valid_loss[1]) // 20 :]])
        peak, top = max([*loss[1], *valid_loss[1]]), shown.max() + 0.1 * np.ptp(shown)
        clipped = peak > max(top, 1.3 * top)  # the first steps' fall from ln(vocabulary) would flatten everything after it

        def draw_loss(ax: Axes) -> None:
            if len(loss[0]):
                ax.plot(*thin(*loss), color=TRAIN, alpha=0.3, linewidth=0.8, label="train, each line")
                ax.plot(*smoothed, color=TRAIN, linewidth=1.8, label="train, smoothed")
            if len(valid_loss[0]):
                ax.plot(*thin(*valid_loss), color=VALID, linewidth=1.8, label="validation", **dots(valid_loss))
            if clipped:
                ax.set_ylim(top=top)
            ax.legend(frameon=False, labelcolor=INK, loc="upper right")

        chart("Loss", f"nats per token{f'; the frame cuts off a peak of {peak:.3g}' if clipped else ''}", draw_loss)

    bits = column(valid, "valid_bits_per_byte")
    if len(bits[0]):
        validation = report.get("validation") or {}
        baselines = {name: validation[name] for name in BASELINES if validation.get(name) is not None}

        def draw_bits(ax: Axes) -> None:
            for name, value in baselines.items():
                ax.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
                ax.annotate(
                    f"{name} {value:.3f}",
                    (1, value),
                    (-3, 3),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    ha="right",
                    color=MUTED,
                )
            ax.plot(*thin(*bits), color=VALID, linewidth=1.8, **dots(bits))
            ax.margins(y=0.1)

        chart("Bits per byte", "on validation text" + (", with n-gram baselines" if baselines else ""), draw_bits)

    names = sorted({key for row in valid for key in row if key.startswith("valid_") and "/" in key})
    for task in dict.fromkeys(name.removeprefix("valid_").partition("/")[0] for name in names):
        found = [name for name in names if name.startswith(f"valid_{task}/")][: len(SERIES)]

        def draw_task(ax: Axes, found=found) -> None:
            for name, colour in zip(found, SERIES):
                curve = column(valid, name)
                ax.plot(*thin(*curve), color=colour, linewidth=1.8, label=name.partition("/")[2], **dots(curve))
            ax.legend(frameon=False, labelcolor=INK, loc="best")

        chart(task, "evaluated on the way", draw_task)

    for key, title, note in (
        ("learning_rate", "Learning rate", "as applied"),
        ("grad_norm", "Gradient norm", "global, before clipping"),
        ("tokens_per_second", "Throughput", "tokens per second"),
        ("mfu", "Model FLOPs utilisation", "fraction of the peak"),
    ):
        curve = column(train, key)
        if not len(curve[0]):
            continue

        def draw(ax: Axes, curve=curve, key=key) -> None:
            ax.plot(*thin(*curve), color=TRAIN, linewidth=1.2, **dots(curve))
            if key == "grad_norm" and curve[1].min() > 0 and curve[1].max() > 10 * curve[1].min():
                ax.set_yscale("log")
                ax.yaxis.set_minor_formatter(NullFormatter())
            else:
                from_zero(ax)

        chart(title, note, draw)
    return charts


def _cores() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def replace_json(path: Path, value) -> None:
    replace(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
