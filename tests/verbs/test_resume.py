"""A run that is killed, stopped or moved to another mesh goes on as if nothing had been."""

import json
import math
import random
import shutil
import signal
import sys

import pytest

from tests.verbs import runs


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_minus_9(fresh, text, finished, kills):
    """Kills at random steps, in the middle of saves and during the start; the end is bit for bit the undisturbed one."""
    command = runs.line(fresh, data__input=text)
    draw, in_a_save = random.Random(kills), 0
    for i in range(kills):
        # Each round aims at the part of the run that the rounds before have left.
        reached = max((values["step"] for values in runs.training(fresh)), default=0)
        target = draw.randint(reached + 1, max(reached + 1, runs.STEPS * (i + 1) // (kills + 1)))
        process = runs.start(command)
        if i % 4 == 1:
            runs.wait(process, lambda: runs.saving(fresh))
        elif i % 4 == 2:
            seconds = draw.uniform(0, 2)  # into imports, restoring or compiling
            begin = runs.now()
            runs.wait(process, lambda: runs.now() - begin > seconds)  # noqa: B023 (called at once)
        else:
            runs.wait(process, lambda: any(values["step"] >= target for values in runs.training(fresh)[-50:]))  # noqa: B023
        process.kill()
        process.wait()
        in_a_save += runs.saving(fresh)
    runs.train(fresh, data__input=text)
    assert in_a_save
    runs.assert_same_run(fresh, finished)
    assert not runs.saving(fresh)  # what killed saves left was swept away


@pytest.mark.slow
def test_kills_while_the_data_are_prepared(text, finished, tmp_path):
    """At every stage the same line goes on, and what it makes is what the undisturbed run made."""
    workdir = tmp_path / "run"
    command = runs.line(workdir, data__input=text)
    said = runs.said_by(command)
    for condition in (
        lambda: "survey" in said.read_text(),
        lambda: "tokenizer" in said.read_text(),
        lambda: (workdir / "tokenizer.model").exists(),
        lambda: list(workdir.glob("data/.*.incomplete/*")),
        lambda: list(workdir.glob("data/.*.incomplete/packed_text/**/*array_record*")),
        lambda: [path for path in workdir.glob("data/*/dataset.json") if not path.parent.name.startswith(".")],
    ):
        process = runs.start(command)
        runs.wait(process, condition)
        process.kill()
        process.wait()
    runs.train(workdir, data__input=text)
    runs.assert_same_run(workdir, finished)
    assert (workdir / "tokenizer.model").read_bytes() == (finished / "tokenizer.model").read_bytes()
    assert not list(workdir.glob("data/.*"))


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_stops(fresh, text, finished, signum):
    command = runs.line(fresh, data__input=text, checkpoint_every=0)
    step = stop(command, fresh, signum, after=10)
    assert runs.steps_saved(fresh) == [step]
    runs.train(fresh, data__input=text, checkpoint_every=0)
    runs.assert_same_run(fresh, finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after",
    [({"tensor": 2}, {"data": 1, "fsdp": 2})]
    + [
        pytest.param({"data": 1, "fsdp": 4, "tensor": 2}, {"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "tensor": 2}, marks=pytest.mark.slow),
    ],
)
def test_another_mesh(fresh, text, finished, before, after):
    """From one device, by way of one mesh of several, to another: the same batches, and losses to 1e-5."""
    devices = runs.fake_devices(math.prod(before.values()))

    def settings(mesh):
        return {"data__input": text} | {f"mesh__{axis}": size for axis, size in mesh.items()}

    first = stop(runs.line(fresh, **settings(before)), fresh, signal.SIGTERM, after=10, **devices)
    assert 10 <= first < runs.STEPS
    saved = json.loads((fresh / "config.json").read_text())
    saved["mesh"]["context"] = 1  # a fifth axis of one device, as older runs have it
    (fresh / "config.json").write_text(json.dumps(saved))
    runs.train(fresh, devices, **settings(after))
    runs.assert_same_run(fresh, finished, tolerance=1e-5)


def test_a_damaged_checkpoint_is_set_aside(finished, text, tmp_path):
    """Five bytes are flipped: a reader refuses, the run goes on from the checkpoint before and ends as if nothing had been."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    newest, before = (workdir / "checkpoints" / str(step) for step in reversed(runs.steps_saved(workdir)))
    runs.damage(newest)
    done = runs.run([sys.executable, "-m", "lm.generate", f"--checkpoint={workdir}", "--prompt=a", "--max_new_tokens=2"])
    assert done.returncode == 2, done.stderr
    (message,) = runs.complaint(done.stderr)
    assert f"{newest} is damaged" in message and f"step {before.name} is whole" in message

    done = runs.run(runs.line(workdir, data__input=text))
    assert done.returncode == 0, done.stderr
    (told,) = (line for line in done.stdout.splitlines() if "is damaged" in line)
    assert f"{newest} is damaged" in told and f"{newest.name}.damaged" in told and f"going on from step {before.name}" in told
    runs.assert_same_run(workdir, finished)
    assert (newest.parent / f"{newest.name}.damaged").is_dir()

    for folder in (newest, before):
        runs.damage(folder)
    done = runs.run(runs.line(workdir, data__input=text, steps=runs.STEPS + 1))
    assert done.returncode == 2 and len(runs.complaint(done.stderr)) == 1, done.stderr
    assert "no other checkpoint is whole" in done.stderr
    assert runs.steps_saved(workdir) == [int(before.name), int(newest.name)]


def stop(command, workdir, signum, after: int, **variables) -> int:
    """Signals a run that has made `after` steps; it says so in one line and has saved its last step, which is returned."""
    process = runs.start(command, **variables)
    assert runs.wait(process, lambda: len(runs.training(workdir)) >= after), runs.said_by(command).read_text()
    process.send_signal(signum)
    assert process.wait(runs.DEADLINE) == 128 + signum
    (message,) = runs.complaint(runs.said_by(command).read_text())
    step = runs.training(workdir)[-1]["step"]
    assert signum.name in message and f"step {step}" in message
    assert runs.steps_saved(workdir)[-1] == step
    return step
