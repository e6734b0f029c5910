"""A clock that is set back or ahead by a day, between two starts or while a run goes on. Needs libfaketime.

libfaketime shifts the wall clock of a whole process, C++ included. Monotonic clocks and the times of files stay, as they do
when the clock of a machine is set.
"""

import json
import signal
from pathlib import Path

import numpy as np

from lm.parallel.heartbeat import LOST
from lm.train.history import json_lines
from tests.faults.jobs import LIMIT, WHOLE, Job
from tests.faults.outcome import Outcome, Skipped
from tests.faults.prepared import Prepared, different, goes_on
from tests.verbs import runs

DAY = "24h"
# JAX's coordination service measures heartbeats with the wall clock. If it is set back, it takes all processes for lost.
ABORTED = {-signal.SIGABRT, LOST}


def library() -> str:
    """Return the path of libfaketime. Raises Skipped."""
    found = [path for root in ("/usr/lib", "/usr/lib64") for path in Path(root).glob("**/faketime/libfaketimeMT.so.1")]
    if not found:
        raise Skipped("needs libfaketime (package faketime)")
    return str(found[0])


def shifted(by: str, within: bool, count: int, folder: Path, prepared: Prepared) -> Outcome:
    """Kill a run after step 30 and go on with another clock; within: the clock is set while the run goes on.

    by: such as -24h. The run must be equal, no duration negative, and TensorBoard must show all steps.
    """
    workdir, clock = folder / "run", folder / "clock"
    command = prepared.line(workdir, keep_hours=1)
    clock.write_text("+0\n")
    variables = {
        "LD_PRELOAD": library(),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    job = Job(command, folder / "said", count, variables=variables)
    if not job.until(lambda: any(row["step"] >= 30 for row in runs.training(workdir)[-50:])):
        job.stop()
        return Outcome("", [f"no step 30: {job.said()[-500:]}"])
    clock.write_text(f"{by}\n")
    wrong = []
    if within:
        codes = job.ended(WHOLE)
        if count > 1 and set(codes) <= ABORTED:
            wrong, _ = goes_on(command, folder / "said", prepared.finished(count), count, variables=variables)
            return Outcome(f"exit {codes}; again: equal" if not wrong else f"exit {codes}", wrong + durations(workdir))
        wrong += job.wrong(codes, {0})
        wrong += wrong or different(workdir, prepared.finished(count))
    else:
        job.kill(0)
        job.ended(LIMIT)
        wrong, _ = goes_on(command, folder / "said", prepared.finished(count), count, variables=variables)
    wrong = wrong or durations(workdir) + board(workdir)
    kept = json.loads((workdir / "report.json").read_text())["goodput"] if not wrong else {}
    return Outcome(f"equal; wall {kept['wall']:.0f} s, goodput {kept['goodput']:.2f}" if kept else "", wrong)


def durations(workdir: Path) -> list[str]:
    """Return what is wrong with the durations of a run."""
    report = json.loads((workdir / "report.json").read_text())
    kept, wrong = report["goodput"], []
    parts = list(kept["seconds"].values())
    if min(parts) < 0 or not np.isclose(sum(parts), kept["wall"]) or not 0 < kept["goodput"] <= 1:
        wrong.append(f"goodput {kept}")
    kept_records = json_lines(workdir / "goodput.jsonl")
    wrong += [f"negative time: {record}" for record in kept_records if min(record["seconds"].values()) < 0]
    stages = json.loads((workdir / "stages.json").read_text()) if (workdir / "stages.json").exists() else {}
    wrong += [f"stage {name} took {value} s" for name, value in stages.items() if isinstance(value, float) and value < 0]
    rates = [row["tokens_per_second"] for row in runs.training(workdir)]
    return wrong + [f"{rate} tokens/s" for rate in rates if not 0 < rate < 1e9]


def board(workdir: Path) -> list[str]:
    """Return what is wrong with the steps that TensorBoard shows.

    It reads the files in the order of their names. When a start begins at a step, it forgets later steps of earlier files.
    """
    from tensorboardX.proto.event_pb2 import Event

    shown: dict[int, float] = {}
    for path in sorted((workdir / "tensorboard").glob("events*")):
        for content in records(path):
            event = Event.FromString(content)
            if event.HasField("session_log"):
                shown = {step: value for step, value in shown.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "loss":
                    shown[event.step] = value.simple_value
    missing = [step for step in range(1, runs.STEPS + 1) if step not in shown]
    return [f"TensorBoard lacks {len(missing)} steps, from {missing[0]} on"] if missing else []


def records(path: Path):
    """Yield the records of a file of events: a length of 8 bytes, 4 of its checksum, the content, 4 of its checksum."""
    data = path.read_bytes()
    at = 0
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        if at + 16 + size > len(data):
            return
        yield data[at + 12 : at + 12 + size]
        at += 16 + size
