"""train.py with host offload: the numbers of a run without, a workdir that goes on with or without it, and what is refused."""

import shutil

from tests.verbs import runs


def test_a_run_goes_on_with_and_without_it(text, tmp_path):
    keys = {"data__input": text, "steps": 40}
    offload = {"model__offload": True, "optimizer__offload": True}
    devices = runs.fake_devices(4)
    whole, half = tmp_path / "whole", tmp_path / "half"
    runs.train(whole, devices, **keys, mesh__fsdp=2)
    done = runs.run(runs.line(half, **keys, **offload, mesh__fsdp=2), **devices)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "model.offload and optimizer.offload: arrays are copied, but a CPU's memory is its host's" in done.stdout
    assert (half / "report.html").exists()
    runs.assert_same_run(half, whole, step=40, tolerance=1e-6)

    for step, keep in ((40, {}), (40, offload)):  # from a checkpoint of the other kind
        other = tmp_path / f"other{len(keep)}"
        shutil.copytree(whole if keep else half, other)
        shutil.rmtree(other / "checkpoints" / str(step))
        runs.train(other, devices, **keys, **keep, mesh__fsdp=2)
        runs.assert_same_run(other, whole, step=40, tolerance=1e-6)


def test_nothing_to_offload_is_refused(tmp_path):
    done = runs.run([*runs.line(tmp_path / "run", model__remat="none", model__offload=True)])
    assert done.returncode == 2 and "model.offload=True" in done.stderr and "set model.remat=matmuls" in done.stderr
    assert not (tmp_path / "run").exists()
