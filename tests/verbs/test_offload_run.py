"""train.py with host offload: the numbers of a run without, a workdir that goes on with or without it, and what is refused."""

import shutil

import pytest

from tests.verbs import runs

STEPS = 8
OFFLOAD = {"model__offload": True, "optimizer__offload": True}


@pytest.fixture(scope="module", params=[1, 2], ids="{} devices".format)
def devices(request) -> int:
    """tests/lm/train/test_offload.py has the numbers on several devices, quickly."""
    return request.param


@pytest.fixture(scope="module")
def settings(text, devices) -> dict:
    return {"data__input": text, "steps": STEPS, "checkpoint_every": 4, "valid_every": 4, "mesh__fsdp": devices}


@pytest.fixture(scope="module")
def without(settings, tmp_path_factory):
    """The workdir of a run without offload."""
    workdir = tmp_path_factory.mktemp("offload") / "without"
    runs.train(workdir, runs.fake_devices(settings["mesh__fsdp"]), **settings)
    return workdir


def resumes(start, workdir, settings, expected) -> None:
    """Go on from the first checkpoint of `start` in a copy, to the end of `expected`."""
    shutil.copytree(start, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    runs.train(workdir, runs.fake_devices(settings["mesh__fsdp"]), **settings)
    runs.assert_same_run(workdir, expected, step=STEPS, tolerance=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_without_it(without, settings, tmp_path):
    workdir = tmp_path / "with"
    done = runs.run(runs.line(workdir, **settings, **OFFLOAD), **runs.fake_devices(settings["mesh__fsdp"]))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "model.offload and optimizer.offload: arrays are copied, but a CPU's memory is its host's" in done.stdout
    assert (workdir / "report.html").exists()
    runs.assert_same_run(workdir, without, step=STEPS, tolerance=1e-6)
    resumes(workdir, tmp_path / "resumed", settings, without)


@pytest.mark.slow
def test_a_run_goes_on_with_it(without, settings, tmp_path):
    resumes(without, tmp_path / "resumed", settings | OFFLOAD, without)


def test_nothing_to_offload_is_refused(tmp_path):
    done = runs.run([*runs.line(tmp_path / "run", model__remat="none", model__offload=True)])
    assert done.returncode == 2 and "model.offload=True" in done.stderr and "set model.remat=matmuls" in done.stderr
    assert not (tmp_path / "run").exists()
