"""Validation reads ahead of the devices, and adds up what each batch comes to."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.train import default
from data.text.sizes import parse_sizes
from lm.align.run import Validation
from lm.parallel.mesh import make_mesh
from lm.train.evaluator import Evaluator
from lm.train.feed import Feed
from lm.train.step import Trainer

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

    return Trainer(None, None, evaluate, None)


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
