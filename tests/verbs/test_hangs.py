"""A step that hangs ends every process with the stacks of its threads, and the same command goes on. A slow host is named."""

import json

import pytest

from lm.train.events.health import HUNG
from tests.verbs import runs
from tests.verbs.test_hosts import ends, start_both


def slow(command: list[str], code: str) -> list[str]:
    return [command[0], "-m", "tests.verbs.slow_batches", code, *command[2:]]


@pytest.mark.slow
def test_a_hung_step_of_one_process(fresh, finished, text):
    command = runs.line(fresh, data__input=text, watchdog__timeout=10)
    done = runs.run(slow(command, "n == 50 and time.sleep(1e6)"))
    assert done.returncode == HUNG, done.stderr[-4000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert "no step has finished after step 49 within 10 s (watchdog.timeout)" in line and str(fresh / "hang-0.txt") in line
    for stacks in (done.stderr, (fresh / "hang-0.txt").read_text()):
        assert "in batch" in stacks and "lm/train/loop.py" in stacks
    goes_on(fresh, finished, text, command)


def goes_on(fresh, finished, text, command):
    assert runs.steps_saved(fresh)[-1] == 40
    done = runs.run(command)
    assert done.returncode == 0, done.stderr[-4000:]
    runs.assert_same_run(fresh, finished, tolerance=1e-5)
    report = json.loads((fresh / "report.json").read_text())
    kept = report["goodput"]
    lost = kept["seconds"]["lost steps, done again after a failure"]
    # The main thread of process 0 waited for data, or with two processes for the step.
    assert kept["attempts"] == 2 and lost > 0 and lost + kept["seconds"]["waiting for data"] > 9 and 0 < kept["goodput"] < 1
    assert sum(kept["seconds"].values()) == pytest.approx(kept["wall"])
    assert "Goodput" in (fresh / "report.html").read_text()
    assert 0 < runs.training(fresh)[-1]["goodput"] < 1


@pytest.mark.slow
def test_a_process_that_stops_inside_a_step_ends_both(fresh, finished, text, tmp_path):
    """Process 1 never gets its batch; process 0 waits for it in the collective operations of the step."""
    command = runs.line(fresh, data__input=text, watchdog__timeout=10)
    codes, said = ends(start_both(command, tmp_path, slow(command, "n == 50 and time.sleep(1e6)")), tmp_path)
    assert codes == [HUNG, HUNG], said
    for process, lines in enumerate(said):
        (line,) = [line for line in lines if line.startswith("train.py: ")]
        assert "no step has finished after step" in line and "within 10 s (watchdog.timeout)" in line
        assert "lm/train/loop.py" in (fresh / f"hang-{process}.txt").read_text()
    assert "in batch" in (fresh / "hang-1.txt").read_text()
    goes_on(fresh, finished, text, command)


@pytest.mark.slow
def test_a_slow_host_is_named(fresh, text, tmp_path):
    command = runs.line(fresh, data__input=text, steps=60, watchdog__compare_every=10)
    codes, said = ends(start_both(command, tmp_path, slow(command, "time.sleep(0.3)")), tmp_path)
    assert codes == [0, 0], said
    printed = (tmp_path / "0.out").read_text() + (tmp_path / "0").read_text()
    (line,) = [line for line in printed.splitlines() if "is slow" in line and "batches" in line]
    assert "host 1 is slow" in line
    compared = [line["stragglers/host"] for line in runs.training(fresh) if "stragglers/host" in line]
    assert len(compared) == 6 and min(compared[-3:]) > 1.5


def test_one_process_is_compared_with_nobody(finished):
    assert not any("stragglers/host" in line for line in runs.training(finished))
    assert json.loads((finished / "report.json").read_text())["goodput"]["attempts"] == 1
