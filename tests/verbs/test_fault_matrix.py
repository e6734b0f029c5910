"""A few cases of the fault matrix. `make test-faults` runs all of them (tests/faults)."""

import pytest

from tests.faults.cases import CASES
from tests.faults.kills import kills
from tests.faults.outcome import Skipped
from tests.faults.prepared import Prepared

FAST = ("damage-checkpoint-swapped", "damage-metrics-half", "disk-full-save", "lock-second-run")
NAMED = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in ("clock-back-within", "disk-slow"))]
)
def test_a_case_is_as_its_table_says(name, prepared, tmp_path):
    try:
        outcome = NAMED[name].make(tmp_path, prepared)
    except Skipped as skipped:
        pytest.skip(str(skipped))
    assert not outcome.wrong, outcome


@pytest.mark.slow
def test_some_kills_of_two_processes(prepared, tmp_path):
    outcome = kills(2, tmp_path, prepared, number=5, last=1)
    assert not outcome.wrong, outcome


def test_names_of_cases_are_unique():
    assert len(NAMED) == len(CASES)
    assert sum(name.startswith("damage-") for name in NAMED) >= 24
