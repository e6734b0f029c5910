"""The cases of the fault matrix: a name, the fault, the expected outcome, and the function that makes the fault."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.clocks import DAY, shifted
from tests.faults.damages import DAMAGES, GOES_ON, REFUSED, WITHOUT, Damage
from tests.faults.disks import failing, full, read_only, read_only_at_start, slow
from tests.faults.freezes import frozen
from tests.faults.jobs import LIMIT, Job, refused
from tests.faults.kills import KILLS, kills
from tests.faults.locks import second, together
from tests.faults.outcome import Outcome
from tests.faults.prepared import HALFWAY, Prepared, contents, goes_on


class Case(NamedTuple):
    """make(folder, prepared) makes the fault in an empty folder. It raises Skipped if it cannot."""

    name: str
    fault: str
    expected: str
    make: Callable[[Path, Prepared], Outcome]


def damaged(damage: Damage, folder: Path, prepared: Prepared) -> Outcome:
    """Damage a copy of the run that was killed halfway, and start its command again."""
    workdir = folder / "run"
    shutil.copytree(prepared.halfway(), workdir)
    command, said = prepared.line(workdir), folder / "said"
    damage.way(damage.paths(workdir), prepared)
    if damage.outcome in (GOES_ON, WITHOUT):
        wrong, job = goes_on(
            command, said, prepared.finished(), before=without_privilege(), first=HALFWAY if damage.outcome == WITHOUT else 1
        )
        wrong += [f"nobody said {word!r}" for word in damage.words if word not in job.said()]
        told = [line for line in (*job.complaints(), *job.printed().splitlines()) if any(word in line for word in damage.words)]
        return Outcome(f"{damage.outcome if not wrong else 'exit 0'}: {' '.join(told)}".replace(f"{folder}/", ""), wrong)
    before = contents(workdir)
    job = Job(command, said, before=without_privilege())
    codes = job.ended(LIMIT)
    wrong = refused(job, codes, damage.words)
    told = " ".join(job.complaints()).replace(f"{folder}/", "")
    after = contents(workdir)
    if damage.outcome == REFUSED:
        wrong += [f"changed: {name}" for name in {*before, *after} if before.get(name) != after.get(name)]
    if not wrong:
        damage.repair(workdir, prepared.halfway())
        wrong, _ = goes_on(command, said, prepared.finished())
    return Outcome(f"exit {codes[0]}: {told}", wrong)


def without_privilege() -> list[str]:
    """Return words before a command that take away root's right to read all files."""
    if shutil.which("setpriv") is None:
        return []
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


EQUAL = "the same command goes on, equal"
FULL = f"exit 2, one line; with space again {EQUAL}"
READ_ONLY = f"exit 2, one line; writable again {EQUAL}"
FROZEN = f"goes on, equal; or ends with 75, one line, and {EQUAL}"
CLOCK = "equal; no duration is negative, the parts of goodput add up, TensorBoard shows all steps"
SECOND = "the second: exit 2, one line; the first: exit 0, equal"


def case(name: str, fault: str, expected: str, make: Callable, *values) -> Case:
    return Case(name, fault, expected, functools.partial(make, *values))


CASES = (
    *(case(f"damage-{one.name}", one.name.replace("-", " "), one.outcome, damaged, one) for one in DAMAGES),
    case("lock-second-run", "a second run in the workdir of one", SECOND, second, 1, 1),
    case("lock-second-run-of-2", "a second run of 2 processes in the workdir of one", SECOND, second, 1, 2),
    case("lock-second-run-beside-2", "a second run in the workdir of one of 2 processes", SECOND, second, 2, 1),
    case("lock-together", "two runs start at the same moment", "one: exit 0, equal; the other: exit 2, one line", together),
    case("disk-full-start", "the disk is full before the start", FULL, full, "start", 1),
    case("disk-full-data", "the disk fills up while data are prepared", FULL, full, "data", 1),
    case("disk-full-steps", "the disk fills up after step 30", FULL, full, "steps", 1),
    case("disk-full-save", "the disk fills up in a save", FULL, full, "save", 1),
    case("disk-full-end", "the disk fills up after the last step", f"all is written; or {FULL}", full, "end", 1),
    case("disk-full-steps-2", "the disk fills up after step 30, 2 processes", FULL, full, "steps", 2),
    case("disk-read-only-start", "the disk is read-only", READ_ONLY, read_only_at_start),
    case("disk-read-only-steps", "the disk becomes read-only after step 30", READ_ONLY, read_only, "steps", 1),
    case("disk-read-only-save", "the disk becomes read-only in a save", READ_ONLY, read_only, "save", 1),
    case("disk-read-only-steps-2", "the disk becomes read-only after step 30, 2 processes", READ_ONLY, read_only, "steps", 2),
    case("disk-slow", "each fsync takes half a second more", "equal", slow, False),
    case("disk-slow-kill", "the same, and kill -9 in a save", EQUAL, slow, True),
    case("disk-failing", "fsync fails with EIO", f"exit 1, one line; with a good disk {EQUAL}", failing),
    case("clock-back", "the clock is set back a day between two starts", CLOCK, shifted, f"-{DAY}", False, 1),
    case("clock-back-within", "the clock is set back a day while the run goes on", CLOCK, shifted, f"-{DAY}", True, 1),
    case("clock-back-within-2", "the same, 2 processes", f"equal; or JAX aborts all, and {EQUAL}", shifted, f"-{DAY}", True, 2),
    case("clock-ahead-within", "the clock is set ahead a day while the run goes on", CLOCK, shifted, f"+{DAY}", True, 1),
    case("freeze-1", "SIGSTOP for a minute", FROZEN, frozen, 1, 0),
    case("freeze-2", "SIGSTOP of process 1 of 2 for a minute", FROZEN, frozen, 2, 1),
    case("freeze-2-first", "SIGSTOP of process 0 of 2 for a minute", FROZEN, frozen, 2, 0),
    case("freeze-4", "SIGSTOP of process 3 of 4 for a minute", FROZEN, frozen, 4, 3),
    case("kill-1", f"kill -9 at {KILLS} moments", EQUAL, kills, 1),
    case("kill-2", f"kill -9 of one of 2 at {KILLS} moments", f"the others end with 75 within 60 s; {EQUAL}", kills, 2),
    case("kill-4", f"kill -9 of one of 4 at {KILLS} moments", f"the others end with 75 within 60 s; {EQUAL}", kills, 4),
)
