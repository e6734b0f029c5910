"""The report of a training run: data counts, validation against n-gram baselines, curves, samples, speed and time.

It is one JSON file and one self-contained HTML page (lm/reports/page.py). Every part of a report is optional; the page leaves
out the section of a missing part.
"""

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from data.text.batches import TextBatches
from data.text.dataset import prepared, texts
from data.text.tokenizer import Tokenizer
from lm.files import saving
from lm.files.saving import plain, write_json
from lm.infer.sampler import generate
from lm.model.transformer import skeleton
from lm.progress import progress
from lm.reports.charts import LINES, MARKERS, MUTED, SERIES, TRAIN, VALID, dots, from_zero, held_out, legend, svg, thin, trend
from lm.reports.data_used import epochs_text, text_notes, text_sources
from lm.reports.next_steps import next_steps
from lm.reports.page import render, replace_json
from lm.reports.provenance import signed, traced, with_stopped
from lm.runs.checkpoint import plain as by_name
from lm.runs.workdir import kept_json
from lm.train import goodput, ngram
from lm.train.history import column, load_metrics
from lm.train.speed import mfu_formula
from lm.train.step import model_config_of

MEASURED = ("valid_loss", "valid_bits_per_byte")
BASELINES = ("unigram", "3-gram", "5-gram")

COUNTS = {  # rows of the data table; the columns are the sources
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
BASELINE_BYTES = 256_000_000  # maximum bytes of training text that the n-grams are fitted on
SAMPLE_TOKENS = 96


def write_report(
    config,
    workdir: Path,
    dataset: Path,
    tokenizer: Tokenizer,
    result: dict,
    stages: dict[str, float],
    samples: list[dict[str, str]],
    mixture: dict,
) -> None:
    """Write report.json and report.html. With several processes, only the first one calls this; nothing in it is collective.

    Args: result: of lm.train.loop.train. stages: seconds of each stage of this process, added to those of earlier processes of
    the same run. samples: of `drawn`. mixture: of `mixture`.
    """
    counts = prepared(dataset)
    train_lines, _ = load_metrics(workdir / "metrics.jsonl")
    validation = None
    if result["valid"]:
        validation = {**result["valid"], **_baselines(dataset, tokenizer, counts)}
    rates = [line["tokens_per_second"] for line in train_lines[1:] if line.get("tokens_per_second")]
    flops = [line["tflops"] for line in train_lines[1:] if line.get("tflops")]
    used = [line["mfu"] for line in train_lines[1:] if line.get("mfu")]
    packed = sum(source["train"]["tokens_packed"] for source in counts["sources"].values())
    stages = with_stopped(_all_stages(workdir, stages), train_lines)
    write(
        workdir,
        {
            "title": f"{'Continued pretraining' if config.init_from else 'Pretraining'}: {workdir.name}",
            "finished": result["step"] >= config.steps,
            "config": config.to_dict(),
            **signed(config.to_dict(), stages),
            "parameters": result["num_params"],
            "parameter_table": parameter_table(result["params"]),
            "data": {"sources": {name: _flat(source) for name, source in counts["sources"].items()}},
            "mixture": mixture,
            "tokenizer": {
                "vocab_size": tokenizer.vocab_size,
                "bytes_per_token": sum(s["train"]["bytes"] for s in counts["sources"].values()) / max(1, packed),
            },
            "validation": validation,
            "samples": samples,
            "throughput": {
                "tokens_per_second": statistics.median(rates) if rates else None,
                "tflops": statistics.median(flops) if flops else None,
                "mfu": statistics.median(used) if used else None,
                "mfu_formula": mfu_formula(),
            },
            "stages": stages,
            "training": {name: result[name] for name in ("tokens", "skipped", "rewinds")} | {"steps": result["step"]},
        },
    )


def mixture(batches: TextBatches, steps: int, warnings: Sequence[str]) -> dict:
    """Return what a run of `steps` reads of each source: {"stages", "sources", "warnings"}.

    stages: [{"step" (that the stage begins after), "shares": {source: share of the rows}}]. sources: {source: {"tokens",
    "epochs"}}, tokens in proportion to the rows that are read.
    """
    rows, epochs = batches.rows_read(steps), batches.epochs(steps)
    return {
        "stages": [{"step": stage.begin, "shares": dict(stage.shares)} for stage in batches.stages],
        "sources": {
            name: {"tokens": round(rows[name] * size.tokens / size.rows), "epochs": epochs[name]}
            for name, size in batches.sizes.items()
        },
        "warnings": list(warnings),
    }


def drawn(config, params: nnx.State, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Return {"prompt", "text"} for each of config.samples, continued by the model on the current mesh.

    Every process must call this: the parameters may be sharded over all of them and not fit on one device.
    """
    prompts = list(config.samples)
    if not prompts:
        return []
    model = nnx.merge(skeleton(model_config_of(config))[0], params)
    texts = generate(model, tokenizer, prompts, max_new_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=config.seed)
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


def parameter_table(params) -> dict[str, int]:
    """Return parameter counts by part: embedding, head, and each kind of sublayer over all layers."""
    table: dict[str, int] = {}

    def walk(node, names):
        for name, child in node.items():
            if isinstance(child, dict):
                walk(child, [*names, name])
            else:
                part = " ".join(n for n in names if n not in ("layers", "stacks") and not n.isdigit()) or name
                table[part] = table.get(part, 0) + child.size

    walk(by_name(params), [])
    return table


def _baselines(dataset: Path, tokenizer: Tokenizer, counts: dict) -> dict[str, float]:
    """Return bits per byte of byte n-grams fitted on the training text; cached in the dataset, their only input."""
    kept = dataset / "baselines.json"
    if (values := kept_json(kept)) is not None:
        return values
    total = sum(source["train"]["bytes"] for source in counts["sources"].values())
    with progress("n-gram baselines", min(total, BASELINE_BYTES), unit="B", scaled=True) as bar:
        values = ngram.baselines(
            lambda: texts(dataset, "train", tokenizer, BASELINE_BYTES),
            lambda: texts(dataset, "valid", tokenizer),
            progress=bar.update,
        )
    write_json(kept, values)
    return values


def _flat(source: dict) -> dict[str, int]:
    """Return one source's counts under the names of the report's table; rows and tokens are sums of both splits."""
    both = {key: source["train"][key] + source["valid"][key] for key in ("tokens_in", "tokens_packed", "tokens_padded", "rows")}
    return {**source["survey"], **both}


def _all_stages(workdir: Path, stages: dict[str, float]) -> dict[str, float]:
    path = workdir / "stages.json"
    before = kept_json(path) or {}
    total = {name: seconds + before.get(name, 0.0) for name, seconds in stages.items()}
    write_json(path, total)
    return total


def write(workdir: str | os.PathLike, report: dict) -> None:
    """Write `report.json` and `report.html` into `workdir`, each atomically; curves come from its `metrics.jsonl`.

    Args:
        workdir: an existing directory.
        report: any of these keys. Loss is in nats per token; `mfu` is a fraction of the peak, `tflops` 1e12 FLOP per second.
            title, finished (bool), config (nested), machine (lm.reports.page.machine), provenance (lm/reports/provenance.py),
            before {loss, bits_per_byte, bits_per_byte/SOURCE} (of the model that the run starts from), parameters (count),
            parameter_table {part: count}, tokenizer {vocab_size, bytes_per_token},
            data {sources: {name: {a key of COUNTS: count}}, notes (how they were counted: list of str)},
            mixture (see `mixture`),
            validation {loss, bits_per_byte, bits_per_byte/SOURCE, tokens, bytes, unigram, 3-gram, 5-gram (bits per byte)},
            samples [{prompt, text}], throughput {tokens_per_second, tflops, mfu, mfu_formula},
            stages {name: seconds}, training {steps, tokens, skipped, rewinds}.

    Numbers that are not finite become null in the JSON and are left out of the page. The JSON also gets `verdict`, `next`
    (see `next_steps`), `profile` (see `traced`), `goodput` (lm/train/goodput.py), and `before` if metrics.jsonl has a
    validation at step 0.
    """
    workdir, report = Path(workdir), plain(report)
    metrics = workdir / "metrics.jsonl"
    train, valid = load_metrics(metrics) if metrics.exists() else ([], [])
    if valid and valid[0]["step"] == 0 and "valid_bits_per_byte" in valid[0]:
        kept = {key.removeprefix("valid_"): value for key, value in valid[0].items() if key.startswith(MEASURED)}
        report["before"] = plain(kept)
    report["verdict"] = verdict(report.get("validation") or {}, report.get("before") or {}) or _unmeasured(report)
    report["next"] = next_steps(report, workdir)
    if profile := traced(workdir):
        report["profile"] = profile
    if kept := goodput.of(workdir):
        report["goodput"] = kept
    replace_json(workdir / "report.json", report)
    saving.write(workdir / "report.html", html(report, train, valid))


def html(report: dict, train: Sequence[dict] = (), valid: Sequence[dict] = ()) -> str:
    """Return the page, from a `report` of plain values (see `plain`) and the lines of `load_metrics`."""
    sources = (report.get("data") or {}).get("sources") or {}
    counted = [key for key in COUNTS if any(row.get(key) is not None for row in sources.values())]
    validation, before = report.get("validation") or {}, report.get("before") or {}
    rows = text_sources(report)
    return render(
        "train.html.j2",
        report,
        verdict=verdict(validation, before) or _unmeasured(report),
        bars=_bars(validation, before),
        by_source=by_source(validation, before),
        curves=_curves(report, train, valid),
        rows=rows,
        epochs=epochs_text(rows),
        data_notes=text_notes(report),
        counts={key: COUNTS[key] for key in counted},
        totals={key: sum(row.get(key) or 0 for row in sources.values()) for key in counted},
        last_step=max((row["step"] for row in (*train, *valid)), default=None),
    )


def verdict(validation: Mapping, before: Mapping = {}) -> str | None:
    """Return whether the model is better than before the run, and than the best n-gram; None without a bits_per_byte."""
    ours, first = validation.get("bits_per_byte"), before.get("bits_per_byte")
    if ours is None:
        return None
    baselines = {name: validation[name] for name in BASELINES if validation.get(name) is not None}
    sentence = f"The model needs {ours:.3f} bits per byte of held-out text"
    if first:
        change = ours / first - 1
        better = "better" if ours < first else "worse" if ours > first else "no change"
        sentence = f"Bits per byte of held-out text went from {first:.3f} to {ours:.3f} ({change:+.1%}): {better}"
    if not baselines:
        return f"{sentence}."
    best = min(baselines, key=baselines.get)
    share = ours / baselines[best] - 1
    compared = f"{abs(share):.0%} {'more' if share > 0 else 'fewer'} than the {best} baseline ({baselines[best]:.3f})"
    return f"{sentence}. That is {compared}." if first else f"{sentence}: {compared}."


def _unmeasured(report: Mapping) -> str | None:
    """Return what to say of a run that ended without a validation, else None."""
    if not report.get("finished") or report.get("validation"):
        return None
    return "Nothing was measured: the run held out no text."


def by_source(validation: Mapping, before: Mapping = {}) -> list[tuple[str, float | None, float]]:
    """Return (source, bits per byte before the run, and after it) if the validation text is of several sources."""
    names = [key.partition("/")[2] for key in validation if key.startswith("bits_per_byte/")]
    return [(name, before.get(f"bits_per_byte/{name}"), validation[f"bits_per_byte/{name}"]) for name in names]


def _bars(validation: Mapping, before: Mapping) -> list[tuple[str, float]]:
    """Return the bars of the headline: the baselines, the model before the run, and the model."""
    bars = [(name, validation.get(name)) for name in BASELINES]
    bars += [("before this run", before.get("bits_per_byte")), ("this model", validation.get("bits_per_byte"))]
    return [(name, value) for name, value in bars if value is not None]


Drawn = tuple[str, str, str, Callable[[Axes], None]]  # title, note, unit of the y axis, and what draws


def _curves(report: dict, train: Sequence[dict], valid: Sequence[dict]) -> list[dict]:
    """Return the charts that have data: [{title, note, svg}]."""
    tokens = column(train, "tokens")
    charts = [*_loss(train, valid), *_bits(report, valid), *_tasks(valid), *_of_steps(train)]
    return [
        {"title": title, "note": note, "svg": svg(f"chart{i}", draw, tokens, unit=unit)}
        for i, (title, note, unit, draw) in enumerate(charts)
    ]


def _loss(train: Sequence[dict], valid: Sequence[dict]) -> Iterator[Drawn]:
    loss, valid_loss = column(train, "loss"), column(valid, "valid_loss")
    if not (len(loss[0]) or len(valid_loss[0])):
        return
    smoothed = trend(*loss) if len(loss[0]) else loss
    shown = np.concatenate([smoothed[1][len(smoothed[1]) // 20 :], valid_loss[1][len(valid_loss[1]) // 20 :]])
    peak, top = max([*loss[1], *valid_loss[1]]), shown.max() + 0.1 * np.ptp(shown)
    clipped = peak > max(top, 1.3 * top)  # the fall from ln(vocabulary) in the first steps would flatten the rest

    def draw(ax: Axes) -> None:
        if len(loss[0]):
            ax.plot(*thin(*loss), color=TRAIN, alpha=0.3, linewidth=0.8, label="train, each line")
            ax.plot(*smoothed, color=TRAIN, linewidth=1.8, label="train, smoothed")
        if len(valid_loss[0]):
            curve = thin(*valid_loss)
            ax.plot(*curve, color=VALID, linewidth=1.6, linestyle=LINES[1], label="validation", **held_out(curve))
        if clipped:
            ax.set_ylim(top=top)
        legend(ax, "upper right")

    yield "Loss", "lower is better" + (f"; the frame cuts off a peak of {peak:.3g}" if clipped else ""), "nats per token", draw


def _bits(report: dict, valid: Sequence[dict]) -> Iterator[Drawn]:
    bits = column(valid, "valid_bits_per_byte")
    if not len(bits[0]):
        return
    validation = report.get("validation") or {}
    baselines = {name: validation[name] for name in BASELINES if validation.get(name) is not None}

    def draw(ax: Axes) -> None:
        for name, value in baselines.items():
            ax.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
            ax.annotate(f"{name} {value:.3f}", (1, value), (-3, 3), color=MUTED, **where)
        curve = thin(*bits)
        ax.plot(*curve, color=VALID, linewidth=1.6, **held_out(curve))
        ax.margins(y=0.1)

    note = "of held-out text; lower is better" + ("; dashed lines: n-gram baselines" if baselines else "")
    yield "Bits per byte", note, "bits per byte", draw


def _tasks(valid: Sequence[dict]) -> Iterator[Drawn]:
    names = sorted({key for row in valid for key in row if key.startswith("valid_") and "/" in key})
    for task in dict.fromkeys(name.removeprefix("valid_").partition("/")[0] for name in names):
        of_task = [name for name in names if name.startswith(f"valid_{task}/")][: len(SERIES)]

        def draw(ax: Axes, of_task=of_task) -> None:
            for name, colour, line, marker in zip(of_task, SERIES, LINES, MARKERS):
                curve = column(valid, name)
                style = {"color": colour, "linestyle": line, "linewidth": 1.8, "label": name.partition("/")[2]}
                ax.plot(*thin(*curve), **style, **dots(curve, marker))
            legend(ax)

        if task == "bits_per_byte":
            yield "Bits per byte of each source", "of held-out text; lower is better", "bits per byte", draw
        else:
            yield task, "evaluated during training", of_task[0].partition("/")[2] if len(of_task) == 1 else "metric", draw


def _of_steps(train: Sequence[dict]) -> Iterator[Drawn]:
    for key, title, note, unit in (
        ("learning_rate", "Learning rate", "as applied", "learning rate"),
        ("grad_norm", "Gradient norm", "global, before clipping", "norm"),
        ("tokens_per_second", "Throughput", "training tokens", "tokens per second"),
        ("tflops", "Model FLOP/s", "floating-point operations that the model's formula asks for", "TFLOP/s (1e12 a second)"),
        ("mfu", "Model FLOPs utilisation", "share of the device's peak", "share of the peak"),
    ):
        curve = column(train, key)
        if not len(curve[0]) or (key == "tflops" and len(column(train, "mfu")[0])):  # both have the same shape
            continue

        def draw(ax: Axes, curve=curve, key=key) -> None:
            ax.plot(*thin(*curve), color=TRAIN, linewidth=1.2, **dots(curve))
            if key == "grad_norm" and curve[1].min() > 0 and curve[1].max() > 10 * curve[1].min():
                ax.set_yscale("log")
                ax.yaxis.set_minor_formatter(NullFormatter())
            else:
                from_zero(ax)

        yield title, note, unit, draw
