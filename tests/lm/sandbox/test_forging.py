"""No program passes a test whose answers it does not know; honest programs pass."""

import os
import sys

import pytest

from lm.sandbox.run import Check, check_many, run_many
from tests.lm.sandbox.forging import FORGING, HONEST, RIGHT, SECRET, SETUP, TEST

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the sandbox stops accidents alone")


SLOW = [pytest.param((layer,), marks=pytest.mark.slow) for layer in ("landlock", "namespaces")]


@pytest.mark.parametrize("without", [(), *SLOW])
def test_no_program_forges_a_verdict(without):
    checks = [Check(code, TEST, SETUP, "f") for code in FORGING.values()]
    results = dict(zip(FORGING, check_many(checks, timeout=2.0, memory_mib=128, without=without), strict=True))
    assert not [name for name, result in results.items() if result.finished]
    assert not [name for name, result in results.items() if SECRET in result.stdout]
    assert {result.outcome for result in results.values()} <= {"ok", "error", "timeout", "memory", "killed", "refused"}
    for name in ("write the report", "leave in a call", "exit by exception"):
        assert results[name].outcome == "ok"  # it left early
    assert results["wrong"].stderr.endswith("AssertionError\n")


def test_the_scan_of_memory_finds_what_is_there():
    code = f"{FORGING['own memory']}\nkept = {{'mine': b'{SECRET}' * 2}}"
    assert SECRET in check_many([Check(code, TEST, SETUP, "f")], timeout=20.0)[0].stdout


def test_honest_programs_pass():
    checks = [Check(*parts) for parts in HONEST.values()]
    stdin = [result.stderr for result in check_many(checks, timeout=20.0) if not result.finished]
    assert [error.splitlines()[-1] for error in stdin] == ["EOFError: EOF when reading a line"]  # "output and input"


def test_the_program_and_its_test_share_nothing_but_calls():
    code = "import os\nstate = []\ndef f(x):\n    state.append(x)\n    return os.getpid(), list(state), os.listdir()"
    test = (
        "import os\npid, state, files = f(1)\nassert f(2)[1] == [1, 2] and pid != os.getpid() and files == os.listdir() == []"
    )
    results = check_many([Check(code, test, "", "f")] * 3, timeout=20.0)
    assert [(result.outcome, result.finished) for result in results] == [("ok", True)] * 3


def test_verdicts_come_in_the_order_of_the_programs(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    checks = [Check(RIGHT if n % 3 else "def f(*args): return 0", TEST, SETUP, "f") for n in range(12)]
    assert [result.finished for result in check_many(checks, timeout=20.0)] == [bool(n % 3) for n in range(12)]
    assert check_many([]) == []


def test_a_run_alone_can_forge_what_it_reports():
    """Why a grader needs `check_many`: the docstring of Result says so."""
    assert run_many([FORGING["write the report"]])[0].finished
