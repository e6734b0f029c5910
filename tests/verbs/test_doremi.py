"""python -m lm.doremi from end to end: its weights, a run that is stopped and goes on, and train.py with the result."""

import json
import signal
import sys

import pytest

from tests.verbs import runs
from tests.verbs.test_mixture import dataset  # noqa: F401 (a fixture)

STEPS = 16


def command(workdir, dataset, **settings):  # noqa: F811
    line = runs.line(workdir, data__input=dataset, steps=STEPS, checkpoint_every=0, data__log_ids=False, **settings)
    return [sys.executable, "-m", "lm.doremi", *line[2:]]


@pytest.fixture(scope="module")
def found(dataset, tmp_path_factory):  # noqa: F811
    """The workdir of a search that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("doremi") / "run"
    done = runs.run(command(workdir, dataset))
    assert done.returncode == 0, done.stderr[-4000:]
    return workdir


def test_the_mean_of_the_weights_is_written_and_reported(found):
    weights = json.loads((found / "weights.json").read_text())
    assert list(weights) == ["many", "few"] and sum(weights.values()) == pytest.approx(1)
    lines = runs.training(found / "proxy")
    assert len(lines) == STEPS
    for name, share in weights.items():
        assert share == pytest.approx(sum(line[f"weight/{name}"] for line in lines) / STEPS, rel=1e-5)
        assert all(line[f"excess/{name}"] >= 0 for line in lines)
    report = json.loads((found / "report.json").read_text())
    assert {name: row["found"] for name, row in report["sources"].items()} == weights
    assert report["sources"]["many"]["given"] > report["sources"]["few"]["given"]
    page = (found / "report.html").read_text()
    assert page.count("<svg") == 2 and "share found" in page
    assert "weight/many" not in runs.training(found / "reference")[0]


@pytest.mark.slow
def test_a_stopped_search_goes_on_to_the_same_weights(found, dataset, tmp_path):  # noqa: F811
    workdir = tmp_path / "run"
    process = runs.start(command(workdir, dataset))
    runs.wait(process, lambda: len(runs.training(workdir / "proxy")) >= 3)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert runs.steps_saved(workdir / "proxy")[0] < STEPS and not (workdir / "weights.json").exists()
    done = runs.run(command(workdir, dataset))
    assert done.returncode == 0, done.stderr[-4000:]
    assert (workdir / "weights.json").read_bytes() == (found / "weights.json").read_bytes()


def test_train_reads_the_weights(found, dataset, tmp_path):  # noqa: F811
    settings = dict(data__input=dataset, data__weights=str(found / "weights.json"), steps=2, checkpoint_every=0)
    runs.train(tmp_path / "run", **settings)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["mixture"]["stages"][0]["shares"] == pytest.approx(json.loads((found / "weights.json").read_text()))


def test_one_source_ends_in_one_line(text, tmp_path):
    done = runs.run(command(tmp_path / "run", text))
    assert done.returncode == 2
    assert "DoReMi weighs several" in done.stderr.splitlines()[-1]
