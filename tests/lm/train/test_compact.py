"""Moments in bfloat16 and int8: what a code is off by, runs beside those with float32, and checkpoints on other meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from lm.config import ModelConfig
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from lm.runs.checkpoint import Checkpoints
from lm.train.describe import abstract_mesh, memories
from lm.train.optimizers.chain import optimizer as chain
from lm.train.optimizers.compact import bits_like, block_size, compact, in_blocks, signed_codes, square_codes, to_bfloat16
from lm.train.step import abstract_state, make_trainer, model_config_of
from tests.lm.examples import first_state, packed_batch, parameters, tiny_config
from tests.slow import all_but


def uniform(shape, seed):
    return (bits_like(jnp.zeros(shape), jnp.uint32(seed)) >> 8).astype(jnp.float32) * 2.0**-24


def test_random_bits_are_uniform_and_differ():
    u = np.asarray(uniform((64, 1000), 3))
    np.testing.assert_allclose(np.histogram(u, 10, (0, 1))[0] / u.size, 0.1, atol=0.005)
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(u.ravel(), np.asarray(uniform((64, 1000), 4)).ravel())[0, 1]) < 0.02


def test_codes_are_right_on_average_and_never_far_off():
    x = jnp.exp(jnp.linspace(np.log(1e-9), 0, 200))
    u = uniform((4000, 200), 0)
    signed = np.asarray(signed_codes(-x[None], u), np.float64) / 127
    assert np.abs(signed + x[None]).max() <= 1 / 127
    np.testing.assert_allclose(signed.mean(0), -x, atol=5e-4)
    squares = np.asarray(jnp.exp2((square_codes(x[None], u).astype(jnp.float32) - 255) / 6), np.float64)
    assert np.abs(np.sqrt(squares / x[None]) - 1).max() < 0.061
    np.testing.assert_allclose(squares.mean(0), x, rtol=5e-3)
    assert square_codes(jnp.array([0.0, 1e-30]), jnp.zeros(2)).tolist() == [0, 1]  # only 0 is 0
    halves = np.asarray(to_bfloat16(x[None], bits_like(u, jnp.uint32(1))), np.float64)
    assert np.abs(halves / x[None] - 1).max() < 2**-7
    np.testing.assert_allclose(halves.mean(0), x, rtol=5e-4)


@pytest.mark.parametrize("last, size", [(512, 64), (96, 32), (48, 16), (100, 100), (7, 7)])
def test_blocks(last, size):
    assert block_size(last) == size and in_blocks(jnp.zeros((3, last))).shape == (3, last // size, size)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_mean_of_squares_follows_gradients_that_become_smaller(dtype):
    """Each step changes it by less than half a code: rounding to the nearest would keep it where it was."""
    config = ModelConfig(vocab_size=16, num_layers=1, embed_dim=16, num_heads=1, num_kv_heads=1, mlp_dim=16)
    params = nnx.filter_state(parameters(config), lambda path, _: path == ("embedding",))
    transform = compact(optax.scale_by_adam(b2=0.999), dtype)

    @jax.jit
    def mean_of_squares():
        gradient, small = jax.tree.map(jnp.ones_like, params), jax.tree.map(jnp.zeros_like, params)
        state = transform.update(gradient, transform.init(params))[1]
        state = lax.scan(lambda state, _: (transform.update(small, state)[1], None), state, length=1000)[0]
        return jnp.mean(jax.tree.leaves(transform.update(gradient, state)[0])[0])

    exact = 0.1 / np.sqrt((0.001 * 0.999**1001 + 0.001) / (1 - 0.999**1002))  # of the first moment 0.1 is left
    np.testing.assert_allclose(mean_of_squares(), exact, rtol=0.03)


def losses(steps=50, **optimizer):
    config = tiny_config()
    config.steps = steps
    config.optimizer.update(learning_rate=4e-3, **optimizer)
    trainer = make_trainer(config)
    state, step, found = first_state(trainer, config), jax.jit(trainer.step, donate_argnums=0), []
    for n in range(steps):
        state, metrics = step(state, packed_batch(config, seed=n))
        found.append(float(metrics["loss"]))
    return np.asarray(found)


@functools.cache
def exact(name):
    return losses(name=name)


NEAR = [("adamw", "bfloat16", 0.002), ("adamw", "int8", 0.02), ("muon", "int8", 0.02)]


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype, most", all_but(NEAR[1:2], NEAR))
def test_losses_beside_those_with_float32(name, dtype, most):
    """Over 50 steps of a loss that falls by more than 1."""
    assert exact(name)[-1] < exact(name)[0] - 1
    np.testing.assert_allclose(losses(name=name, state_dtype=dtype), exact(name), atol=most, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", all_but(["adamw"], ["adamw", "muon"]))
def test_a_checkpoint_moves_to_another_mesh(optimizer, tmp_path):
    """A last axis of 256 has four blocks, one for each device of fsdp; that of 64 has one, which two devices hold whole."""
    config = tiny_config()
    config.optimizer.update(name=optimizer, state_dtype="int8")
    config.model.update(embed_dim=256)
    shape, values = model_config_of(config), []
    for mesh in (make_mesh({"fsdp": 4, "tensor": 2}), make_mesh({}, jax.devices()[:1])):
        with jax.set_mesh(mesh):
            trainer, checkpoints = make_trainer(config), Checkpoints(tmp_path)
            if not values:
                state, abstract = first_state(trainer, config, mesh), skeleton(shape)[1]
                slopes = jax.tree.map(lambda p: np.sin(100 * np.asarray(p) + np.float32(0.1)), parameters(shape))
                update = jax.jit(chain(abstract, shape, config.optimizer).update)
                _, moments = update(jax.device_put(slopes, shardings(abstract, mesh)), state.optimizer, state.params)
                state = state._replace(optimizer=moments)
                checkpoints.save(1, state, {})
                checkpoints.wait()
            else:
                state = checkpoints.restore(1, abstract_state(trainer, mesh))
            checkpoints.close()
        values.append({jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(state.optimizer)})
    first, second = values
    assert first.keys() == second.keys() and {x.dtype.name for x in first.values()} == {"int32", "int8", "uint8", "float32"}
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name], err_msg=name)
    shares = {"down']['weight": (8, 8), "up']['weight": (8, 4), "'embedding'": (8, 8)}
    for name, (codes, scales) in shares.items():
        for part, devices in (("codes", codes), ("scales", scales)):
            x = next(x for key, x in first.items() if name in key and f".{part}." in key and ".mu" in key)
            assert x.addressable_shards[0].data.size * devices == x.size, (name, part)


def test_memory():
    config = tiny_config()
    config.mesh.data = 1
    sizes = {}
    for name in ("float32", "bfloat16", "int8"):
        config.optimizer.state_dtype = name
        with jax.sharding.use_abstract_mesh(abstract_mesh(config.mesh)):
            sizes[name] = memories(config, abstract_mesh(config.mesh))[0]["optimizer"]
    assert 0.49 < sizes["bfloat16"] / sizes["float32"] < 0.52
    assert 0.25 < sizes["int8"] / sizes["float32"] < 0.4  # heads of 8 numbers: a scale for each 8, and else for 32 or 64
