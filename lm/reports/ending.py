"""The last lines of a run: what came out, where its report is, and what to do next."""

import json
from pathlib import Path

from lm.bucket.places import as_urls
from lm.errors import runnable


def show(workdir: Path) -> None:
    """Print the result, the report's path and the next commands of a run that has a report.json; nothing without one."""
    try:
        report = json.loads((workdir / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    verdict = report.get("verdict") or []
    sentences = [verdict] if isinstance(verdict, str) else verdict
    rows = [("result", sentence) for sentence in sentences]
    rows += [("report", str(workdir / "report.html"))]
    steps = report.get("next") or ()
    rows += [(f"next: {step['what'][0].lower()}{step['what'][1:]}", runnable(step["command"])) for step in steps]
    print(flush=True)
    for name, text in ((name, as_urls(text)) for name, text in rows):
        print(f"{name}\n    {text}" if name.startswith("next") else f"{name}  {text}", flush=True)
