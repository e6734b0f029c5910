"""Several processes of jax.distributed on this machine: the same run as one process, to its report, and one end for all."""

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.lm.train.test_profile import steps_of
from tests.verbs import runs
from tests.verbs.test_resume import stop


def start_both(command: list[str], folder: Path, second: list[str] | None = None) -> list[subprocess.Popen]:
    """Two processes of one device each. second: process 1's command."""
    return start_all([command, second or command], folder)


def start_all(commands: list[list[str]], folder: Path, devices: int = 1) -> list[subprocess.Popen]:
    """Start one job. All write to files in `folder`: process i its stderr to i, its stdout to i.out. devices: of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for i, line in enumerate(commands):
        job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(commands)), "JAX_PROCESS_ID": str(i)}
        with open(os.devnull) as nothing, open(folder / f"{i}.out", "w") as printed, open(folder / str(i), "w") as said:
            variables = runs.environment(**runs.fake_devices(devices), **job)
            processes.append(runs.launch(line, variables, nothing, printed, said))
    return processes


def ends(processes: list[subprocess.Popen], folder: Path) -> tuple[list[int], list[list[str]]]:
    """Exit codes and complaints of all."""
    try:
        codes = [process.wait(runs.DEADLINE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return codes, [runs.complaint((folder / str(i)).read_text()) for i in range(len(processes))]


def killed_and_resumed(command: list[str], workdir: Path, step: int, folder: Path) -> None:
    """Start two processes, kill both when the checkpoint of `step` is there, start them again and wait for their end."""
    processes = start_both(command, folder)
    assert runs.wait(processes[0], lambda: step in runs.steps_saved(workdir)), (folder / "0").read_text()
    for process in processes:
        process.kill()
        process.wait()
    codes, said = ends(start_both(command, folder), folder)
    assert codes == [0, 0], said


def test_two_processes_are_as_one(fresh, text, tmp_path):
    """From raw text to the report, with the samples that the default config draws; each process is a slice."""
    settings, workdir = dict(data__input=text, steps=10, checkpoint_every=5, valid_every=5), tmp_path / "two"
    runs.train(fresh, **settings)
    mesh = dict(mesh__slices=2, mesh__data=2, mesh__fsdp=2)
    command = runs.line(workdir, samples=None, profile="7-9", **mesh, **settings)
    codes, said = ends(start_all([command] * 2, tmp_path, devices=2), tmp_path)
    assert codes == [0, 0], said
    runs.assert_same_run(workdir, fresh, step=10, tolerance=1e-5)
    assert "xprof" in (workdir / "report.html").read_text()
    report = json.loads((workdir / "report.json").read_text())
    samples = report["samples"]
    words = " ".join(file.read_text() for file in text.glob("*.txt"))
    assert len(samples) == 3 and all(sample["text"] and sample["prompt"] in words for sample in samples)
    found = sorted((workdir / "profile").rglob("*.xplane.pb"))
    assert [path.name[:2] for path in found] == ["0-", "1-"] and report["profile"]["steps"] == ["7-9"]
    assert [steps_of(path) for path in found] == [[7, 8, 9]] * 2


@pytest.mark.slow
def test_one_two_one(fresh, finished, text, tmp_path):
    """One process is stopped, two go on and are stopped, one finishes."""
    command = runs.line(fresh, data__input=text)
    first = stop(command, fresh, signal.SIGTERM, after=10)

    processes = start_both(command, tmp_path)
    assert runs.wait(processes[0], lambda: len(runs.training(fresh)) >= first + 10), (tmp_path / "0").read_text()
    for process in processes:
        process.send_signal(signal.SIGTERM)
    codes, said = ends(processes, tmp_path)
    assert codes == [143, 143], said
    second = runs.training(fresh)[-1]["step"]
    assert first < second < runs.STEPS and runs.steps_saved(fresh)[-1] == second
    for lines in said:  # the coordination service has a line of its own in it
        assert [f"stopped by SIGTERM after step {second}," in line for line in lines if line.startswith("train.py")] == [True]

    runs.train(fresh, data__input=text)
    runs.assert_same_run(fresh, finished, tolerance=1e-5)


@pytest.mark.slow
def test_both_go_on_from_the_same_whole_checkpoint(finished, text, tmp_path):
    """The newest one, of two processes, is damaged in the files of the second; either sees a share of the files."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    command = runs.line(workdir, data__input=text, steps=runs.STEPS + 20)
    codes, said = ends(start_both(command, tmp_path), tmp_path)
    assert codes == [0, 0], said
    newest = workdir / "checkpoints" / str(runs.STEPS + 20)
    before = runs.arrays(workdir, runs.STEPS + 20)
    listed = json.loads((newest / "state" / "checksums.json").read_text())["xxh3_128"]
    assert {name.split("/")[0] for name in listed} >= {"ocdbt.process_0", "ocdbt.process_1"}
    assert not list(newest.rglob("checksums.of-*"))
    runs.damage(newest / "state" / "ocdbt.process_1")
    codes, said = ends(start_both(command, tmp_path), tmp_path)
    assert codes == [0, 0], said
    assert (newest.parent / f"{newest.name}.damaged").is_dir() and newest.is_dir()
    after = runs.arrays(workdir, runs.STEPS + 20)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.slow
def test_two_processes_go_on_with_an_adapter(finished, text, tmp_path):
    """Its checkpoints hold what learns; each process finds the base beside it, quantises it and lays it out."""
    settings = dict(
        init_from=finished,
        data__input=text,
        model__adapter__rank=2,
        model__quantization__bits=8,
        model__vocab_size=None,
        model__embed_dim=None,
        valid_every=0,
    )
    for folder, each in (("two", (6, 12)), ("at-once", (12,))):
        for steps in each:
            schedule = dict(steps=steps, optimizer__schedule="constant", optimizer__warmup=1)
            codes, said = ends(start_both(runs.line(tmp_path / folder, **settings, **schedule), tmp_path), tmp_path)
            assert codes == [0, 0], said
    runs.assert_same_run(tmp_path / "two", tmp_path / "at-once", step=12)


@pytest.mark.slow
def test_two_processes_choose_alike_and_keep_it_through_a_kill(text, tmp_path):
    """The default config leaves dtype, accumulate and optimizer.turns to the run; this model is wide enough for two turns."""
    wide = {f"model__{key}": value for key, value in dict(num_layers=2, embed_dim=256, head_dim=128, mlp_dim=1024).items()}
    settings = dict(data__input=text, batch_size=64, sequence_length=128, dtype=None, steps=8, checkpoint_every=4, **wide)
    unbroken, killed = (runs.line(tmp_path / name, **settings) for name in ("unbroken", "killed"))
    codes, said = ends(start_both(unbroken, tmp_path), tmp_path)
    assert codes == [0, 0], said
    killed_and_resumed(killed, tmp_path / "killed", 4, tmp_path)
    runs.assert_same_run(tmp_path / "unbroken", tmp_path / "killed", step=8)
    found = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("unbroken", "killed")]
    assert found[0] == found[1]
    assert found[0]["dtype"] in ("float32", "bfloat16")
    assert found[0]["accumulate"] == found[0]["optimizer"]["turns"] == 2


def test_a_mistake_ends_both(tmp_path):
    """Process 0 finds that the text is wrong; the other must not wait for it for ever."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("This file is right.")  # the first one is read by all before they join
    (tmp_path / "text" / "b.txt").write_bytes(b"\xff" * 100)
    processes = start_both(runs.line(tmp_path / "run", data__input=tmp_path / "text"), tmp_path)
    codes, said = ends(processes, tmp_path)
    assert codes == [2, 2], said
    assert len(said[0]) == 1 and "UTF-8" in said[0][0]
    assert said[1] == [said[0][0].replace("train.py: ", "train.py: process 0: ")]


def test_a_mistake_on_the_other_process_ends_both(fresh, text, tmp_path):
    command = runs.line(fresh, data__input=text)
    codes, said = ends(start_both(command, tmp_path, [*command, "--config.mesh.data=3"]), tmp_path)
    assert codes == [2, 2], said
    assert said[0] == [said[1][0].replace("train.py: ", "train.py: process 1: ")]
    assert len(said[1]) == 1 and "mesh" in said[1][0]


@pytest.mark.slow
def test_a_report_that_fails_ends_both(fresh, text, tmp_path):
    """Only process 0 writes it, when the other has nothing left to do."""
    (fresh / "stages.json").mkdir()
    codes, said = ends(start_both(runs.line(fresh, data__input=text, steps=2), tmp_path), tmp_path)
    assert codes == [2, 2], said
    assert [len(lines) for lines in said] == [1, 1] and "stages.json: Is a directory" in said[0][0], said
    assert said[1] == [said[0][0].replace("train.py: ", "train.py: process 0: ")]
    assert runs.steps_saved(fresh) == [2]


@pytest.mark.slow
def test_two_processes_rewind_as_one(text, tmp_path):
    """Steps that deviate a little count as spikes here, so the run goes back until no rewind is left."""
    guard = dict(guard__window=16, guard__warmup=16, guard__threshold=1.0, guard__rewinds=2, max_skipped_in_row=1)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = runs.run(runs.line(one, data__input=text, **guard))
    processes = start_both(runs.line(two, data__input=text, **guard), tmp_path)
    codes, said = ends(processes, tmp_path)
    assert codes == [alone.returncode] * 2, said
    rewinds = [json.loads((workdir / "rewinds.json").read_text()) for workdir in (one, two)]
    assert rewinds[0] == rewinds[1] and len(rewinds[0]) == 2
    rows = [runs.lines(workdir / "skipped_data.jsonl") for workdir in (one, two)]
    for mine, theirs in zip(*rows, strict=True):
        for key in ("rewind", "step", "batch", "skipped", "ids"):
            assert mine[key] == theirs[key]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert runs.steps_saved(one) == runs.steps_saved(two)
