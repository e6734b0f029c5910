"""A host that is slower than the others is found by its own times, and named when it is slow in a row."""

import numpy as np
import pytest

from lm.train.stragglers import IN_ROW, Stragglers, compared


@pytest.mark.parametrize(
    "times, least, ratio, slowest",
    [
        ([1.0, 1.1, 3.0, 0.9], 0.0, 3.0, 2),
        ([2.0, 1.0], 0.0, 2.0, 0),
        ([0.004, 0.001], 0.05, 0.08, 0),  # of a long step, nobody minds
        ([1.0, 1.0, 1.0], 0.0, 1.0, 0),
    ],
)
def test_the_slowest_against_the_median_of_the_others(times, least, ratio, slowest):
    assert compared(np.asarray(times), least) == (pytest.approx(ratio), slowest)


def test_a_host_is_named_once_when_it_is_slow_in_a_row():
    stragglers = Stragglers(10, 1.5)

    def said(slow):
        return stragglers._named("devices", slow, 2.0, 10)

    assert [said(2) for _ in range(IN_ROW - 1)] == [[]] * (IN_ROW - 1)
    assert said(None) == [] and said(2) == []  # it was fast in between
    assert [said(2) for _ in range(IN_ROW - 2)] == [[]] * (IN_ROW - 2)
    (line,) = said(2)
    assert "host 2 is slow" in line and "2.0 times" in line and said(2) == []


def test_the_probe_of_this_host_takes_time():
    assert Stragglers(10, 1.5)._probe() > 0
