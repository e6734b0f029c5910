"""The first tensor that is not finite is named by its layer, scope and place in the source."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.parallel.mesh import make_mesh
from lm.train import events, loop
from lm.train.events.find_nan import Firsts, Place, evaluated, explain
from lm.train.feed import Feed
from lm.train.step import Objective, make_trainer, pretraining
from tests.lm.examples import first_state, packed_batch, tiny_config, trainer_and_state

OBJECTIVE = pretraining(z_loss=0.0, mtp_loss=0.0)


MESHES = ({"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"context": 2, "fsdp": 4}, {"data": 8}, {"stage": 2, "fsdp": 4})


def root_of_zero(model, batch, frozen, **how):
    """The usual loss and a root at 0. Its gradient is infinite, and times the 0 of the branch that is not taken it is NaN."""
    total, sums = OBJECTIVE.loss(model, batch, frozen, **how)
    with jax.named_scope("penalty"):
        size = jnp.sum(model.embedding[...] * 0)
        return total + jnp.where(size > 0, jnp.sqrt(size), 0.0), sums


def prepared(scan: bool = True):
    """(config, state after a skipped step, batch)."""
    config = tiny_config(scan_layers=scan)
    _, state = trainer_and_state(config)
    return config, state._replace(step=jnp.int32(1)), jax.tree.map(jnp.asarray, packed_batch(config, 0))


def spoiled(state, index, value, *path):
    """The state with other numbers in one parameter."""
    params = jax.tree.map(lambda x: x, state.params)
    weight = params
    for name in path:
        weight = weight[name]
    weight.set_value(weight.get_value().at[index].set(value))
    return state._replace(params=params)


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_layer_of_the_forward_pass(scan):
    config, state, batch = prepared(scan)
    state = spoiled(state, 1, 3e38, "stacks", 0, 0, "attention", "query", "weight")
    lines = explain(config, OBJECTIVE, state, batch)
    assert "NaN is in the forward pass, layer 1 of 2, " in lines[0] and "attention" in lines[0]
    # The NaN comes from an infinity: the product with the spoiled weights.
    assert "infinity is in the forward pass, layer 1 of 2, " in lines[1] and "dot_general" in lines[1]
    assert "float32[8, 32, 4, 8]" in lines[1] and ".py:" in lines[1]


def test_parts_of_a_sum_on_eight_devices():
    """Each device holds a part of some gradients, which are summed later. Few operations compute with such parts."""
    mesh, firsts = make_mesh({"fsdp": 8}), Firsts()

    def squares(x_BD):
        part_DD = jnp.einsum("bi,bj->ij", x_BD, x_BD, out_sharding=P(None, None, unreduced={"fsdp"}))
        return jax.sharding.reshard(part_DD, P())

    with jax.set_mesh(mesh):
        x_BD = jax.device_put(np.full((8, 2), 3e38, np.float32), NamedSharding(mesh, P("fsdp")))
        traced = jax.make_jaxpr(squares)(x_BD)
        (y_DD,) = evaluated(traced.jaxpr, traced.consts, [x_BD], Place(), firsts)
    assert np.isinf(y_DD).all() and set(firsts) == {"infinity"}
    assert firsts["infinity"][0].primitive.name == "dot_general"


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES)
def test_a_step_on_eight_devices(sizes):
    config = tiny_config(num_layers=sizes.get("stage", 1))
    mesh, trainer = make_mesh(sizes), make_trainer(config)
    state = first_state(trainer, config, mesh)._replace(step=jnp.int32(1))
    with jax.set_mesh(mesh):
        batch = Feed(types.SimpleNamespace(batch_size=8, sequence_length=32), mesh).to_devices(packed_batch(config, 0))
        lines = explain(config, Objective(root_of_zero, OBJECTIVE.weight), state, batch)
    assert "NaN is in the gradient, penalty: the result float32[]" in lines[0] and "test_find_nan.py:" in lines[0]


@pytest.mark.slow
def test_the_gradient_alone():
    config, state, batch = prepared()
    lines = explain(config, Objective(root_of_zero, OBJECTIVE.weight), state, batch)
    assert "NaN is in the gradient, penalty: the result float32[]" in lines[0] and "test_find_nan.py:" in lines[0]
    assert "infinity is in the forward pass, penalty: the result float32[] of div" in lines[1]  # a factor of the gradient


def test_what_was_bad_before_the_step():
    config, state, batch = prepared()
    state = spoiled(state, (1, 0, 0), np.nan, "stacks", 0, 0, "feed_forward", "up", "weight")
    (line,) = explain(config, OBJECTIVE, state, batch | {"weights": batch["weights"] * np.inf})
    assert line.endswith("not finite before the step: parameter stacks.0.0.feed_forward.up.weight of layer 1, batch weights")


def test_the_loop_says_it(tmp_path, capsys):
    config = tiny_config(num_layers=1)
    config.update(steps=4, valid_every=0, checkpoint_every=0, find_nan=True)

    class Poisoned:
        def start(self, step): ...

        def next(self, step, params, wait):
            batch = jax.tree.map(jnp.asarray, packed_batch(config, step))
            return batch | {"weights": batch["weights"] * (jnp.nan if step == 3 else 1)}, {}

        def close(self): ...

    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        result = loop.train(config, make_trainer(config), mesh, Poisoned(), tmp_path, events.usual(config))
    assert result["skipped"] == 1
    said = "".join(capsys.readouterr())
    assert "step 3: find_nan: not finite before the step: batch weights" in said and said.count("find_nan") == 1
