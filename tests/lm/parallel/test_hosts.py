"""Two processes of one job: what the first does for both, and how an error on one ends both."""

import re
import socket
import sys

import numpy as np
import pytest

from lm.parallel.heartbeat import LOST
from tests.verbs import runs
from tests.verbs.test_hosts import ends, start_all

GLOO = re.compile(r"\[Gloo\]|connected to \d+ peer ranks")  # its threads write their lines in parts, one amid the other


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def job(name: str, folder, devices: int = 1) -> tuple[list[int], list[list[str]], list[list[str]]]:
    """Exit codes, stderr and stdout of both, without what gloo says: two of its threads may share a line. devices: of each."""
    processes = start_all([[sys.executable, "-m", "tests.lm.parallel.job", name, str(folder)]] * 2, folder, devices)
    codes, said = ends(processes, folder)
    printed = [(folder / f"{i}.out").read_text().splitlines() for i in range(2)]
    return codes, said, [[line for line in lines if line and not GLOO.search(line)] for lines in printed]


def test_both_get_what_the_first_one_does(tmp_path):
    codes, said, printed = job("agrees", tmp_path)
    assert codes == [0, 0], said
    assert printed[0] == printed[1]
    first, *errors, alone, seen, whole = printed[0]
    assert seen == "True False False []"
    assert first.endswith("[0, 1, 2]")
    assert errors == ["UserError: ask another", "ZeroDivisionError: none", "RuntimeError: Unreadable: 1 and 2"]
    assert "must not compute on the mesh" in alone and whole == "[0.0, 1.0] [0, 1]"


def test_sums_across_processes_need_no_reduce_scatter(tmp_path, monkeypatch):
    """gloo's is at times wrong (lm/parallel/gloo.py). No program is kept: later, only one of the processes would read it."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    codes, said, printed = job("sums", tmp_path, devices=2)
    assert codes == [0, 0], said
    rows = np.arange(16.0).reshape(4, 4)
    of_gather = np.repeat([[0.0], [2.0], [0.0], [2.0]], 4, 1)  # both devices of fsdp add to the gradient
    assert printed[0] == printed[1] == [f"{rows.sum(0).tolist()} {of_gather.ravel().tolist()}", "False True"]
    assert not list(tmp_path.glob("xla/*"))


def test_a_fault_on_one_ends_the_other_in_a_collective(tmp_path):
    codes, said, _ = job("breaks", tmp_path)
    assert codes == [1, 1], said
    assert said[0] == ["job.py: process 1: ValueError: a fault of ours"]
    assert said[1][0].startswith("Traceback") and said[1][-1] == "job.py: ValueError: a fault of ours"


def test_an_interrupt_of_one_ends_the_other_that_waits(tmp_path):
    codes, said, _ = job("stops", tmp_path)
    assert codes == [130, 130], said
    assert said[1] == [said[0][0].replace("job.py: ", "job.py: process 0: ")]


@pytest.mark.parametrize("process", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_waits_for_the_others_only_so_long(process):
    job = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(process)}
    if not process:  # which must listen
        job["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
    done = runs.run([sys.executable, "-c", "from lm.parallel import hosts; hosts.start()"], LMCRAFT_JOIN_SECONDS="1", **job)
    assert done.returncode == LOST, done.stderr[-2000:]
    assert "not all processes of the job have joined within 1 s (LMCRAFT_JOIN_SECONDS)" in done.stderr
