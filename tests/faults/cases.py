"""The cases of the fault matrix: a name, the fault, the expected outcome, and the function that makes the fault."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.damages import DAMAGES, GOES_ON, REFUSED, WITHOUT, Damage
from tests.faults.jobs import LIMIT, Job, refused
from tests.faults.kills import KILLS, kills
from tests.faults.prepared import HALFWAY, Prepared, contents, goes_on


class Skipped(Exception):
    """This machine cannot make the fault. The text says why."""


class Outcome(NamedTuple):
    """seen: in words. wrong: what is not as expected; empty if all is."""

    seen: str
    wrong: list[str]


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


CASES = (
    *(
        Case(f"damage-{one.name}", f"{one.name.replace('-', ' ')}", one.outcome, functools.partial(damaged, one))
        for one in DAMAGES
    ),
    *(
        Case(
            f"kill-{count}",
            f"kill -9 of one of {count} at {KILLS} moments" if count > 1 else f"kill -9 at {KILLS} moments",
            "the others end with 75; the same command goes on, equal" if count > 1 else "the same command goes on, equal",
            functools.partial(kills, count),
        )
        for count in (1, 2, 4)
    ),
)
