"""Runs as the verbs leave them, made up: only the files and keys that the page over many runs reads."""

import json
import math
from pathlib import Path

CONFIG = {
    "dtype": "float32",
    "steps": 20,
    "max_skipped_in_row": 3,
    "init_from": None,
    "data": {"input": "books/*.txt"},
    "model": {"num_layers": 2},
    "optimizer": {"learning_rate": 1e-3},
}


def lines(steps: int, loss: float = 2.0) -> list[dict]:
    """The lines of a metrics.jsonl, with validation every tenth step."""
    rows = []
    for step in range(1, steps + 1):
        value = loss + 3 * math.exp(-step / 5)
        rows.append({"step": step, "loss": value, "grad_norm": 1.0, "learning_rate": 1e-3, "skipped": 0, "tokens": 64 * step})
        if step % 10 == 0:
            rows.append({"step": step, "valid_loss": value, "valid_bits_per_byte": value / 2})
    return rows


def log(folder: Path, rows: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def a_run(folder: Path, report: dict | None = None, rows: list[dict] | None = None, **config) -> Path:
    """Write config.json, and metrics.jsonl, report.json and report.html if they are given. config: keys beside CONFIG."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    if rows is not None:
        log(folder, rows)
    if report is not None:
        (folder / "report.json").write_text(json.dumps({"title": "a run", "finished": True} | report))
        (folder / "report.html").write_text("<h1>a run</h1>")
    return folder


def trained(folder: Path, bits: float = 1.5, **config) -> Path:
    """Write a finished run of train.py."""
    report = {
        "parameters": 1_500_000,
        "validation": {"loss": 2 * bits, "bits_per_byte": bits},
        "training": {"steps": 20, "tokens": 1280, "skipped": 0},
        "stages": {"data": 1.5, "training": 60.0},
        "provenance": {"written": "2026-11-28T03:40:12Z", "code": "0683023 + changes", "seconds": 75.0},
    }
    return a_run(folder, report, lines(20, 2 * bits), **config)


def aligned(folder: Path, start: str | Path, method: str = "rl", **report) -> Path:
    """Write a finished run of align.py."""
    figures = {
        "before": {"reward": 0.1},
        "after": {"reward": 0.4, "mean_length": 30.0},
        "training": {"steps": 20, "tokens": 99},
    }
    rows = [{"step": step, "loss": 0.1, "reward": step / 20, "rewards/style/mean": 0.5} for step in range(1, 21)]
    own = {"method": method, "rl": {"algorithm": "grpo"}, "preference": {"loss": "dpo"}, "init_from": str(start)}
    return a_run(folder, figures | report, rows, **own)


def evaluated(folder: Path, checkpoint: str | Path, right: int, n: int = 100, task: str = "mmlu") -> Path:
    """Write an evaluation with one task of `n` items."""
    folder.mkdir(parents=True, exist_ok=True)
    share = right / n
    results = {task: {"acc": share, "acc_stderr": math.sqrt(share * (1 - share) / n), "n": n, "perplexity": 10 / (1 + share)}}
    (folder / "config.json").write_text(json.dumps({"checkpoint": str(checkpoint), "tasks": task, "seed": 1}))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "report.json").write_text(json.dumps({"title": "an evaluation", "finished": True, "stages": {"start": 3.0}}))
    return folder


def curated(folder: Path, kept: int = 30, read: int = 40) -> Path:
    """Write a finished run of curate.py."""
    funnel = {"web": {"en": {"kept": [kept, 100 * kept], "gopher_words": [read - kept, 100 * (read - kept)]}}}
    return a_run(folder, {"figures": {"funnel": funnel}}, stages="", rules={}, input="web=crawl/*.warc.gz")
