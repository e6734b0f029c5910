"""Runs whose workdir, data and models lie in buckets: killed machines, several jobs, and every verb that reads a model."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests import emulators
from tests.verbs import runs
from tests.verbs.test_resume import stop

CHAT = {"messages": [{"role": "user", "content": "Where is the key?"}, {"role": "assistant", "content": "Under the mat."}]}


@pytest.fixture(scope="module")
def s3(text):
    with emulators.s3() as bucket:
        for path in text.iterdir():
            bucket.put(f"text/{path.name}", path.read_bytes())
        yield bucket


@pytest.fixture(scope="module")
def gs():
    with emulators.gs() as bucket:
        yield bucket


def machine(folder: Path, *buckets) -> dict[str, str]:
    """Variables of a machine whose cache is a folder, and which reaches the buckets."""
    variables = {"XDG_CACHE_HOME": str(folder)}
    for bucket in buckets:
        variables |= bucket.variables
    return variables


def fetched(bucket, name: str, to: Path) -> Path:
    """A local copy of a folder of a bucket."""
    for inside in bucket.names(name):
        (to / inside).parent.mkdir(parents=True, exist_ok=True)
        (to / inside).write_bytes(bucket.read(f"{name}/{inside}"))
    return to


def whole_steps(bucket, name: str) -> list[int]:
    names = bucket.names(name)
    return sorted(int(one.split("/")[1]) for one in names if one.endswith("/_CHECKPOINT_METADATA"))


def test_a_machine_is_lost_and_another_one_goes_on(s3, finished, tmp_path):
    """The end is bit for bit that of a run on one machine with files of its own."""
    command = runs.line("s3://bucket/lost", data__input="s3://bucket/text")
    with open(tmp_path / "said", "w") as said:
        process = runs.subprocess.Popen(
            command, cwd=runs.REPOSITORY, env=runs.environment(**machine(tmp_path / "one", s3)), stdout=said, stderr=said
        )
    assert runs.wait(process, lambda: whole_steps(s3, "lost")), (tmp_path / "said").read_text()
    process.kill()
    process.wait()
    assert runs.STEPS not in whole_steps(s3, "lost") and ".lock" in s3.names("lost")
    s3.system.rm_file("bucket/lost/.lock")  # the next machine would wait a minute for a sign of life

    done = runs.run(command, **machine(tmp_path / "two", s3))
    assert done.returncode == 0 and not runs.complaint(done.stderr), done.stderr
    assert "s3://bucket/lost: fetching" in done.stdout and "report  s3://bucket/lost/report.html" in done.stdout
    workdir = fetched(s3, "lost", tmp_path / "run")
    runs.assert_same_run(workdir, finished)
    assert runs.steps_saved(workdir) == runs.steps_saved(finished) and ".lock" not in s3.names("lost")
    report = (workdir / "report.json").read_text()
    assert json.loads(report)["config"]["data"]["input"] == "s3://bucket/text" and str(tmp_path) not in report
