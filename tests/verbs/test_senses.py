"""align.py with images: fresh encoders beside a model of text, adapters beside encoders, and mistakes, as a user runs them."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import lm
from data.tasks.media.digits import digits
from tests.verbs import runs
from tests.verbs.test_align import measured
from tests.verbs.test_hosts import killed_and_resumed

pytest.importorskip("sklearn")
STEPS = 4
SETTINGS = {
    "data.input": "builtin:digits?size=8&valid=12",
    "steps": STEPS,
    "batch_size": 8,
    "sequence_length": 128,
    "dtype": "float32",
    "checkpoint_every": 2,
    "valid_every": 2,
    "valid_batches": 1,
    "samples_every": 2,
    "num_samples": 2,
    "data.max_examples": 60,
    "data.max_valid_examples": 12,
    "optimizer.learning_rate": 0.01,
    "optimizer.warmup": 2,
    "rollout.max_new_tokens": 3,
    "rollout.max_prompt_tokens": 120,
}
EYES = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32, "image_size": 8, "patch_size": 4, "shuffle": 1}
EYES = {f"model.vision.{key}": value for key, value in EYES.items()}
EARS = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32, "num_mels": 8}
EARS = {f"model.audio.{key}": value for key, value in EARS.items()} | dict.fromkeys(EYES)
TOWER, PROJECTOR = "['params']['vision']['layers']", "['params']['vision']['projector']"


def command(workdir: Path, start: Path, config: str = "senses.py", **settings) -> list[str]:
    keys = SETTINGS | EYES | {key.replace("__", "."): value for key, value in settings.items()} | {"init_from": start}
    values = [f"--config.{key}={value}" for key, value in keys.items() if value is not None]
    return [sys.executable, "align.py", f"--config=configs/align/{config}", f"--workdir={workdir}", *values]


def aligned(*arguments, variables=None, **settings) -> None:
    done = runs.run(command(*arguments, **settings), **(variables or {}))
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def seeing(finished, tmp_path_factory) -> Path:
    """A run that gave the model of text an encoder of images."""
    workdir = tmp_path_factory.mktemp("senses") / "seeing"
    aligned(workdir, finished)
    return workdir


@pytest.mark.slow
def test_a_model_of_text_gets_an_encoder(seeing):
    model, tokenizer = lm.load(seeing)
    assert model.config.vision.num_layers == 1
    assert model.config.vision.token_id == tokenizer.chat_symbols("")["<|reserved_0|>"]
    report = json.loads((seeing / "report.json").read_text())
    assert {"rewards/answer", "mean_token_accuracy"} <= report["after"].keys()
    assert report["data"]["train"]["images"] >= 1 and report["data"]["train"]["audio"] == 0
    assert all("[image: " in line["prompt"][0]["content"] for line in runs.lines(seeing / "samples.jsonl"))
    first, last = runs.arrays(seeing, 2), runs.arrays(seeing, STEPS)
    for name in (TOWER, PROJECTOR, "['params']['embedding']"):
        assert any(not np.array_equal(first[key], last[key]) for key in first if key.startswith(name)), name


@pytest.mark.slow  # tests/lm/adapt/test_fresh_towers.py has what is saved, quickly
def test_adapters_train_the_projector_too(seeing, tmp_path):
    aligned(tmp_path / "lora", seeing, model__adapter__rank=2, steps=2)
    before, after = runs.arrays(seeing, STEPS), runs.arrays(tmp_path / "lora", 2)
    assert not any(key.startswith(TOWER) for key in after)  # the base holds them
    projector = [key for key in before if key.startswith(PROJECTOR)]
    assert projector and any(not np.array_equal(before[key], after[key]) for key in projector)
    model, _ = lm.load(tmp_path / "lora")
    np.testing.assert_array_equal(model.vision.projector.first.weight[...], after[f"{PROJECTOR}['first']['weight']"])


@pytest.mark.slow
def test_a_kill_changes_nothing(seeing, finished, tmp_path):
    killed = tmp_path / "killed"
    process = runs.start(command(killed, finished))
    runs.wait(process, lambda: any(values["step"] >= 3 for values in runs.training(killed)))
    process.kill()
    process.wait()
    aligned(killed, finished)
    assert measured(killed) == measured(seeing)
    ours, theirs = runs.arrays(killed, STEPS), runs.arrays(seeing, STEPS)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.slow
def test_eight_devices_train_as_one(seeing, finished, tmp_path):
    spread = tmp_path / "spread"
    aligned(spread, finished, mesh__data=2, mesh__fsdp=4, variables=runs.fake_devices(8))
    for ours, theirs in zip(measured(spread), measured(seeing), strict=True):
        for name in ("loss", "valid_loss", "valid_rewards/answer"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("config", ["senses.py", "senses.py:audio"])
def test_two_processes_train_as_one(config, finished, tmp_path):
    """Both are killed and start again; process 0 reads the files, and each gets its rows of them."""
    settings = {"optimizer.learning_rate": 1e-3}
    if "audio" in config:
        pytest.importorskip("espeakng_loader")
        settings |= {"data.input": "builtin:commands?valid=12"} | EARS
    one, two = tmp_path / "one", tmp_path / "two"
    aligned(one, finished, config, **settings)
    killed_and_resumed(command(two, finished, config, **settings), two, 2, tmp_path)
    names = ("loss", "grad_norm", "valid_loss", "valid_rewards/answer", "valid_mean_token_accuracy")
    for ours, theirs in zip(measured(two), measured(one), strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() & names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name
    assert runs.lines(two / "samples.jsonl")[0]["prompt"] == runs.lines(one / "samples.jsonl")[0]["prompt"]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"model__vision__token_id": 20}, ["model.vision.token_id=20", "<|reserved_0|>"]),
        pytest.param({"sequence_length": 4}, ["sequence_length=4", "model.vision"], marks=pytest.mark.slow),
        pytest.param({"model__adapter__rank": 2}, ["model.adapter.rank=2", "fresh encoder"], marks=pytest.mark.slow),
        pytest.param({"model__vision__num_heads": 3}, ["model.vision.num_heads", "does not divide"], marks=pytest.mark.slow),
        pytest.param({"model__audio__num_layers": 1, "model__audio__num_frames": 120, "model__audio__stack": 5},
                     ["model.audio.num_frames=120", "100"], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_mistakes(settings, words, finished, tmp_path):
    done = runs.run(command(tmp_path / "run", finished, **settings))
    said = runs.complaint(done.stderr)
    assert done.returncode == 2 and len(said) == 1, done.stderr[-3000:]
    assert all(word in said[0] for word in words), said
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_another_encoder_than_that_of_init_from(seeing, tmp_path):
    done = runs.run(command(tmp_path / "run", seeing, model__vision__mlp_dim=64))
    said = runs.complaint(done.stderr)
    assert done.returncode == 2 and len(said) == 1 and "mlp_dim=64" in said[0] and "mlp_dim=32" in said[0], said


def test_rewards_need_their_column_before_anything_compiles(finished, tmp_path):
    rows = list(itertools.islice(digits("train", 0, size=8), 40))
    for row in rows:
        del row["answer"]
    (tmp_path / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = runs.run(command(tmp_path / "run", finished, data__input=tmp_path / "digits.jsonl"))
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "'answer'" in said and "rewards=''" in said and "compiling" not in done.stderr, said
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_encoder_needs_data_that_it_sees(finished, tmp_path):
    """A column's plain path shows nothing, unless a part asks for it."""
    rows = ({"prompt": f"What is in picture {n}?", "completion": "a", "image": "a.png"} for n in range(9))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = runs.run(command(tmp_path / "run", finished, data__input=tmp_path / "text.jsonl", rewards=""))
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "text.jsonl" in said and "has images" in said and "Traceback" not in done.stderr, said
    assert not (tmp_path / "run" / "config.json").exists()
