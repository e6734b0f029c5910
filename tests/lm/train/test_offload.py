"""Layers' values and moments in host memory: the same numbers as in device memory, on any mesh and after a checkpoint."""

import functools
import itertools
import types

import jax
import numpy as np
import pytest

from lm.parallel.mesh import make_mesh
from lm.runs.checkpoint import Checkpoints
from lm.train.describe import abstract_mesh, memories
from lm.train.feed import Feed
from lm.train.step import abstract_state, make_trainer
from lm.train.update import sound
from tests.lm.examples import first_state, packed_batch, tiny_config
from tests.slow import all_but

STEPS = 3
SPLIT = {"data": 2, "fsdp": 2, "tensor": 2}
MOE = {"mlp_pattern": ("moe",), "moe": {"num_experts": 4, "top_k": 2, "expert_dim": 32}}
STAGES = {"stage": 2, "data": 2, "fsdp": 2}
RUNS = {
    "one device": ({}, 1, {}),
    "split, accumulate 4": (SPLIT, 4, {}),
    "split, accumulate 4, unrolled": (SPLIT, 4, {"scan_layers": False}),
    "context": ({"context": 2, "fsdp": 2, "tensor": 2}, 1, {}),
    "experts": ({"expert": 4, "data": 2}, 1, MOE),
    "two tokens ahead": ({"fsdp": 8}, 1, {"mtp_depth": 1}),
    "stages": (STAGES, 1, {"num_layers": 4}),
    "stages, repeats": (STAGES, 1, {"num_layers": 4, "pipeline": {"repeats": 2}}),
    "stages, unrolled": (STAGES, 1, {"num_layers": 4, "scan_layers": False}),
}
WAYS = list(itertools.product(RUNS, ("matmuls", "full"), ("float32", "bfloat16")))
QUICK = [("split, accumulate 4", "matmuls", "bfloat16")]
OPTIMIZERS = [("adamw", "float32"), ("muon", "int8"), ("lion", "bfloat16")]


def training(accumulate=1, model=(), dtype="float32", **optimizer):
    config = tiny_config(**dict(model))
    config.batch_size, config.accumulate, config.dtype = 16, accumulate, dtype
    config.optimizer.update(optimizer)
    return config


def run(config, sizes, state=None, first=0, steps=STEPS, programs=None):
    """(last state, [(loss, gradient norm)]) of some steps, from a state or from the beginning.

    `programs`: (trainer, compiled step) of an earlier run of this config on this mesh.
    """
    mesh = make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    with jax.set_mesh(mesh):
        trainer, step = programs or programs_of(config)
        if state is None:
            state = first_state(trainer, config, mesh)
        feed = Feed(types.SimpleNamespace(batch_size=16, sequence_length=config.sequence_length), mesh)
        curve = []
        for n in range(first, first + steps):
            state, metrics = step(state, feed.to_devices(packed_batch(config, seed=n)))
            curve.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return state, curve


def programs_of(config):
    trainer = make_trainer(config)
    return trainer, jax.jit(trainer.step, donate_argnums=0)


@functools.cache
def without():
    """(programs, last state, curve) of 2 · STEPS steps on SPLIT in device memory, for the tests of `make test`."""
    config = training(4, dtype="bfloat16")
    programs = programs_of_split(config)
    return programs, *run(config, SPLIT, steps=2 * STEPS, programs=programs)


def programs_of_split(config):
    with jax.set_mesh(make_mesh(SPLIT)):
        return programs_of(config)


def kinds(tree) -> set:
    return {(x.ndim > 1, x.sharding.memory_kind) for x in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
    "name, remat, dtype", all_but(QUICK, itertools.product(RUNS, ("matmuls", "full"), ("float32", "bfloat16")))
)
def test_layers_on_the_host(name, remat, dtype):
    sizes, accumulate, model = RUNS[name]
    configs = [training(accumulate, model | {"remat": remat, "offload": offload}, dtype) for offload in (False, True)]
    if configs[0].to_json() == training(4, dtype="bfloat16").to_json():
        here = without()[-1][:STEPS]
    else:
        here = run(configs[0], sizes)[1]
    np.testing.assert_allclose(run(configs[1], sizes)[1], here, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype", all_but([("adamw", "float32")], OPTIMIZERS))
def test_moments_on_the_host(name, dtype, tmp_path):
    """Bit for bit, also if moments move to the other memory at a checkpoint, in either direction."""
    configs = {
        offload: training(4, dtype="bfloat16", name=name, state_dtype=dtype, offload=offload) for offload in (False, True)
    }
    if (name, dtype) == ("adamw", "float32"):
        here, expected, curve = without()
    else:
        here = programs_of_split(configs[False])
        expected, curve = run(configs[False], SPLIT, steps=2 * STEPS, programs=here)
    programs = {False: here, True: programs_of_split(configs[True])}
    for before, after in ((True, False), (False, True)):
        state, first = run(configs[before], SPLIT, programs=programs[before])
        assert kinds(state.optimizer) == {(True, "pinned_host" if before else "device"), (False, "device")}
        assert kinds(state.params) == {(True, "device"), (False, "device")} and bool(
            jax.jit(functools.partial(sound, offload=True))(state)
        )
        mesh, folder = make_mesh(SPLIT), tmp_path / str(before)
        with jax.set_mesh(mesh):
            checkpoints = Checkpoints(folder)
            checkpoints.save(1, state, {})
            checkpoints.wait()
            state = checkpoints.restore(1, abstract_state(programs[after][0], mesh))
            checkpoints.close()
        assert kinds(state.optimizer) == {(True, "pinned_host" if after else "device"), (False, "device")}
        state, second = run(configs[after], SPLIT, state, first=STEPS, programs=programs[after])
        assert first + second == curve
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(expected))


def test_memory_moves_from_the_device_to_the_host():
    found = {}
    for offload in (False, True):
        config = training(offload=offload)
        config.model.offload, config.mesh.data = offload, 1
        mesh = abstract_mesh(config.mesh)
        with jax.sharding.use_abstract_mesh(mesh):
            found[offload] = memories(config, mesh)
    (here, nothing), (device, host) = found[False], found[True]
    assert set(nothing.values()) == {0}
    for kind in ("optimizer", "activations"):
        assert device[kind] + host[kind] == pytest.approx(here[kind], rel=0.02)
    assert device["optimizer"] < 0.05 * here["optimizer"] and device["activations"] < 0.5 * here["activations"]
    assert device["parameters"] == here["parameters"]
