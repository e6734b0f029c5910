"""kill -9 of one process at many moments of a run's life. The same command is started after each."""

import json
import random
from pathlib import Path

from tests.faults.jobs import LIMIT, QUICK, Job
from tests.faults.outcome import Outcome
from tests.faults.prepared import Prepared, goes_on
from tests.verbs import runs

KILLS = 30
LAST = 6  # kills at the end of the run, after its last step
START = {1: 5.0, 2: 12.0, 4: 25.0}  # seconds of a start, up to the first step, by the number of processes
KINDS = ("start", "steps", "save", "steps")  # of the kills before, in turn


def kills(count: int, folder: Path, prepared: Prepared, number: int = KILLS, last: int = LAST) -> Outcome:
    """Kill one process `number` times, each time another one of `count`. Return the Outcome of the case."""
    finished = prepared.finished(count)
    workdir, draw = folder / "run", random.Random(count)
    command = prepared.line(workdir)
    wrong: list[str] = []
    log, slowest, late = [], 0.0, False
    while (i := sum(row["killed"] for row in log)) < number:
        # A run that ended before it was killed is finished, so its next start is killed.
        kind = "start" if late else "end" if i >= number - last else KINDS[i % len(KINDS)]
        reached = max((row["step"] for row in runs.training(workdir)), default=0)
        target = draw.randint(reached + 1, max(reached + 1, runs.STEPS * (i + 1) // (number - last + 1)))
        before = runs.steps_saved(workdir)
        started, left = len(runs.lines(workdir / "starts.jsonl")), _saves(workdir)
        victim = (i + i // len(KINDS)) % count
        job = Job(command, folder / "said", count, variables=QUICK)
        alive = _moment(job, kind, workdir, target, draw, (left, started))
        killed = alive and job.kill(victim)
        late = not killed
        at = job.seconds()
        codes = job.ended(LIMIT)
        took = job.seconds() - at
        slowest = max(slowest, took)
        over = (workdir / "report.json").exists()
        found = job.wrong(codes, {75, 0} if over or not killed else {75})
        now = runs.lines(workdir / "starts.jsonl")[started:]
        for start in now:
            if start["step"] != (before[-1] if before else 0):
                found.append(f"resumed from {start['step']}, but {before} were saved")
        log.append({"kill": i, "kind": kind, "victim": victim, "at": round(at, 2), "killed": killed, "codes": codes,
                    "took": round(took, 2), "saved": runs.steps_saved(workdir), "target": target})  # fmt: skip
        (folder / "kills.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        wrong += [f"kill {i} ({kind}, process {victim}, after {at:.1f} s): {one}" for one in found]
    again, _ = goes_on(command, folder / "said", finished, count)
    kinds = {kind: sum(row["kind"] == kind and row["killed"] for row in log) for kind in ("start", "steps", "save", "end")}
    seen = f"{sum(kinds.values())} kills ({', '.join(f'{n} in {kind}' for kind, n in kinds.items())})"
    if count > 1:
        seen += f"; the others ended after at most {slowest:.0f} s"
    return Outcome(f"{seen}; equal" if not again else seen, wrong + again)


def _moment(job: Job, kind: str, workdir: Path, target: int, draw: random.Random, before: tuple[set[str], int]) -> bool:
    """Wait for a moment of a kind. Return False if a process ended before. before: saves and starts before this start."""
    later = draw.random()
    left, started = before
    if kind == "start":
        over = (workdir / "report.json").exists()
        return not job.until(lambda: False, (2.0 if over else START[job.count]) * later) and job.alive()
    if kind == "save":
        return job.until(lambda: bool(_saves(workdir) - left)) and not job.until(lambda: False, 0.05 * later) and job.alive()
    if not job.until(lambda: len(runs.lines(workdir / "starts.jsonl")) > started):
        return False
    if kind == "steps":
        return job.until(lambda: any(row["step"] >= target for row in runs.training(workdir)[-50:]))
    reached = job.until(lambda: any(row["step"] == runs.STEPS for row in runs.training(workdir)[-1:]))
    return reached and not job.until(lambda: False, 0.4 * later) and job.alive()


def _saves(workdir: Path) -> set[str]:
    """Return the names of saves that are under way, or were when a run was killed, with their times."""
    folder = workdir / "checkpoints"
    found = (path for path in folder.iterdir() if "tmp" in path.name) if folder.exists() else ()
    return {f"{path.name} {path.stat().st_ino}" for path in found if path.exists()}
