"""The accounting of a run's wall time over its attempts."""

import json
import time

import pytest

from lm.train import goodput
from lm.train.goodput import Goodput, summary


def record(attempt, time, step, **more):
    seconds = {name: value for name, value in more.items() if name != "end"}
    return {"attempt": attempt, "time": time, "step": step, "seconds": seconds} | ({"end": True} if "end" in more else {})


def test_one_attempt_adds_up():
    found = summary(
        [record(0, 2, 0, start=2), record(0, 100, 50, start=10, compile=5, dispatch=5, wait=65, data=5, save=4, end=1)]
    )
    assert found["goodput"] == pytest.approx(0.7) and found["wall"] == 100 and found["attempts"] == 1
    assert found["seconds"] == pytest.approx(
        {
            "useful steps": 70,
            "compilation": 5,
            "waiting for data": 5,
            "saving": 4,
            "start-up": 10,
            "other": 6,  # in no phase
        }
    )


def test_steps_after_the_checkpoint_are_lost_and_the_time_between_is_down():
    first = [record(0, 1, 0, start=1), record(0, 50, 20, start=10, wait=40), record(0, 80, 33, start=10, wait=70)]
    second = [record(100, 105, 20, start=5), record(100, 200, 60, start=5, wait=95, end=1)]
    found = summary(first + second)
    assert found["attempts"] == 2 and found["wall"] == 200
    assert found["seconds"] == pytest.approx(
        {"useful steps": 40 + 95, "lost steps, done again after a failure": 30, "start-up": 15, "down between attempts": 20}
    )


def test_the_time_after_the_end_of_a_run_that_is_trained_on_is_not_down_time():
    first = [record(0, 100, 20, wait=100, end=1)]
    found = summary([*first, record(5000, 5010, 20, start=10), record(5000, 5100, 40, start=10, wait=90, end=1)])
    assert found["wall"] == 200 and found["seconds"] == {"useful steps": 190, "start-up": 10}


def test_a_resume_before_every_record_loses_all_steps():
    found = summary([record(0, 50, 9, wait=50), record(60, 70, 0, start=10)])
    assert found["seconds"] == {"lost steps, done again after a failure": 50, "start-up": 10, "down between attempts": 10}
    assert found["goodput"] == 0


def test_a_hang_right_after_a_save_is_lost():
    own = [record(0, 50, 9, wait=50) | {"saved": True}, record(0, 90, 9, wait=90)]
    found = summary([*own, record(90, 100, 9, start=10)])
    assert found["seconds"] == {"useful steps": 50, "lost steps, done again after a failure": 40, "start-up": 10}


def test_nothing_is_known_without_records(tmp_path):
    assert goodput.of(tmp_path) is None and summary([]) == {"goodput": 0.0, "wall": 0.0, "attempts": 0, "seconds": {}}


def test_phases_are_written_and_a_torn_line_is_ignored(tmp_path):
    one = Goodput(tmp_path, 0)
    for phase in ("compile", "data", "wait", "save"):
        one.enter(phase)
    one.record(3)
    one.close(end=False)
    path = tmp_path / goodput.FILE
    whole = path.read_text()
    path.write_text(whole + '{"attempt": 1, "ti')  # a kill
    two = Goodput(tmp_path, 3)
    two.enter("wait")
    two.close(end=True)
    lines = path.read_text().splitlines()
    assert path.read_text().startswith(whole) and lines[len(whole.splitlines())] == '{"attempt": 1, "ti'
    last = json.loads(lines[-1])
    assert last["step"] == 3 and last["end"] and last["seconds"].keys() >= {"start", "wait"}
    found = goodput.of(tmp_path)
    assert found["attempts"] == 2 and sum(found["seconds"].values()) == pytest.approx(found["wall"])
    assert two.fraction == pytest.approx(found["goodput"])


def test_other_processes_write_nothing(tmp_path):
    other = Goodput(tmp_path, 0, enabled=False)
    other.enter("wait")
    other.close(end=True)
    assert not list(tmp_path.iterdir())


def test_compilation_counts_as_such_in_every_phase(tmp_path):
    import jax

    one = Goodput(tmp_path, 0)
    one.enter("validation")
    jax.jit(lambda x: x * 3 + 1)(1.0)
    one.enter("wait")
    one.close(end=True)
    assert one.seconds["compile"] > 0


def test_data_that_came_while_the_devices_computed_cost_nothing(tmp_path):
    one = Goodput(tmp_path, 0)
    one.enter("data")
    one.enter("data", busy=False)
    waited = one.seconds["data"]
    one.enter("dispatch", busy=True)
    one.close(end=True)
    assert one.seconds["data"] == waited and one.seconds["data hidden"] > 0


def test_a_clock_that_is_set_back_makes_no_time_negative(tmp_path, monkeypatch):
    """In the middle of an attempt, and before the next one."""
    now = time.time()
    one = Goodput(tmp_path, 0)
    one.enter("wait")
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    one.record(3)
    one.close(end=False)
    Goodput(tmp_path, 3).close(end=True)
    found = goodput.of(tmp_path)
    assert found["attempts"] == 2 and found["wall"] < 3600
    assert min(found["seconds"].values()) >= 0 and sum(found["seconds"].values()) == pytest.approx(found["wall"])


def test_records_are_written_after_the_clock_was_set_back(tmp_path, monkeypatch):
    now, passed = time.time(), time.perf_counter()
    one = Goodput(tmp_path, 0)
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    monkeypatch.setattr(time, "perf_counter", lambda: passed + 3600)
    one.stepped(7)
    assert json.loads((tmp_path / goodput.FILE).read_text().splitlines()[-1])["step"] == 7
    one.close(end=True)


def test_wrong_lines_of_a_damaged_file_are_skipped(tmp_path):
    whole = record(0, 50, 9, wait=50)
    wrong = [{"attempt": 1, "seconds": {}}, record("0", 50, 9), record(0, 50, None), record(0, 50, 9, wait="x"), {"seconds": 3}]
    assert summary([*wrong, whole]) == summary([whole])
    (tmp_path / goodput.FILE).write_text("".join(json.dumps(one) + "\n" for one in [*wrong, {"time": "x"}]))
    Goodput(tmp_path, 9).close(end=True)
    assert goodput.of(tmp_path)["attempts"] == 1
