"""The report of lm.doremi: the shares that it found, and how weights and excess losses changed during the proxy's run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lm.files.saving import plain
from lm.reports.curves import curves
from lm.reports.next_steps import next_steps
from lm.reports.page import render, save
from lm.reports.provenance import signed
from lm.train.history import column, load_metrics

LAST = 0.1  # the part of the steps whose mean excess is in the table


def write(
    workdir: Path,
    config,
    given: Mapping[str, float],
    weights: Mapping[str, float],
    reference: Mapping,
    proxy: Mapping,
    stages: Mapping[str, float],
) -> None:
    """Write report.json and report.html into the workdir.

    Args: given: source -> its share in the reference's run, at its start. weights: source -> the share found. reference, proxy:
    of lm.train.loop.train. stages: seconds of each stage.
    """
    lines, _ = load_metrics(workdir / "proxy" / "metrics.jsonl")
    report = plain(
        {
            "title": f"Weights of a mixture (DoReMi): {workdir.name}",
            "finished": True,
            "config": config.to_dict(),
            **signed(config.to_dict(), stages),
            "parameters": proxy["num_params"],
            "sources": {
                name: {
                    "given": given.get(name, 0.0),
                    "found": share,
                    "loss": _last(lines, f"loss/{name}"),
                    "excess": _last(lines, f"excess/{name}"),
                }
                for name, share in weights.items()
            },
            "validation": reference["valid"],
            "training": {"steps": proxy["step"], "tokens": proxy["tokens"], "skipped": proxy["skipped"]},
            "stages": stages,
        }
    )
    report |= {"verdict": verdict(report), "next": next_steps(report, workdir)}
    save(workdir, report, html(report, lines))
    shares = ", ".join(f"{name} {share:.3f}" for name, share in weights.items())
    print(f"{workdir / 'weights.json'}: {shares}", flush=True)


def html(report: dict, lines: Sequence[dict]) -> str:
    """Return the page. lines: of the proxy's metrics.jsonl."""
    last_step = max((line["step"] for line in lines), default=None)
    drawn = [{key: x for key, x in line.items() if key == "step" or key.startswith(("weight/", "excess/"))} for line in lines]
    return render("doremi.html.j2", report, verdict=verdict(report), curves=curves(drawn), last_step=last_step)


def verdict(report: dict) -> str:
    """Return one sentence with the largest shares."""
    shares = sorted(report["sources"].items(), key=lambda source: -source[1]["found"])
    found = ", ".join(f"{name} {row['found']:.1%}" for name, row in shares[:6]) + (", …" if len(shares) > 6 else "")
    return f"Shares of the sources that were found: {found}."


def _last(lines: Sequence[dict], key: str) -> float | None:
    """Return the mean of a metric over the last tenth of the lines."""
    _, values = column(lines, key)
    return float(values[-max(1, int(LAST * len(values))) :].mean()) if len(values) else None
