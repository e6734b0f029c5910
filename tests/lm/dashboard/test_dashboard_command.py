"""python -m lm.dashboard as a user starts it: its address, its end, and wrong input in one line."""

import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.lm.reports.made_runs import trained
from tests.verbs import runs

COMMAND = (sys.executable, "-m", "lm.dashboard")


def test_it_says_its_address_and_ends_at_a_signal(tmp_path):
    trained(tmp_path / "run")
    said, end = os.pipe()
    with open(os.devnull, "r+b") as nothing, open(end, "wb") as stdout:
        command = [*COMMAND, str(tmp_path), "--port=0"]
        server = runs.launch(command, runs.environment(**runs.NO_JAX), nothing, stdout, nothing)
    with open(said) as lines:
        try:
            line = lines.readline()
            address = line.split(": ")[1].split()[0]
            assert line == f"{tmp_path}: {address} shows the runs; Ctrl-C ends it\n" and address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(address) as answer:
                assert b">run<" in answer.read()
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "name a folder of runs, such as runs; --help tells what there is"),
        (["nowhere"], "nowhere: no such folder; name folders of runs"),
        (["README.md"], "README.md: a file, not a folder; name folders of runs"),
        (["lm", "--port=x"], "flag --port=x: invalid literal for int() with base 10: 'x'"),
        (["lm", "--ports=1"], "Unknown command line flag 'ports'. Did you mean: port ?"),
        (
            ["lm", "--port=0", "--host=0.0.0.0"],
            "--host=0.0.0.0: other machines reach it: add --public if all of them may read the runs",
        ),
        (["lm", "--host=no.such.host.invalid"], "--host=no.such.host.invalid: no such address; name one of this machine"),
    ],
)
def test_wrong_input_is_one_line(arguments, said):
    done = runs.run([*COMMAND, *arguments], **runs.NO_JAX)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"lm.dashboard: {said}") and done.stderr.count("\n") == 1


def test_help_tells_how_and_jax_is_not_loaded():
    done = runs.run([*COMMAND, "--help"], **runs.NO_JAX)
    assert done.returncode == 0 and "python -m lm.dashboard RUNS_DIR" in done.stdout and "--port" in done.stdout
    heavy = "{'jax', 'flax', 'torch', 'pandas', 'matplotlib'}"
    script = f"import sys, lm.dashboard.app, lm.dashboard.__main__; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
