"""An objective and an optimizer from a user's file: they train, are kept with the run, and may not change under it."""

import jax
import numpy as np
import pytest

from configs.train import tiny
from lm.errors import UserError
from lm.parallel.mesh import make_mesh
from lm.runs import own_code
from lm.train.step import make_trainer
from lm.train.values import check_values

LOSS = """
import jax.numpy as jnp
from lm.train.step import Objective, Sums, token_loss

def doubled():
    def loss(model, batch, frozen, *, train, key=None):
        total, nll = token_loss(model, batch, z_loss=0.0)
        return 2 * total, Sums({"loss": (2 * total, jnp.sum(batch["weights"]))}, {})
    return Objective(loss, lambda batch: jnp.sum(batch["weights"]))

def broken():
    return 1 / 0

def nothing():
    return 3

def needy(model, batch):
    return 3
"""
OPTIMIZER = "import optax\n\ndef signs(o):\n    return optax.scale_by_sign()\n"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "loss.py").write_text(LOSS)
    (tmp_path / "signs.py").write_text(OPTIMIZER)
    config = tiny.get_config()
    config.model.update(vocab_size=32, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=16)
    config.optimizer.learning_rate, config.optimizer.weight_decay, config.optimizer.warmup = 0.01, 0.0, 0
    config.optimizer.embedding_rate = 1.0
    config.objective, config.optimizer.name = f"{tmp_path}/loss.py:doubled", f"{tmp_path}/signs.py:signs"
    return config


def first_step(config):
    ones = np.ones((4, 8), np.int32)
    tokens = np.random.default_rng(0).integers(0, 32, (4, 8))
    batch = {"tokens": tokens, "targets": tokens, "weights": ones.astype(np.float32), "segment_ids": ones}
    batch["positions"] = np.tile(np.arange(8, dtype=np.int32), (4, 1))
    with jax.set_mesh(make_mesh({"data": 1}, jax.devices()[:1])):
        trainer = make_trainer(config)
        before = trainer.init()
        state, metrics = jax.jit(trainer.step)(before, batch)
        changes = jax.tree.map(lambda old, new: np.abs(np.asarray(new) - np.asarray(old)), before.params, state.params)
    return float(metrics["loss"]), jax.tree.leaves(changes)


def test_they_are_what_trains(config):
    check_values(config)
    loss, changes = first_step(config)
    config.objective = ""
    usual, _ = first_step(config)
    assert loss == pytest.approx(2 * usual, rel=1e-5)
    rates = np.unique(np.round(np.concatenate([change.ravel() for change in changes]), 6))
    assert len(rates) <= 2 and rates[-1] > 0  # the sign of a gradient, or 0


def test_a_run_keeps_them_and_refuses_other_text(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    own_code.check_own_code(config, workdir)
    own_code.keep_own_code(config, workdir)
    assert own_code.own_code(workdir) == {"objective": LOSS, "optimizer.name": OPTIMIZER}
    own_code.check_own_code(config, workdir)
    (tmp_path / "signs.py").write_text(OPTIMIZER.replace("scale_by_sign", "scale_by_adam"))
    with pytest.raises(UserError, match="optimizer.name: .*signs.py has changed since the run began"):
        own_code.check_own_code(config, workdir)
    shown = capsys.readouterr().out
    assert "-    return optax.scale_by_sign()" in shown and "+    return optax.scale_by_adam()" in shown


@pytest.mark.parametrize(
    "value, named",
    [
        ("loss.py:absent", "has no function 'absent', only doubled, broken, nothing, needy"),
        ("loss.py:double", "has no function 'double', only .*; did you mean .*loss.py:doubled?"),
        ("none.py:f", "no file"),
        (
            "loss.py:needy",
            r"missing a required argument: 'model': needy\(model, batch\) is called without arguments and returns",
        ),
        ("loss.py:broken", "ZeroDivisionError: division by zero .*loss.py:12"),
        ("loss.py:nothing", "returned int, not an Objective"),
        ("loss.py", "names no function: write it as FILE.py:FUNCTION, such as --config.objective=.*loss.py:doubled"),
    ],
)
def test_what_is_wrong_is_one_line(value, named, config, tmp_path):
    config.objective = f"{tmp_path}/{value}"
    with pytest.raises(UserError, match=named):
        own_code.check_own_code(config, tmp_path / "run")
        first_step(config)
