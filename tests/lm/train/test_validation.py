"""Validation reads ahead of the devices, and adds up what each batch comes to."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.train import default, tiny
from data.text.batches import parse_sizes
from lm.align.validation import Validation
from lm.parallel.mesh import make_mesh
from lm.train.evaluator import Evaluator
from lm.train.feed import Feed
from lm.train.step import Objective, Sums, Trainer, make_trainer, model_config_of, token_loss
from tests.lm.examples import parameters

B, T, N = 8, 4, 12


class Counted:
    """N batches of token n + 1, the weight of the last one's rows 0 but for one; remembers which were read."""

    batch_size, num_batches, growth = B, N, parse_sizes("", B)

    def __init__(self):
        self.read, self.third = [], threading.Event()

    def batch(self, n, rows=None):
        self.read.append(n)
        if len(self.read) >= 3:
            self.third.set()
        weights = np.ones((B, T), np.float32)
        weights[1 if n == N - 1 else B :] = 0
        full = {"targets": np.full((B, T), n + 1, np.int32), "weights": weights, "ids": np.arange(B)}
        return {name: x[slice(None) if rows is None else rows] for name, x in full.items()}


class Bytes:
    vocab_size, bytes_per_token = 32, np.arange(32, dtype=np.float32)


def trainer(before=lambda x: x):
    def evaluate(params, batch, frozen=None):
        nll = before(jnp.sum(batch["weights"] * batch["targets"]) * params)
        weight = jnp.sum(batch["weights"])
        return {"objective": nll, "weight": weight, "metrics": {"loss": (nll, weight), "none": (nll, 0.0 * weight)}}

    def nll(params, batch):
        return evaluate(params, batch)["objective"]

    return Trainer(None, None, evaluate, None, False, objective=Objective(None, None, is_nll=True), nll=nll)


def validations(batches, mesh, before=lambda x: x):
    config = default.get_config()
    yield Evaluator(trainer(before), {"text": batches}, mesh, Bytes, 32)
    yield Validation(config, trainer(before), Feed(batches, mesh), None, [], None, None)


@pytest.mark.parametrize("at_most", [None, 1, 5, 99])
def test_as_batch_by_batch(at_most):
    mesh = make_mesh(default.get_config().mesh)
    with jax.set_mesh(mesh):
        params = jnp.float32(1e-3)
        text, examples = [validate(params, at_most) for validate in validations(Counted(), mesh)]
    count = N if at_most is None else min(at_most, N)
    picked = [i * N // count for i in range(count)]
    weights = [T * (1 if n == N - 1 else B) for n in picked]
    nll = [float(np.float32(w * (n + 1)) * np.float32(1e-3)) for n, w in zip(picked, weights)]
    assert text["loss"] == pytest.approx(sum(nll) / sum(weights), rel=1e-7) == examples["loss"]
    assert text["tokens"] == sum(weights) and text["bytes"] == sum(w * (n + 1) for n, w in zip(picked, weights))
    assert examples.keys() == {"loss"}  # a measure of nothing is left out


def test_each_source_and_all_together():
    class Other(Counted):
        num_batches = 3

    mesh = make_mesh(default.get_config().mesh)
    with jax.set_mesh(mesh):
        params = jnp.float32(1e-3)

        def validated(at_most=None, **sources):
            return Evaluator(trainer(), sources, mesh, Bytes, 32)(params, at_most)

        both, one, other = validated(one=Counted(), other=Other()), validated(one=Counted()), validated(other=Other())
        few = validated(5, one=(many := Counted()), other=(three := Other()))
    assert "bits_per_byte/one" not in one
    assert both["bits_per_byte/one"] == one["bits_per_byte"] and both["bits_per_byte/other"] == other["bits_per_byte"]
    assert both["tokens"] == one["tokens"] + other["tokens"]
    nll = one["loss"] * one["tokens"] + other["loss"] * other["tokens"]
    assert both["loss"] == pytest.approx(nll / both["tokens"], rel=1e-6)
    assert len(many.read) == 4 and len(three.read) == 1 and few["tokens"] < both["tokens"]


def test_bits_per_byte_are_those_of_the_text_whatever_is_minimised():
    config = tiny.get_config()
    sizes = dict(vocab_size=32, num_layers=1, embed_dim=8, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8)
    config.model.update(sizes)
    config.optimizer.learning_rate = 1e-3

    class Text(Counted):
        def batch(self, n, rows=None):
            found = super().batch(n, rows)
            places = {"positions": np.zeros_like(found["targets"]), "segment_ids": np.ones_like(found["targets"])}
            return found | places | {"tokens": found["targets"]}

    def scaled(model, batch, frozen, *, train, key=None):
        total, nll = token_loss(model, batch, z_loss=0.0)
        return 0.01 * total, Sums({"loss": (0.01 * nll, jnp.sum(batch["weights"]))}, {})

    mesh, found = make_mesh({"data": 1}, jax.devices()[:1]), []
    with jax.set_mesh(mesh):
        params = parameters(model_config_of(config))
        for objective in (None, Objective(scaled, lambda batch: 2 * jnp.sum(batch["weights"]))):
            found.append(Evaluator(make_trainer(config, objective), {"text": Text()}, mesh, Bytes, 32)(params, 3))
    plain, other = found
    assert other["bits_per_byte"] == plain["bits_per_byte"] > 0 and other["nll"] == plain["loss"] and "nll" not in plain
    assert other["loss"] == pytest.approx(plain["loss"] * 0.01 / 2) and other["tokens"] == plain["tokens"]


@pytest.mark.parametrize("which", [0, 1], ids=["text", "examples"])
def test_the_next_batches_are_read_while_one_is_computed(which):
    mesh, batches, seen = make_mesh(default.get_config().mesh), Counted(), []

    def wait(x):
        seen.append(batches.third.wait(timeout=20))
        return x

    def before(x):
        return jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), x)

    mesh = jax.make_mesh((1,) * len(mesh.shape), tuple(mesh.shape), axis_types=mesh.axis_types, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        list(validations(batches, mesh, before))[which](jnp.float32(1.0), 3)
    assert all(seen) and sorted(batches.read) == [0, 4, 8]
