"""A process of a job is killed or frozen: every other one says so in one line and ends, and the same command goes on, also with
fewer or more processes."""

import signal

import pytest

from lm.parallel.heartbeat import LOST
from tests.verbs import runs
from tests.verbs.test_hosts import ends, start_all, start_both

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "signum, process", [(signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1), (signal.SIGSTOP, 0)]
)
def test_a_lost_process_ends_the_other(signum, process, fresh, finished, text, tmp_path, monkeypatch):
    monkeypatch.setenv("LMCRAFT_LOST_SECONDS", "12")
    command = runs.line(fresh, data__input=text)
    processes = start_both(command, tmp_path)
    assert runs.wait(processes[0], lambda: len(runs.steps_saved(fresh)) >= 2), (tmp_path / "0").read_text()
    processes[process].send_signal(signum)
    code = processes[1 - process].wait(runs.DEADLINE)
    said = runs.complaint((tmp_path / str(1 - process)).read_text())
    for one in processes:
        one.kill()
        one.wait()
    assert code == LOST, said
    ours = [line for line in said if line.startswith("train.py: ")]
    assert ours == [f"train.py: process {process} was lost: its host or the network is down, or it was killed; run the same "
                    "command to resume"], said  # fmt: skip

    codes, said = ends(start_both(command, tmp_path), tmp_path)
    assert codes == [0, 0], said
    runs.assert_same_run(fresh, finished, tolerance=1e-5)


def test_four_two_four(fresh, finished, text, tmp_path, monkeypatch):
    """Two of four hosts are lost, two go on, and later four again: the same batches and losses as of a run without all this."""
    monkeypatch.setenv("LMCRAFT_LOST_SECONDS", "12")
    command = runs.line(fresh, data__input=text)
    processes = start_all([command] * 4, tmp_path)
    assert runs.wait(processes[0], lambda: len(runs.steps_saved(fresh)) >= 1), (tmp_path / "0").read_text()
    for process in processes[2:]:
        process.kill()
    codes = [process.wait(runs.DEADLINE) for process in processes]
    assert codes[:2] == [LOST, LOST], (tmp_path / "0").read_text()
    first = runs.steps_saved(fresh)[-1]

    processes = start_both(command, tmp_path)
    assert runs.wait(processes[0], lambda: runs.steps_saved(fresh)[-1] > first), (tmp_path / "0").read_text()
    for process in processes:
        process.send_signal(signal.SIGTERM)
    codes, said = ends(processes, tmp_path)
    assert codes == [143, 143], said
    assert first < runs.steps_saved(fresh)[-1] < runs.STEPS

    codes, said = ends(start_all([command] * 4, tmp_path), tmp_path)
    assert codes == [0] * 4, said
    runs.assert_same_run(fresh, finished, tolerance=1e-5)
