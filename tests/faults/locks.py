"""Two runs in one workdir at once."""

from pathlib import Path

from tests.faults.jobs import LIMIT, QUICK, WHOLE, Job, refused
from tests.faults.outcome import Outcome
from tests.faults.prepared import Prepared, different


def second(count: int, others: int, folder: Path, prepared: Prepared) -> Outcome:
    """Start a second job, of `others` processes, while the first one, of `count`, trains."""
    workdir = folder / "run"
    command = prepared.line(workdir)
    first = Job(command, folder / "first", count, variables=QUICK)
    if not first.until(lambda: (workdir / ".lock").exists()):
        first.stop()
        return Outcome("", [f"no lock: {first.said()[-500:]}"])
    late = Job(command, folder / "second", others, variables=QUICK)
    codes = late.ended(LIMIT)
    wrong = refused(late, codes, ["is in use by another run", "--workdir"])
    ended = first.ended(WHOLE)
    wrong += first.wrong(ended, {0}) or different(workdir, prepared.finished(count))
    told = next((line for line in late.complaints() if line.startswith("train.py: ")), "").replace(f"{folder}/", "")
    return Outcome(f"the second: exit {codes}: {told}; the first: exit {ended}" + ", equal" * (not wrong), wrong)


def together(folder: Path, prepared: Prepared) -> Outcome:
    """Start two runs at the same moment. One of them wins."""
    workdir = folder / "run"
    command = prepared.line(workdir)
    jobs = [Job(command, folder / name) for name in ("one", "other")]
    codes = [job.ended(WHOLE)[0] for job in jobs]
    wrong = [] if sorted(map(str, codes)) == ["0", "2"] else [f"exit {codes}"]
    for job, code in zip(jobs, codes):
        wrong += refused(job, [code], ["is in use by another run"]) if code == 2 else job.wrong([code], {0})
    wrong = wrong or different(workdir, prepared.finished())
    return Outcome(f"exit {codes}" + ", equal" * (not wrong), wrong)
