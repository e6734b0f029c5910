"""Parts of a model from a user's file: they compute, on every mesh, travel with the workdir, and need trust to be opened."""

import subprocess

import jax
import numpy as np
import pytest

from lm.convert.families import family_for
from lm.convert.to_workdir import write_workdir
from lm.errors import UserError
from lm.infer.load import load_model
from lm.parallel.mesh import make_mesh, place_rows, shardings
from lm.runs import own_code
from lm.train.start import check_config
from lm.train.step import make_trainer, model_config_of
from tests.lm.examples import packed_batch, parameters, tiny_config

LAYERS = """
import jax
import jax.numpy as jnp
from flax import nnx
from lm.model.attention import Attention
from lm.model.feed_forward import FeedForward
from lm.model.initializers import parameter
from lm.model.linear import Linear, residual_std
from lm.parallel.context import length_axis

def swish2(x):
    return x * jax.nn.sigmoid(2 * x)

class Scaled(nnx.Module):
    def __init__(self, config, rngs, dim):
        D = config.embed_dim
        self.up = Linear(config, rngs, "feed_forward.up", "btd,df->btf", (D, dim), ("embed", "mlp"))
        self.scale = parameter(jnp.ones((dim,)), ("mlp",), "vector")
        self.down = Linear(
            config, rngs, "feed_forward.down", "btf,fd->btd", (dim, D), ("mlp", "embed"), std=residual_std(config)
        )

    def __call__(self, x):
        hidden = jnp.square(jax.nn.relu(self.up(x).astype(jnp.float32))) * self.scale[...]
        return self.down(hidden.astype(x.dtype), length_axis(x))

class Gated(Attention):
    def __init__(self, config, rngs, window):
        super().__init__(config, rngs, window)
        D = config.embed_dim
        self.gate = Linear(config, rngs, "attention.gate", "btc,cd->btd", (D, D), ("replicated", "embed"))

    def __call__(self, x, step, cache=None):
        mixed, cache = super().__call__(x, step, cache)
        return (mixed * jax.nn.sigmoid(self.gate(x, length_axis(x)).astype(jnp.float32))).astype(x.dtype), cache

def unknown(x):
    return x + missing

def narrow(x):
    return x.sum(-1)

class Short(FeedForward):
    def __call__(self, x):
        return x[..., :3]
"""
OWN = {"activation": "swish2", "feed_forward": "Scaled", "attention": "Gated"}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that returns a config of a model with parts of the user's file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "layers.py").write_text(LAYERS)
    return lambda **parts: tiny_config(**{key: f"{tmp_path}/layers.py:{name}" for key, name in parts.items()})


def loss_on(config, split, devices):
    mesh, batch = make_mesh(split, jax.devices()[:devices]), packed_batch(config, 0)
    params = parameters(model_config_of(config))
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        placed = jax.device_put(params, shardings(params, mesh))
        sums = jax.jit(trainer.evaluate)(placed, dict(zip(batch, place_rows(*batch.values()), strict=True)))
        return float(sums["objective"])


@pytest.mark.parametrize("part", OWN)
def test_each_part_computes_on_one_device_and_on_a_mesh(part, own):
    config = own(**{part: OWN[part]})
    alone = loss_on(config, {"data": 1}, 1)
    assert alone != pytest.approx(loss_on(tiny_config(), {"data": 1}, 1), rel=1e-6)
    assert alone == pytest.approx(loss_on(config, {"data": 2, "fsdp": 2, "tensor": 2}, 8), rel=1e-5)


def test_a_model_is_opened_by_the_copies_in_its_workdir(own, tmp_path, monkeypatch):
    config, workdir = own(**OWN), tmp_path / "run"
    own_code.check_own_code(config, workdir)
    model = model_config_of(config)
    write_workdir(workdir, model, parameters(model))
    tokens = np.arange(12).reshape(2, 6)
    before = np.asarray(load_model(workdir)(tokens))
    (tmp_path / "layers.py").unlink()
    np.testing.assert_array_equal(np.asarray(load_model(workdir)(tokens)), before)
    assert own_code.own_code(workdir) == {f"model.{part}": LAYERS for part in OWN}
    with pytest.raises(UserError, match="model.activation=.* cannot be exported"):
        family_for(load_model(workdir).config)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))  # as on another machine
    with pytest.raises(UserError, match="which is not trusted on this machine") as refused:
        load_model(workdir)
    subprocess.run(str(refused.value).rpartition("run: ")[2], shell=True, check=True)
    np.testing.assert_array_equal(np.asarray(load_model(workdir)(tokens)), before)


@pytest.mark.parametrize(
    "part, name, named",
    [
        ("activation", "absent", "model.activation: .* has no function 'absent', only swish2"),
        ("activation", "unknown", r"model.activation=.*: NameError: name 'missing' is not defined \(.*layers.py:38\)"),
        ("activation", "narrow", "model.activation=.*: ValueError: Incompatible shapes"),
        ("feed_forward", "swish2", "model.feed_forward=.*: TypeError"),
        ("feed_forward", "Short", "model.feed_forward=.*: TypeError: add got incompatible shapes"),
        ("attention", "Scaled", "model.attention=.*: TypeError"),
    ],
)
def test_mistakes_show_before_the_run(part, name, named, own, tmp_path):
    with pytest.raises(UserError, match=named):
        check_config(own(**{part: name}), tmp_path / "run")
