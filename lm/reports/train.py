"""The report of a training run: data counts, validation against n-gram baselines, curves, samples, speed and time.

It is one JSON file and one self-contained HTML page (lm/reports/page.py). Every part of a report is optional; the page leaves
out the section of a missing part.
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from flax import nnx

from data.text.batches import TextBatches, prepared
from data.text.dataset import beginnings, texts
from data.text.tokenizer import Tokenizer
from lm.files.saving import plain, write_json
from lm.model.sizing import parameters
from lm.model.transformer import skeleton
from lm.progress import progress
from lm.reports.curves import curves
from lm.reports.data_used import epochs_text, text_notes, text_sources
from lm.reports.next_steps import next_steps
from lm.reports.page import render, save
from lm.reports.provenance import accounts, signed, with_stopped
from lm.runs.workdir import kept_json
from lm.train import ngram
from lm.train.chips import mfu_formula
from lm.train.history import load_metrics
from lm.train.step import model_config_of

MEASURED = ("valid_loss", "valid_bits_per_byte")
BASELINES = ("unigram", "3-gram", "5-gram")

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
            "parameter_table": {part: count for part, count in parameters(model_config_of(config))["total"].items() if count},
            "data": {"sources": {name: _flat(source) for name, source in counts["sources"].items()}},
            "mixture": mixture,
            "tokenizer": {
                "vocab_size": tokenizer.vocab_size,
                "bytes_per_token": sum(s["train"]["bytes"] for s in counts["sources"].values()) / max(1, packed),
            },
            "validation": validation,
            "samples": samples,
            "throughput": {
                **{name: _median(train_lines[1:], name) for name in ("tokens_per_second", "tflops", "mfu")},
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


def drawn(config, params: nnx.State, tokenizer: Tokenizer, dataset: Path) -> list[dict[str, str]]:
    """Return {"prompt", "text"} for each of config.samples, or beginning of a document, continued by the model on the current
    mesh.

    Every process must call this: the parameters may be sharded over all of them and not fit on one device.
    """
    split = "valid" if config.data.valid_fraction > 0 else "train"
    prompts = beginnings(dataset, split, tokenizer) if config.samples is None else list(config.samples)
    if not prompts:
        return []
    from lm.infer.generate import generate

    model = nnx.merge(skeleton(model_config_of(config))[0], params)
    texts = generate(model, tokenizer, prompts, max_new_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=config.seed)
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


def _baselines(dataset: Path, tokenizer: Tokenizer, counts: dict) -> dict[str, float]:
    """Return bits per byte of byte n-grams fitted on the training text; cached in the dataset, their only input."""
    path = dataset / "baselines.json"
    if (values := kept_json(path)) is not None:
        return values
    total = sum(source["train"]["bytes"] for source in counts["sources"].values())
    with progress("n-gram baselines", min(total, BASELINE_BYTES), unit="B") as bar:
        values = ngram.baselines(
            texts(dataset, "train", tokenizer, BASELINE_BYTES), texts(dataset, "valid", tokenizer), progress=bar.update
        )
    write_json(path, values)
    return values


def _median(lines: Sequence[Mapping], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name)]
    return statistics.median(values) if values else None


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

    report: what `write_report` makes; every part may be missing. Loss is in nats per token; `mfu` is a fraction of the peak,
    `tflops` 1e12 FLOP per second.

    Numbers that are not finite become null in the JSON and are left out of the page. The JSON also gets `verdict`, `next`
    (see `next_steps`), `profile` and `goodput` (see `accounts`), and `before` if metrics.jsonl has a
    validation at step 0.
    """
    workdir, report = Path(workdir), plain(report)
    train, valid = load_metrics(workdir / "metrics.jsonl")
    if valid and valid[0]["step"] == 0 and "valid_bits_per_byte" in valid[0]:
        before = {key.removeprefix("valid_"): value for key, value in valid[0].items() if key.startswith(MEASURED)}
        report["before"] = plain(before)
    report["verdict"] = _verdict(report)
    report["next"] = next_steps(report, workdir)
    report |= accounts(workdir)
    save(workdir, report, html(report, train, valid))


def html(report: dict, train: Sequence[dict] = (), valid: Sequence[dict] = ()) -> str:
    """Return the page, from a `report` of plain values (see `plain`) and the lines of `load_metrics`."""
    validation, before = report.get("validation") or {}, report.get("before") or {}
    rows, grams = text_sources(report), baselines(validation)
    models = {"before this run": before.get("bits_per_byte"), "this model": validation.get("bits_per_byte")}
    return render(
        "train.html.j2",
        report,
        verdict=_verdict(report),
        bars=[(name, value) for name, value in (grams | models).items() if value is not None],  # of the headline
        by_source=by_source(validation, before),
        curves=curves([*train, *valid], method="pretraining", baselines=grams),
        rows=rows,
        epochs=epochs_text(rows),
        data_notes=text_notes(report),
        last_step=max((row["step"] for row in (*train, *valid)), default=None),
    )


def _verdict(report: Mapping) -> str | None:
    if report.get("finished") and not report.get("validation"):
        return "Nothing was measured: the run held out no text."
    return verdict(report.get("validation") or {}, report.get("before") or {})


def verdict(validation: Mapping, before: Mapping = {}) -> str | None:
    """Return whether the model is better than before the run, and than the best n-gram; None without a bits_per_byte."""
    ours, first = validation.get("bits_per_byte"), before.get("bits_per_byte")
    if ours is None:
        return None
    grams = baselines(validation)
    sentence = f"The model needs {ours:.3f} bits per byte of held-out text"
    if first:
        change = ours / first - 1
        better = "better" if ours < first else "worse" if ours > first else "no change"
        sentence = f"Bits per byte of held-out text went from {first:.3f} to {ours:.3f} ({change:+.1%}): {better}"
    if not grams:
        return f"{sentence}."
    best = min(grams, key=grams.get)
    share = ours / grams[best] - 1
    compared = f"{abs(share):.0%} {'more' if share > 0 else 'fewer'} than the {best} baseline ({grams[best]:.3f})"
    return f"{sentence}. That is {compared}." if first else f"{sentence}: {compared}."


def baselines(validation: Mapping) -> dict[str, float]:
    """Return the bits per byte of the n-grams."""
    return {name: validation[name] for name in BASELINES if validation.get(name) is not None}


def by_source(validation: Mapping, before: Mapping = {}) -> list[tuple[str, float | None, float]]:
    """Return (source, bits per byte before the run, and after it) if the validation text is of several sources."""
    names = [key.partition("/")[2] for key in validation if key.startswith("bits_per_byte/")]
    return [(name, before.get(f"bits_per_byte/{name}"), validation[f"bits_per_byte/{name}"]) for name in names]
