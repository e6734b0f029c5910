"""Run a recipe on this machine's processes, from files to documents, with everything that is finished reused.

    stages/NAME-KEY/UNIT.parquet   the columns of a stage, row by row those of the unit's documents
    documents/NUMBER.parquet       the documents that stay, with all columns
    dropped/NUMBER.parquet         the others, with their reason and the text as it was read
    manifest.json                  the recipe, its stages, files read, what could not be read, a hash of each file written;
                                   only finished runs have it

The same command resumes a killed run. The output is a function of the input and the recipe alone.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.recipe import finish
from data.recipe import units as work
from data.recipe.finish import Output
from data.recipe.inputs import Unit, digest, inputs, units
from data.recipe.plan import Planned, plan
from data.recipe.units import Job
from data.text.workers import ordered
from lm.errors import UserError
from lm.files import saving
from lm.progress import progress

MANIFEST = "manifest.json"
# (function, state, items) -> function(state, item) of each item, in order
Map = Callable[[Callable, Any, Iterable[Any]], Iterable[Any]]


def prepare(config: Mapping[str, Any]) -> tuple[list[Planned], list[Unit]]:
    """Return the stages and the units of a run, and write nothing.

    config: as in configs/curate/default.py.
    Raises: UserError: no input, or a fault of the config.
    """
    _spread(config, Path())
    for name, value in config["browse"].items():
        if value < 0:
            raise UserError(f"browse.{name}={value}; use 0 or more")
    found = units(inputs(config["input"], config["read"]), config["read"]["max_bytes"])
    return plan(config, found), found


def run(config: Mapping[str, Any], workdir: Path, prepared: tuple[list[Planned], list[Unit]] | None = None) -> dict[str, Any]:
    """Carry out a recipe. Returns the figures of the report.

    prepared: what `prepare` returned for the config, if it was called before.
    Raises: UserError, as `prepare`.
    """
    planned, found = prepared or prepare(config)
    spread = _spread(config, workdir)
    begin, (*jobs, last) = time.perf_counter(), passes(planned, workdir)
    for job in jobs:
        _load(job.gathers)
        for _ in _shown(job, spread(work.run, job, found), found):
            pass
        _compare(job, found)
    rules = [(stage.folder, [rule.told() for rule in stage.rules]) for stage in planned]
    choose = config["browse"]["documents"]
    key = digest([finish.FORMAT, rules, config["audit"], choose])
    output = Output(last, key, config["audit"], choose)
    (workdir / MANIFEST).unlink(missing_ok=True)  # until the documents are those of this recipe
    figures, chosen = [], {}
    for one in _shown(last, spread(finish.run, output, found), found):
        chosen = finish.lowest([chosen, one.pop("chosen")], choose)  # here, so that memory does not grow with the units
        figures.append(one)
    total = finish.merged(figures) | {"chosen": chosen, "seconds": time.perf_counter() - begin}
    _tidy(workdir, output, found)
    _manifest(planned, output, found, figures)
    return total


def _spread(config: Mapping[str, Any], workdir: Path) -> Map:
    """Return the function that spreads the work over units."""
    if config["runner"] == "beam":
        from data.recipe import beam

        return beam.spread((workdir / "stages" / "beam").absolute(), config["beam_options"])
    if config["runner"] != "local":
        raise UserError(f"runner={config['runner']!r}; use local or beam")
    processes = config["processes"] or None
    return lambda function, state, items: ordered(function, state, items, processes=processes, here=0, warm=True)


def passes(planned: Sequence[Planned], workdir: Path) -> list[Job]:
    """Return the passes over the units: each but the last ends before a stage that compares the whole corpus."""
    ends = [k for k, stage in enumerate(planned) if stage.compares]
    jobs = [Job(workdir, tuple(planned[:end]), planned[end]) for end in ends]
    return [*jobs, Job(workdir, tuple(planned))]


def _load(stage: Planned) -> None:
    """Load what a stage that compares documents needs, so that forked workers share it."""
    with tempfile.TemporaryDirectory() as folder, stage.stage.part(Path(folder) / "part", stage.options) as part:
        part.add(["a word"], np.arange(1), None)


def _shown(job: Job, results: Iterable[dict], found: Sequence[Unit]) -> Iterator[dict]:
    """Yield the results of a pass over the units, and show its progress."""
    what = " + ".join(stage.name for stage in job.stages[-3:])
    begin, documents, characters = time.perf_counter(), 0, 0
    with progress(what if len(job.stages) < 4 else f"… + {what}", sum(u.bytes for u in found), unit="B") as bar:
        for unit, one in zip(found, results, strict=True):
            documents, characters = documents + one["documents"], characters + one["characters"]
            seconds = max(time.perf_counter() - begin, 1e-9)
            bar.set_postfix_str(f"{documents / seconds:.0f} documents/s, {characters / 1e6 / seconds:.1f} M characters/s")
            bar.update(unit.bytes)
            yield one


def _compare(job: Job, found: Sequence[Unit]) -> None:
    """Find the duplicates among the parts, if that is not done."""
    stage, table = job.gathers, job.table(job.gathers)
    done = table.with_name("counts.json")
    if not done.exists():
        with progress(stage.name, len(found), unit=" units") as bar:
            counts = stage.stage.find([job.part(unit) for unit in found], table, stage.options)
            bar.update(len(found))
        saving.write_json(done, counts)


def _tidy(workdir: Path, output: Output, found: Sequence[Unit]) -> None:
    """Remove documents of other recipes and inputs. Results of stages stay, since a recipe may come back to them."""
    shutil.rmtree(workdir / "index", ignore_errors=True)  # of an older version
    wanted = {path.name for unit in found for path in output.tables(unit).values()}
    for folder in ("documents", "dropped"):
        for path in sorted((workdir / folder).iterdir()):
            if path.name not in wanted:
                path.unlink() if path.is_file() else shutil.rmtree(path)


def _manifest(planned: Sequence[Planned], output: Output, found: Sequence[Unit], figures: Sequence[Mapping]) -> None:
    about = {
        "recipe": output.key,
        "stages": [
            {"name": s.name, "key": s.key, "options": s.options, "rules": [r.described() for r in s.rules]} for s in planned
        ],
        "inputs": [{"unit": unit.number, "bytes": unit.bytes, "files": [id for _, id in unit.files]} for unit in found],
        "unread": [
            {name: value for name, value in row.items() if name != "path"} for one in figures for row in one["quarantined"]
        ],
        "files": {
            f"{name}/{path.name}": one["files"][name]
            for unit, one in zip(found, figures, strict=True)
            for name, path in output.tables(unit).items()
        },
    }
    saving.write(output.job.workdir / MANIFEST, json.dumps(saving.plain(about), indent=1) + "\n")
