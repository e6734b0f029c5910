"""A disk that is full, read-only, slow, or returns errors. Needs root on Linux for mounts, and strace for the last two.

Full: the workdir is on a tmpfs, and a file takes its free space. Read-only: on a tmpfs that is mounted read-only, or on an ext4
image, in which `mount -o remount,abort` causes what the kernel does after an error of the disk. Slow and failing: strace delays
or refuses fsync.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.runs.damage import damage
from tests.faults.jobs import LIMIT, QUICK, WHOLE, Job, is_root, refused
from tests.faults.outcome import Outcome, Skipped
from tests.faults.prepared import Prepared, goes_on
from tests.verbs import runs

FULL, READ_ONLY = "No space left on device", "Read-only file system"
DELAY = "500ms"  # of each fsync


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a file system at `folder`. Raises Skipped if this machine does not permit it."""
    folder.mkdir(parents=True)
    if not is_root() or shutil.which("mount") is None:
        raise Skipped("mounting a small file system needs root")
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"mounting a small file system is not permitted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        unmount(folder)


def unmount(folder: Path) -> None:
    """Unmount a folder, if something is mounted there."""
    while os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file that takes all free space. Return it."""
    path = folder / "filler"
    with open(path, "ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return path


def moment(name: str, workdir: Path) -> Callable[[], bool]:
    """Return a function that says whether a run has come to a moment of its life."""
    return {
        "data": lambda: (workdir / "tokenizer.model").exists(),
        "steps": lambda: any(row["step"] >= 30 for row in runs.training(workdir)[-50:]),
        "save": lambda: runs.steps_saved(workdir)[-1:] >= [20] and runs.saving(workdir),
        "end": lambda: any(row["step"] == runs.STEPS for row in runs.training(workdir)[-1:]),
    }[name]


def full(when: str, count: int, folder: Path, prepared: Prepared) -> Outcome:
    """Fill the disk at a moment of the run; then make space, and start the command again."""
    with mounted(folder / "disk", "-t", "tmpfs", "-o", "size=16m", "tmpfs") as disk:
        workdir = disk / "run"
        command = prepared.line(workdir)
        if when == "start":
            fill(disk)
        job = Job(command, folder / "said", count, variables=QUICK)
        if when != "start":
            if not job.until(moment(when, workdir)):
                job.stop()
                return Outcome("", [f"no such moment: {job.said()[-500:]}"])
            fill(disk)
        codes = job.ended(LIMIT)
        written = when == "end" and not any(codes)  # the run was faster than the filling
        wrong = ([] if written else refused(job, codes, [FULL])) + half_written(workdir)
        seen = told(job, codes, folder)
        (disk / "filler").unlink()
        again, _ = goes_on(command, folder / "said", prepared.finished(count), count)
        return Outcome(f"{seen}; with space again: equal" if not again else seen, wrong + again)


def read_only_at_start(folder: Path, prepared: Prepared) -> Outcome:
    """Mount the disk of a run that was killed halfway read-only."""
    with mounted(folder / "disk", "-t", "tmpfs", "-o", "size=16m", "tmpfs") as disk:
        workdir = disk / "run"
        shutil.copytree(prepared.halfway(), workdir)
        command = prepared.line(workdir)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        job = Job(command, folder / "said")
        codes = job.ended(LIMIT)
        wrong, seen = refused(job, codes, []), told(job, codes, folder)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        again, _ = goes_on(command, folder / "said", prepared.finished())
        return Outcome(f"{seen}; writable again: equal" if not again else seen, wrong + again)


def read_only(when: str, count: int, folder: Path, prepared: Prepared) -> Outcome:
    """Make the disk read-only in the middle of a run, as the kernel does after an error of the disk; then mount it again."""
    if shutil.which("mkfs.ext4") is None:
        raise Skipped("needs mkfs.ext4 (package e2fsprogs)")
    image = folder / "image"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    workdir = folder / "disk" / "run"
    command = prepared.line(workdir)
    with mounted(folder / "disk", "-o", "loop", str(image)) as disk:
        job = Job(command, folder / "said", count, variables=QUICK)
        if not job.until(moment(when, workdir)):
            job.stop()
            return Outcome("", [f"no such moment: {job.said()[-500:]}"])
        subprocess.run(["mount", "-o", "remount,abort", str(disk)], check=True)
        codes = job.ended(LIMIT)
        wrong, seen = refused(job, codes, []), told(job, codes, folder)
    subprocess.run(["fsck.ext4", "-p", "-f", str(image)], capture_output=True)
    (folder / "disk").rmdir()
    with mounted(folder / "disk", "-o", "loop", str(image)):
        wrong += half_written(workdir)
        again, _ = goes_on(command, folder / "said", prepared.finished(count), count)
    return Outcome(f"{seen}; mounted again: equal" if not again else seen, wrong + again)


def slow(kill: bool, folder: Path, prepared: Prepared) -> Outcome:
    """Delay every fsync. kill: kill the run in a save, and go on without the delay."""
    workdir = folder / "run"
    command = prepared.line(workdir)
    before = traced(folder, f"fsync,fdatasync:delay_enter={DELAY}")
    if not kill:
        wrong, job = goes_on(command, folder / "said", prepared.finished(), before=before)
        return Outcome(f"equal, after {job.seconds():.0f} s" if not wrong else "", wrong)
    job = Job(command, folder / "said", before=before)
    if not job.until(moment("save", workdir)):
        job.stop()
        return Outcome("", [f"no such moment: {job.said()[-500:]}"])
    subprocess.run(["pkill", "-KILL", "-P", str(job.processes[0].pid)], check=True)
    job.ended(LIMIT)
    saved = runs.steps_saved(workdir)
    wrong = half_written(workdir)
    again, _ = goes_on(command, folder / "said", prepared.finished())
    return Outcome(f"killed in a save after {saved}; equal" if not again else "", wrong + again)


def failing(folder: Path, prepared: Prepared) -> Outcome:
    """Refuse every fsync after the first ones with EIO, as a broken disk does."""
    workdir = folder / "run"
    command = prepared.line(workdir)
    job = Job(command, folder / "said", before=traced(folder, "fsync,fdatasync:error=EIO:when=8+"))
    codes = job.ended(WHOLE)
    wrong, seen = refused(job, codes, ["Input/output error"], code=1) + half_written(workdir), told(job, codes, folder)
    again, _ = goes_on(command, folder / "said", prepared.finished())
    return Outcome(f"{seen}; with a good disk: equal" if not again else seen, wrong + again)


def traced(folder: Path, fault: str) -> list[str]:
    """Return the words of strace that make a fault in system calls. Raises Skipped if they cannot work here."""
    calls = fault.partition(":")[0]
    words = ["strace", "-f", "-qq", "--seccomp-bpf", f"--trace={calls}", f"--inject={fault}", f"--output={folder / 'strace'}"]
    if shutil.which("strace") is None:
        raise Skipped("needs strace")
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        raise Skipped("strace may not trace processes here")
    return words


def half_written(workdir: Path) -> list[str]:
    """Return what is wrong with the checkpoints that a start would take as good."""
    found = ((step, damage(workdir / "checkpoints" / str(step))) for step in runs.steps_saved(workdir))
    return [f"checkpoint {step} is half-written: {what}" for step, what in found if what]


def told(job: Job, codes: list[int | None], folder: Path) -> str:
    """Return the exit codes and the first line of a job in a few words."""
    lines = [line for i in range(job.count) for line in job.complaints(i) if line.startswith("train.py: ")]
    return f"exit {', '.join(map(str, codes))}: {' '.join(lines[:1])}".replace(f"{folder}/", "")
