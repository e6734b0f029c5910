"""A loop that hangs is ended with the stacks of its threads; one that goes on is left alone."""

import threading

import pytest

from lm.parallel import hosts
from lm.train.events.health import FIRST, HUNG, MIN, TIMES, Watchdog

DEADLINE = 60


class End:
    """Takes the message of the watchdog, and lets the hung thread go."""

    def __init__(self):
        self.message, self.called = None, threading.Event()

    def __call__(self, message):
        self.message = message
        self.called.set()


def a_collective_that_never_returns(end):
    assert end.called.wait(DEADLINE)


@pytest.mark.parametrize(
    "phase, timeout, other, said",
    [
        ("wait", 0.1, 0, "no step has finished after step 7 within 0.1 s (watchdog.timeout)"),
        ("data", 0.1, 0, "no step has finished after step 7 within 0.1 s (watchdog.timeout)"),
        ("validation", 0, 0.1, "validation has not finished within 0.1 s (watchdog.other)"),
        ("save", 0, 0.1, "save has not finished within 0.1 s (watchdog.other)"),
    ],
)
def test_a_hang_is_named_with_its_line(tmp_path, capfd, phase, timeout, other, said):
    end = End()
    watchdog = Watchdog(timeout, other, tmp_path / "hang-0.txt", end)
    watchdog.enter("wait")
    watchdog.stepped(7, 0.01)
    watchdog.enter(phase)
    watchdog.start()
    a_collective_that_never_returns(end)
    watchdog.stop()
    assert end.message.startswith(said) and "resume" in end.message and str(tmp_path / "hang-0.txt") in end.message
    assert "test_watchdog.py:" in end.message and "(a_collective_that_never_returns)" in end.message
    for stacks in ((tmp_path / "hang-0.txt").read_text(), capfd.readouterr().err):
        assert "in a_collective_that_never_returns" in stacks and "Current thread" in stacks
    assert watchdog._at_end not in hosts.at_end


def test_steps_that_finish_and_other_phases_are_no_hang(tmp_path):
    """The step's limit does not count in a validation, and a finished step begins it anew."""
    end = End()
    watchdog = Watchdog(0.2, 0, tmp_path / "hang-0.txt", end)
    watchdog.enter("wait")
    watchdog._waited = 0.19
    watchdog.stepped(1, 0.01)
    assert watchdog._waited == 0
    watchdog.start()
    watchdog.enter("validation")
    assert not end.called.wait(0.5)
    watchdog.enter("wait")
    assert end.called.wait(DEADLINE)
    watchdog.stop()


def test_the_chosen_limit_follows_the_steps(tmp_path):
    watchdog = Watchdog(0, 0, tmp_path / "hang-0.txt", End())
    watchdog.enter("wait")
    assert watchdog.limit()[0] == FIRST
    for step, seconds in enumerate([100.0, 90.0, 110.0, 5000.0, 100.0]):
        watchdog.stepped(step, seconds)
    assert watchdog.limit() == (TIMES * 100, "watchdog.timeout, chosen")
    for step in range(200):
        watchdog.stepped(step, 0.1)
    assert watchdog.limit()[0] == MIN
    watchdog.enter("compile")
    assert watchdog.limit()[0] == float("inf")


def test_the_other_processes_write_their_stacks_too(tmp_path):
    watchdog = Watchdog(1000, 0, tmp_path / "hang-1.txt", End())
    watchdog.start()
    for call in list(hosts.at_end):
        call(1, "train.py: another failure")
    assert not list(tmp_path.iterdir())
    for call in list(hosts.at_end):
        call(HUNG, "train.py: it hangs")
    watchdog.stop()
    assert "in test_the_other_processes_write_their_stacks_too" in (tmp_path / "hang-1.txt").read_text()
