"""Runs train.py as a user does, with a model that trains in a second; reads what a run leaves behind."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests import compiled
from tests.conftest import FAST_TO_COMPILE
from tests.verbs import forks
from tests.verbs.forks import Fork, can_fork

REPOSITORY = Path(__file__).parents[2]
STEPS = 80
SETTINGS = {
    "steps": STEPS,
    "batch_size": 8,
    "sequence_length": 32,
    "dtype": "float32",
    "checkpoint_every": 20,
    "valid_every": 40,
    "valid_batches": 2,
    "samples": "()",
    "optimizer.learning_rate": 2e-3,
    "data.valid_fraction": 0.1,
    "data.log_ids": True,
    "model.vocab_size": 384,
    "model.num_layers": 1,
    "model.embed_dim": 32,
    "model.num_heads": 2,
    "model.num_kv_heads": 2,
    "model.head_dim": 16,
    "model.mlp_dim": 64,
}
STAGES = "comparing the input|survey|tokenizer|dataset|train|validation|n-gram baselines|likelihoods|generations"
BARS = re.compile(rf"({STAGES})(:| \d)[^\n]*")
NO_JAX = {forks.NO_JAX: "1"}  # variables of a run in which an import of JAX is an error
DEADLINE = 300  # seconds in which anything that is waited for must have happened


def line(workdir: Path, **settings) -> list[str]:
    """The command of a run; SETTINGS under the given ones, where `data__input` is data.input and None leaves a key out."""
    keys = SETTINGS | {key.replace("__", "."): value for key, value in settings.items()}
    values = [f"--config.{key}={value}" for key, value in keys.items() if value is not None]
    return [sys.executable, "train.py", "--config=configs/train/tiny.py", f"--workdir={workdir}", *values]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what steers JAX in it."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    steering = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_TO_COMPILE, "COLUMNS": "120", **compiled.variables()}
    return {**mine, **steering, **variables}


def fake_devices(count: int) -> dict[str, str]:
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count} {FAST_TO_COMPILE}"}


def run(command: list[str], stdin: str = "", **variables: str) -> subprocess.CompletedProcess:
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        given.write(stdin.encode())
        given.seek(0)
        process = launch(command, environment(**variables), given, stdout, stderr)
        try:
            code = process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        said = [(file.seek(0), file.read().decode())[1] for file in (stdout, stderr)]
    return subprocess.CompletedProcess(command, code, *said)


def train(workdir: Path, variables: dict[str, str] | None = None, **settings) -> None:
    """Runs to the end; anything but success fails the test with what the run said."""
    done = run(line(workdir, **settings), **(variables or {}))
    assert done.returncode == 0, done.stderr[-4000:]


def start(command: list[str], **variables: str) -> subprocess.Popen | Fork:
    """Starts a run that the test will stop; what it says goes to a file beside the workdir, not to a pipe that may fill."""
    with open(os.devnull, "r+b") as nothing, open(said_by(command), "wb") as said:
        return launch(command, environment(**variables), nothing, nothing, said)


def launch(command: list[str], variables: dict[str, str], stdin: IO, stdout: IO, stderr: IO) -> subprocess.Popen | Fork:
    """Start a command of this repository in its folder: as a fork (tests/verbs/forks.py) where that is the same."""
    if can_fork(command, variables):
        return Fork(command, variables, [stream.fileno() for stream in (stdin, stdout, stderr)])
    return subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdin=stdin, stdout=stdout, stderr=stderr)


def said_by(command: list[str]) -> Path:
    named = dict(arg.removeprefix("--").partition("=")[::2] for arg in command)
    return Path((named.get("workdir") or named["to"]) + ".stderr")


def wait(process: subprocess.Popen, condition) -> bool:
    """Polls until the condition holds (True) or the process has ended (False)."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    process.kill()
    raise AssertionError(f"not within {DEADLINE} s")


def complaint(stderr: str) -> list[str]:
    """What a run wrote to stderr, line by line, without its progress bars."""
    pieces = (piece.strip() for text in stderr.split("\n") for piece in text.split("\r"))
    return [piece for piece in pieces if piece and not BARS.fullmatch(piece)]


def plain_lines(said: str) -> list[str]:
    """Of a run without a terminal; fails if a character of them would move the cursor."""
    assert all(c.isprintable() or c == "\n" for c in said), said[-4000:]
    return said.splitlines()


def lines(path: Path) -> list[dict]:
    """A JSONL file; a line that is being written just now is left out."""
    if not path.exists():
        return []
    return [json.loads(text, parse_constant=_refuse) for text in path.read_text().split("\n")[:-1]]


def _refuse(constant: str):
    raise ValueError(f"{constant} is not JSON")


def training(workdir: Path) -> list[dict]:
    return [values for values in lines(workdir / "metrics.jsonl") if "loss" in values]


def validation(workdir: Path) -> list[dict]:
    return [values for values in lines(workdir / "metrics.jsonl") if "valid_loss" in values]


def steps_saved(workdir: Path) -> list[int]:
    """Steps of the whole checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []


def damage(checkpoint: Path) -> None:
    """Flips five bytes in the middle of the checkpoint's largest file."""
    path = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    for i in range(5):
        data[len(data) // 2 + i] ^= 0xFF
    path.write_bytes(data)


def saving(workdir: Path) -> bool:
    """Whether a save is under way (or was when the run was killed)."""
    folder = workdir / "checkpoints"
    return folder.exists() and any("tmp" in path.name for path in folder.iterdir())


def arrays(workdir: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, parameters and optimizer state, by name and whatever mesh it came from."""
    folder = workdir.absolute() / "checkpoints" / str(step) / "state"
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(folder).item_metadata.tree
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    flat = jax.tree_util.tree_flatten_with_path(reader.restore(folder, restore_args=how))[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_run(one: Path, other: Path, *, tolerance: float = 0.0, step: int = STEPS) -> None:
    """Losses, norms, ids, token counts and the last checkpoint of two finished runs; bit for bit if tolerance is 0."""
    for read, key, names in (
        (training, "loss", ("loss", "grad_norm", "learning_rate", "tokens", "skipped")),
        (validation, "valid_loss", ("valid_loss", "valid_bits_per_byte")),
    ):
        a, b = read(one), read(other)
        assert [values["step"] for values in a] == [values["step"] for values in b], f"steps with {key}"
        for name in names:
            # A norm adds up the differences of all parameters.
            allowed = 5 * tolerance if name == "grad_norm" else tolerance
            np.testing.assert_allclose([v[name] for v in a], [v[name] for v in b], rtol=0, atol=allowed, err_msg=name)
    assert lines(one / "ids.jsonl") == lines(other / "ids.jsonl")
    a, b = arrays(one, step), arrays(other, step)
    assert a.keys() == b.keys()
    if not tolerance:
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def now() -> float:
    return time.monotonic()
