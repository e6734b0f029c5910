"""The page over many runs: a table of all, curves over one another, results and differing settings of each kind.

    python -m lm.reports RUNS_DIR      # one file that needs no network
    python -m lm.dashboard RUNS_DIR    # the same page, live

Without JavaScript the page shows all tables; templates/runs.js sorts, filters, and draws the runs that the reader chooses.
"""

import base64
import collections
import datetime
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from lm.errors import UserError
from lm.files import saving
from lm.reports.evaluation_verdict import arrow
from lm.reports.page import count, encoded, flatten, render
from lm.reports.run_alerts import alerts, full_disks, needs_people
from lm.reports.run_folders import Run, at, read_runs, related, start, tree
from lm.reports.run_metrics import charts, is_number, styles, tokens_by_step
from lm.reports.run_results import Figure, figures, result_rows

CHOSEN = 8  # runs whose curves are drawn at first, the newest
ORDER = ("train", "sft", "best_of", "distill", "reward", "dpo", "orpo", "kto", "grpo", "ppo", "safety", "evaluation")
LONG = 60  # characters of a cell
MAX_KEYS, MAX_VALUE = 2000, 300  # of the table of settings: keys, and characters of their values
SCRIPT = (Path(__file__).parent / "templates" / "runs.js").read_text(encoding="utf-8")
# Only this script may run in the page, so a text of a run cannot become one.
SCRIPT_HASH = f"sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}"


class Live(NamedTuple):
    """How a page stays up to date: it asks for a newer one each so many `seconds`, and names its `tag`."""

    seconds: float
    tag: str


def write(folders: Sequence[Path], out: Path, patterns: Sequence[str] = ()) -> str:
    """Write the page over all runs in and below the folders; return a line that counts them.

    patterns: shell patterns of names (`Run.name`); only runs that match one are shown.
    Raises: UserError if there is no run. Then nothing is written.
    """
    where = ", ".join(map(str, folders))
    runs = read_runs(folders)
    if not runs:
        raise UserError(f"{where}: no run in it or below; a run is a folder that train.py, align.py or evaluate.py wrote")
    if not (chosen := matching(runs, patterns)):
        raise UserError(f"--runs={','.join(patterns)}: matches none of {len(runs)} runs, such as {runs[0].name}")
    page = html(chosen, where, functools.partial(file_link, out.absolute().parent), full_disks(folders))
    saving.write(out, page.encode("utf-8", "replace").decode())
    return f"{out}: {counted(chosen)}"


def matching(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """Return the runs whose name matches a shell pattern; all if there is no pattern."""
    return [run for run in runs if not patterns or any(fnmatchcase(run.name, pattern) for pattern in patterns)]


def file_link(base: Path, run: Run) -> str:
    """Return the link to a run's report from a page in the folder `base`."""
    return quote(os.fsencode(os.path.relpath((run.folder / "report.html").absolute(), base)))


def counted(runs: Sequence[Run]) -> str:
    """Return how many runs there are, and how many in each state."""
    if not runs:
        return "No run yet."
    states = collections.Counter(run.state for run in runs)
    return f"{count(len(runs), 'run')}: " + ", ".join(f"{n} {state}" for state, n in states.most_common())


def html(
    runs: Sequence[Run], where: str, link: Callable[[Run], str], notices: Sequence[str] = (), live: Live | None = None
) -> str:
    """Return the page.

    runs: the newest first. where: the searched folders. link: returns the address of a run's report. notices: sentences above
    all runs. live: None for a file.
    """
    starts, inputs = related(runs)
    results = [figures(run) for run in runs]
    outside = {i: str(start(run)) for i, run in enumerate(runs) if start(run) and i not in starts}
    kinds = sorted({run.kind for run in runs}, key=lambda kind: (ORDER.index(kind) if kind in ORDER else len(ORDER), kind))
    groups = []
    for kind in kinds:
        members = [i for i, run in enumerate(runs) if run.kind == kind]
        if kind != "unknown" and (len(members) > 1 or runs[members[0]].metrics.curves):
            groups.append(group(f"group{len(groups)}", kind, members, runs, results))
    rows = [row(i, runs, starts, inputs, results[i], link) for i in range(len(runs))]
    return render(
        "runs.html.j2",
        {"title": f"Runs in {where}"},
        verdict=counted(runs),
        notices=notices,
        rows=rows,
        troubled=[row for row in rows if row["troubled"]],
        states=sorted({run.state for run in runs}),
        kinds=kinds,
        tree=tree(starts, outside),
        groups=groups,
        newest=CHOSEN,
        arrow=arrow,
        data=Markup(encoded({"newest": CHOSEN, "styles": styles(24), "groups": {g["name"]: g.pop("data") for g in groups}})),
        script=Markup(SCRIPT),
        script_hash=SCRIPT_HASH,
        live=live,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


# The table of all runs.


def row(
    i: int,
    runs: Sequence[Run],
    starts: Mapping[int, int],
    inputs: Mapping[int, int],
    results: Sequence[Figure],
    link: Callable[[Run], str],
) -> dict[str, Any]:
    """Return what the table has of a run beside its own attributes. A run that is meant is {"text", "run": its index}."""
    run, warnings = runs[i], alerts(runs[i])
    origin, of, read = start(run), run.config.get("steps"), sources(run)
    size = run.report.get("parameters") or (at(runs[starts[i]].report, "parameters") if i in starts else None)
    code = at(run.report, "provenance.code")
    return {
        "id": i,
        "run": run,
        "link": link(run) if "report.html" in run.files else None,
        "alerts": warnings,
        "troubled": needs_people(run, warnings),
        "written": datetime.datetime.fromtimestamp(run.written),
        "size": size if is_number(size) else None,
        "start": {"text": runs[starts[i]].name, "run": starts[i]} if i in starts else {"text": cut(str(origin or ""))},
        "fresh": run.kind == "train" and not origin and bool(run.config),
        "data": inside(runs[inputs[i]], read) | {"run": inputs[i]} if i in inputs else {"text": cut(read)},
        "read": read,
        "of": of if is_number(of) and run.steps is not None and run.steps < of else None,
        "code": cut(str(code)) if code else None,
        "main": [figure for figure in results if figure.main],
    }


def inside(run: Run, name: str) -> dict[str, str]:
    """Return the text for a run's output that another run reads: the run, and the file in it."""
    return {"text": run.name if name in (run.folder.name, "dataset") else f"{run.name}: {cut(name)}"}


def sources(run: Run) -> str:
    """Return what a run reads: files, tasks or the name of built-in data."""
    names = run.config.get("tasks") if run.origin == "evaluate" else run.config.get("input") or at(run.config, "data.input")
    names = names or at(run.config, "safety.prompts")
    if not names:
        return "this Python's code and docs" if run.kind == "train" and run.config else ""
    parts = names if isinstance(names, list | tuple) else str(names).split(",")
    return ", ".join(source(str(part)) for part in parts)


def source(path: str) -> str:
    """Return the name of a file or task; of a pattern also the folder.

    >>> source("/data/books/*.txt"), source("/data/pairs.jsonl"), source("tasks/mmlu.yaml")
    ('books/*.txt', 'pairs.jsonl', 'mmlu')
    """
    parts = path.rstrip("/").split("/")
    return "/".join(parts[-2:] if "*" in parts[-1] else parts[-1:]).removesuffix(".yaml") or path


def cut(text: str, most: int = LONG) -> str:
    """Return the text, with the middle left out if it is long: the end of a path tells most."""
    return text if len(text) <= most else f"{text[: most // 3]} … {text[-(most - most // 3) :]}"


# One kind of run.


def group(
    name: str, kind: str, members: Sequence[int], runs: Sequence[Run], results: Sequence[Sequence[Figure]]
) -> dict[str, Any]:
    """Return what the page compares of runs of one kind. "data" is for the script."""
    some = [runs[i] for i in members]
    sound = [run.state != "diverged" for run in some]
    lines = [*styles(min(CHOSEN, len(some))), *[None] * (len(some) - CHOSEN)]
    return {
        "name": name,
        "kind": kind,
        "members": [{"name": run.name, "line": line} for run, line in zip(some, lines, strict=True)],
        "charts": (curves := charts(kind, [run.metrics for run in some], sound)),
        "results": result_rows(results[i] for i in members),
        "differences": differences([run.config for run in some]),
        "data": {"runs": [{"name": run.name, "tokens": tokens_by_step(run.metrics)} for run in some], "charts": curves},
    }


def differences(configs: Sequence[Mapping]) -> dict[str, list[str | None]]:
    """Return the values of each key whose values differ, by the name that --config.KEY takes; None where a config lacks it.

    At most MAX_KEYS keys, and of each value at most MAX_VALUE characters: a stranger's config may have any size.
    """
    flat = [flatten(config) for config in configs]
    known = [config for config in flat if config]  # a damaged config lacks every key, which says nothing
    rows = {key: [config.get(key) for config in known] for key in sorted({key for config in known for key in config})}
    names = [key for key, values in rows.items() if len(set(values)) > 1][:MAX_KEYS]
    return {key: [setting(config.get(key)) for config in flat] for key in names}


def setting(value: str | None) -> str | None:
    """Return a value of `flatten` as one types it: a text without quotes, unless it is empty."""
    text = json.loads(value) if value is not None and value.startswith('"') and value != '""' else value
    return text and cut(text, MAX_VALUE)
