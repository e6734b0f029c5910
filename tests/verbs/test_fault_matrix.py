"""A few cases of the fault matrix. `make test-faults` runs all of them (tests/faults)."""

import pytest

from tests.faults.cases import CASES
from tests.faults.kills import kills
from tests.faults.outcome import Skipped
from tests.faults.prepared import Prepared

# Checkpoints that are damaged, full disks and second runs have quick tests of their own (test_resume.py, test_bad_input.py,
# test_workdir.py).
SOME = (
    "damage-metrics-half",
    "damage-checkpoint-swapped",
    "disk-full-save",
    "lock-second-run",
    "clock-back-within",
    "disk-slow",
)
NAMED = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def prepared(text, finished, tmp_path_factory):
    """Its text and its uninterrupted run are those of the session."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, made in (("text", text), ("finished-1", finished)):
        (folder / name).symlink_to(made)
        (folder / f"{name}.made").touch()
    return Prepared(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
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
