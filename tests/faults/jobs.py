"""Start train.py as a user does, with one process or several, and see how it ends.

Every wait has a limit of LIMIT seconds: a process that lives longer hangs.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.verbs import runs

LIMIT = 60.0  # seconds in which a process must have ended after a fault
WHOLE = 400.0  # seconds that an undisturbed run may take on a busy machine
QUICK = {"LMCRAFT_LOST_SECONDS": "6", "LMCRAFT_JOIN_SECONDS": "20"}  # lost processes are noticed sooner than by default
HUNG = None  # the exit code of a process that had to be killed


class Job:
    """The processes of one command. Process i writes its stderr to FOLDER/i and its stdout to FOLDER/i.out.

    before: words in front of the command, such as those of strace. variables: of the environment.
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        count: int = 1,
        before: Sequence[str] = (),
        variables: dict[str, str] | None = None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.count, self.begun = folder, count, time.monotonic()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.processes = []
        for i in range(count):
            job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(i)}
            env = runs.environment(**runs.fake_devices(1), **(job if count > 1 else {}), **(variables or {}))
            with open(os.devnull) as nothing, open(folder / f"{i}.out", "w") as printed, open(folder / str(i), "w") as said:
                self.processes.append(runs.launch([*before, *command], env, nothing, printed, said))

    def until(self, condition: Callable[[], bool], limit: float = WHOLE) -> bool:
        """Poll until the condition holds. Return False if a process has ended, or `limit` seconds have passed."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if condition():
                return True
            if any(process.poll() is not None for process in self.processes):
                return False
            time.sleep(0.002)
        return False

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.begun

    def alive(self) -> bool:
        """Return whether all processes still run."""
        return all(process.poll() is None for process in self.processes)

    def kill(self, number: int) -> bool:
        """Send SIGKILL to a process. Return False if it had ended before."""
        alive = self.processes[number].poll() is None
        self.processes[number].kill()
        return alive and self.processes[number].wait() == -signal.SIGKILL

    def signal(self, number: int, signum: int) -> None:
        self.processes[number].send_signal(signum)

    def ended(self, limit: float) -> list[int | None]:
        """Return the exit codes; HUNG for each process that did not end within `limit` seconds, which is killed."""
        end = time.monotonic() + limit
        codes: list[int | None] = []
        for process in self.processes:
            try:
                codes.append(process.wait(max(0.0, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                codes.append(HUNG)
        self.stop()
        return codes

    def stop(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    def complaints(self, number: int = 0) -> list[str]:
        """Return the lines of a process on stderr, without progress."""
        return runs.complaint((self.folder / str(number)).read_text(errors="replace"))

    def printed(self) -> str:
        """Return what process 0 has written to stdout."""
        return (self.folder / "0.out").read_text(errors="replace")

    def said(self) -> str:
        """Return all that all processes have written."""
        names = [name for i in range(self.count) for name in (str(i), f"{i}.out")]
        return "\n".join((self.folder / name).read_text(errors="replace") for name in names)

    def wrong(self, codes: Sequence[int | None], wanted: set[int]) -> list[str]:
        """Return what is wrong with these exit codes and with what was said: hangs, tracebacks, an end without its line."""
        found = []
        for i, code in enumerate(codes):
            ours = [line for line in self.complaints(i) if line.startswith("train.py: ")]
            if code is HUNG:
                found.append(f"process {i} hung")
            elif code not in wanted and code != -signal.SIGKILL:
                found.append(f"process {i} ended with {code}: {' '.join(self.complaints(i))[-300:]}")
            elif code > 0 and len(ours) != 1:
                found.append(f"process {i} ended with {code} and {len(ours)} lines: {ours}")
        if "Traceback (most recent call last)" in self.said():
            found.append(f"a traceback: {self.said()[-600:]}")
        return found


def refused(job: Job, codes: Sequence[int | None], words: Sequence[str], code: int = 2) -> list[str]:
    """Return what is wrong with an end by this exit code and one line on stderr that has these words."""
    found = job.wrong(codes, {code})
    for i in range(job.count):
        said = job.complaints(i)
        ours = [line for line in said if line.startswith("train.py: ")]
        if not found and (len(ours) != 1 or (job.count == 1 and len(said) != 1)):
            found.append(f"process {i} said {said}")
        found += [f"process {i} did not say {word!r} but {said}" for word in words if word not in " ".join(ours)]
    return found


def is_root() -> bool:
    return os.name == "posix" and os.geteuid() == 0
