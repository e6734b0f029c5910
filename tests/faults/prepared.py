"""What the cases share, made once: a text, uninterrupted runs, a run that was killed halfway. And the comparison of runs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.jobs import QUICK, WHOLE, Job
from tests.verbs import runs
from tests.verbs.conftest import write_text

HALFWAY = 50  # the step after which the run of `halfway` is killed


class Prepared:
    """Makes what a case asks for in `folder`, and keeps it for the next case."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def text(self) -> Path:
        return self._once("text", write_text)

    def line(self, workdir: Path, **settings) -> list[str]:
        """Return the command of the run that all cases make."""
        return runs.line(workdir, data__input=self.text(), **settings)

    def finished(self, count: int = 1) -> Path:
        """Return the workdir of an uninterrupted run of `count` processes."""
        return self._once(f"finished-{count}", lambda workdir: whole(Job(self.line(workdir), self._said(workdir), count)))

    def other(self) -> Path:
        """Return the workdir of another run: another seed."""
        return self._once("other", lambda workdir: whole(Job(self.line(workdir, seed=1), self._said(workdir))))

    def halfway(self) -> Path:
        """Return the workdir of a run of one process that was killed after step HALFWAY."""

        def make(workdir: Path) -> None:
            job = Job(self.line(workdir), self._said(workdir), variables=QUICK)
            reached = job.until(lambda: len(runs.training(workdir)) >= HALFWAY and runs.steps_saved(workdir)[-1:] == [40])
            if not (reached and job.kill(0)):
                raise RuntimeError(f"the run did not reach step {HALFWAY}: {job.said()[-2000:]}")
            for path in (workdir / "checkpoints").iterdir():  # what a save at the time of the kill had not tidied up
                if path.name not in ("20", "40"):
                    shutil.rmtree(path)

        return self._once("halfway", make)

    def _said(self, workdir: Path) -> Path:
        return workdir.with_name(f"{workdir.name}.said")

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        path, done = self.folder / name, self.folder / f"{name}.made"
        if not done.exists():
            shutil.rmtree(path, ignore_errors=True)
            make(path)
            done.touch()
        return path


def whole(job: Job) -> Job:
    """Wait for a run that nothing disturbs. Raises RuntimeError if it fails."""
    codes = job.ended(WHOLE)
    if any(codes):
        raise RuntimeError(f"an undisturbed run ended with {codes}: {job.said()[-3000:]}")
    return job


def goes_on(
    command: list[str], folder: Path, finished: Path, count: int = 1, first: int = 1, **options
) -> tuple[list[str], Job]:
    """Start a command again, until it ends. Return what is wrong with it beside the uninterrupted run, and the job.

    first: steps before this one are not compared in metrics.jsonl.
    """
    job = Job(command, folder, count, **options)
    codes = job.ended(WHOLE)
    found = job.wrong(codes, {0})
    return found or different(Path(workdir_of(command)), finished, first), job


def workdir_of(command: list[str]) -> str:
    return next(word.removeprefix("--workdir=") for word in command if word.startswith("--workdir="))


def different(run: Path, finished: Path, first: int = 1) -> list[str]:
    """Return how a run differs from the uninterrupted one: losses, norms, ids, validation, the last checkpoint, bit for bit.

    first: lines of steps before this one are not compared.
    """
    if first > 1:
        pair = run.with_name("run-compared"), run.with_name("finished-compared")
        for folder, copy in zip((run, finished), pair):
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            rows = (json.dumps(row) + "\n" for row in runs.lines(folder / "metrics.jsonl") if row["step"] >= first)
            (copy / "metrics.jsonl").write_text("".join(rows))
        return different(*pair)
    try:
        runs.assert_same_run(run, finished)
    except (AssertionError, OSError, ValueError, KeyError) as error:
        return [f"not equal: {' '.join(str(error).split())[:400] or type(error).__name__}"]
    if rest := [path.name for path in (run / "checkpoints").iterdir() if "tmp" in path.name]:
        return [f"left over: {rest}"]
    return []


def contents(folder: Path) -> dict[str, object]:
    """Return the bytes of every file, and the kind of what is no file, by path; without the lock."""
    found: dict[str, object] = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = os.readlink(path)
            elif path.is_file():
                found[key] = path.read_bytes()
            else:
                found[key] = path.stat().st_mode
    found.pop(".lock", None)
    return found
