"""Run a recipe on this machine's processes, from files to documents, with everything that is finished reused.

    stages/NAME-KEY/UNIT.parquet   the columns of a stage, row by row those of the unit's documents
    documents/UNIT.parquet         the documents that stay, with all columns
    dropped/UNIT.parquet           the others, with their reason and the text as it was read
    manifest.json                  the recipe, its stages, the files read, and a hash of each file written

The same command resumes a killed run. The output is a function of the input and the recipe alone.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from data.recipe import finish, units
from data.recipe.batch import Batch
from data.recipe.finish import Output
from data.recipe.plan import Planned, Unit, code, digest, stages
from data.recipe.plan import units as grouped
from data.recipe.rules import Rule, parse
from data.recipe.units import ORIGINS, Job
from data.text.workers import ordered
from lm import saving
from lm.errors import UserError, naming
from lm.progress import progress

READER = "data.sources.archives"
Map = Callable[
    [Callable, Any, Iterable[Any]], Iterable[Any]
]  # (function, state, items) -> function(state, item) of each, in order


def run(config: Mapping[str, Any], workdir: Path, map: Map | None = None) -> dict[str, Any]:
    """Carry out a recipe: config as in configs/curate/default.py. Returns the figures of the report.

    map: how to spread the work; default: over the processes of this machine.
    Raises: UserError: no input, or a fault of the config.
    """
    planned, found = plan(config), grouped(inputs(config["input"]))
    if not found:
        raise UserError(f"input={config['input']!r} holds no file")
    workers = config["processes"] or None
    spread = map or (lambda function, state, items: ordered(function, state, items, processes=workers, here=0))
    begin, jobs = time.perf_counter(), passes(planned, workdir, found)
    for job in jobs:
        _pass(job, found, spread)
        if job.gathers is not None:
            job.gathers.stage.find([job.part(unit) for unit in found], job.gathers, workdir)
    last = Job(workdir, tuple(planned))
    output = Output(last, digest([(stage.folder, [rule.told() for rule in stage.rules]) for stage in planned]))
    with progress("documents", len(found), unit=" units") as bar:
        figures = []
        for one in spread(finish.run, output, found):
            figures.append(one)
            bar.update(1)
    total = finish.merged(figures) | {"seconds": time.perf_counter() - begin}
    _tidy(workdir, output, found)
    _manifest(config, planned, output, found, workdir)
    return total


def plan(config: Mapping[str, Any]) -> list[Planned]:
    """Return the stages with their rules. Raises: UserError for an unknown stage, or a rule on a column that no stage measures."""
    first = Planned("read", None, dict(config["read"]), digest((dict(config["read"]), code(READER))), ())
    names = [name.strip() for name in config["stages"].split(",") if name.strip()]
    with naming("rules"):
        rules = parse(config["rules"])
    planned = stages(names, config, rules, first)
    return _with_rules(planned, rules)


def _with_rules(planned: Sequence[Planned], rules: Sequence[Rule]) -> list[Planned]:
    """Give each rule to the stage that measures its column, which a document of one word tells."""
    batch = Batch({name: ["word"] for name in ORIGINS} | {"language": [None], "metadata": [None]})
    known, found, measured = set(ORIGINS) - {"text"}, [], []
    for stage in planned:
        columns = (
            set(known) if stage.stage is None else set(stage.stage.run(batch, stage.options | {"numbers": [0]})) - {"text"}
        )
        measured += sorted(columns)
        found.append(stage._replace(rules=tuple(rule for rule in rules if rule.column in columns)))
    for rule in rules:
        if rule.column not in measured:
            raise UserError(
                f"rules.{rule.column}: no stage of the recipe measures it; columns: {', '.join(measured)}; set it to () to leave it out"
            )
    return found


def passes(planned: Sequence[Planned], workdir: Path, found: Sequence[Unit]) -> list[Job]:
    """Return the passes over the units: each ends before a stage that needs the whole corpus."""
    ends = [k for k, stage in enumerate(planned) if getattr(stage.stage, "find", None)]
    jobs = [Job(workdir, tuple(planned[:end]), planned[end]) for end in ends]
    return [*jobs, Job(workdir, tuple(planned))]


def _pass(job: Job, found: Sequence[Unit], spread: Map) -> None:
    what = " + ".join(stage.name for stage in job.stages[-3:])
    begin, counts = time.perf_counter(), {"documents": 0, "characters": 0}
    with progress(what if len(job.stages) < 4 else f"… + {what}", sum(u.bytes for u in found), unit="B", scaled=True) as bar:
        for unit, done in zip(found, spread(units.run, job, found)):
            counts = {name: counts[name] + done[name] for name in counts}
            seconds = max(time.perf_counter() - begin, 1e-9)
            speed = (
                f"{counts['documents'] / seconds:.0f} documents/s, {counts['characters'] / 1e6 / seconds:.1f} M characters/s"
            )
            bar.set_postfix_str(speed)
            bar.update(unit.bytes)


def inputs(text: str) -> list[tuple[str, str]]:
    """Return (path, id) of all input files, in order. text: NAME=FILES parts with commas between; the id begins with the name."""
    from data.sources import archives

    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, where = part.partition("=")
        name, where = (name, where) if equals else ("input", part)
        with naming("input"):
            found += [(path, f"{name}/{id}") for path, id in archives.find(where)]
    return found


def _tidy(workdir: Path, output: Output, found: Sequence[Unit]) -> None:
    """Remove documents of other recipes and inputs. Results of stages stay, since a recipe may come back to them."""
    wanted = {path.name for unit in found for path in output.paths(unit).values()}
    for folder in ("documents", "dropped"):
        for path in sorted((workdir / folder).iterdir()):
            if path.name not in wanted:
                path.unlink() if path.is_file() else shutil.rmtree(path)


def _manifest(config: Mapping, planned: Sequence[Planned], output: Output, found: Sequence[Unit], workdir: Path) -> None:
    written = {}
    for unit in found:
        for name in ("documents", "dropped"):
            path = output.paths(unit)[name]
            with path.open("rb") as file:
                written[f"{name}/{path.name}"] = {"rows": finish.rows(path), "xxh3_128": _hash(file)}
    about = {
        "recipe": output.key,
        "stages": [{"name": s.name, "key": s.key, "options": s.options, "rules": [r.told() for r in s.rules]} for s in planned],
        "inputs": [{"unit": unit.name, "bytes": unit.bytes, "files": [id for _, id in unit.files]} for unit in found],
        "files": written,
    }
    saving.write(workdir / "manifest.json", json.dumps(saving.plain(about), indent=1) + "\n")


def _hash(file) -> str:
    state = xxhash.xxh3_128()
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()
