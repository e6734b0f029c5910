"""SIGSTOP of one process for a minute, as a paging machine, a debugger or a migration of a virtual machine does it."""

import signal
from pathlib import Path

from tests.faults.jobs import LIMIT, WHOLE, Job
from tests.faults.outcome import Outcome
from tests.faults.prepared import Prepared, different, goes_on
from tests.verbs import runs

MINUTE = 60.0


def frozen(count: int, victim: int, folder: Path, prepared: Prepared, after: int = 30, seconds: float = MINUTE) -> Outcome:
    """Stop a process after a step, and let it continue. The timeouts are the default ones.

    The job goes on, equal; or all have ended with 75 and the same command goes on, equal.
    """
    finished, workdir = prepared.finished(count), folder / "run"
    command = prepared.line(workdir)
    job = Job(command, folder / "said", count)
    if not job.until(lambda: any(row["step"] >= after for row in runs.training(workdir)[-50:])):
        job.stop()
        return Outcome("", [f"no step {after}: {job.said()[-500:]}"])
    job.signal(victim, signal.SIGSTOP)
    begun = job.seconds()
    others = [process for i, process in enumerate(job.processes) if i != victim]
    lived = [job.seconds() - begun]
    while job.seconds() - begun < seconds:
        job.until(lambda: job.seconds() - begun >= seconds or lived[0] is None, 0.2)
        if any(process.poll() is None for process in others):
            lived[0] = job.seconds() - begun
    job.signal(victim, signal.SIGCONT)
    codes = job.ended(WHOLE if count == 1 else LIMIT)
    wrong = job.wrong(codes, {0, 75})
    if wrong or set(codes) == {0}:
        return Outcome("went on, equal" if not wrong else f"{codes}", wrong or different(workdir, finished))
    told = next(line for i in range(count) for line in job.complaints(i) if line.startswith("train.py: "))
    again, _ = goes_on(command, folder / "said", finished, count)
    return Outcome(f"{codes}; the others ended after {lived[0]:.0f} s: {told}; again: equal" if not again else "", again)
