"""The same training on any mesh: initial parameters bit for bit, losses and gradient norms for 10 steps."""

import math
import types

import jax
import numpy as np
import pytest
from flax import nnx

from lm.model.transformer import build, skeleton
from lm.parallel.mesh import check_fit, logical_axes, make_mesh, shardings, spec
from lm.train.feed import Feed
from lm.train.plan.compiled import compile_step
from lm.train.step import make_trainer, model_config_of
from tests.lm.examples import first_state, packed_batch, tiny_config
from tests.slow import all_but

STEPS = 10
RUNS = {
    "data 8": ({"data": 8}, 1),
    "fsdp 8": ({"fsdp": 8}, 1),
    "fsdp 4, tensor 2": ({"fsdp": 4, "tensor": 2}, 1),
    "data 2, fsdp 2, tensor 2": ({"data": 2, "fsdp": 2, "tensor": 2}, 1),
    "data 2, fsdp 2, tensor 2, accumulate 4": ({"data": 2, "fsdp": 2, "tensor": 2}, 4),
    "accumulate 4": ({}, 4),
    "context 8": ({"context": 8}, 1),
    "data 2, context 4": ({"data": 2, "context": 4}, 1),
    "context 2, fsdp 2, tensor 2": ({"context": 2, "fsdp": 2, "tensor": 2}, 1),
    "data 2, context 2, tensor 2, accumulate 4": ({"data": 2, "context": 2, "tensor": 2}, 4),
}
QUICK = ["data 2, fsdp 2, tensor 2, accumulate 4", "context 2, fsdp 2, tensor 2"]


def run(sizes, accumulate, steps=STEPS, **model):
    """([(loss, gradient norm)], last state, mesh) of a short run."""
    config = tiny_config(**model)
    config.batch_size, config.steps, config.accumulate = 16, STEPS, accumulate
    config.optimizer.update(learning_rate=6e-3, warmup=2)
    mesh = make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    check_fit(mesh, model_config_of(config), config.batch_size, accumulate, config.sequence_length)
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        state = first_state(trainer, config, mesh)
        feed = Feed(types.SimpleNamespace(batch_size=16, sequence_length=config.sequence_length), mesh)
        step = jax.jit(trainer.step, donate_argnums=0)
        curve = []
        for n in range(steps):
            state, metrics = step(state, feed.to_devices(packed_batch(config, seed=n)))
            curve.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.asarray(curve), state, mesh


@pytest.fixture(scope="module")
def one_device():
    return run({}, 1)


@pytest.mark.parametrize("name", all_but(QUICK, RUNS))
def test_as_on_one_device(one_device, name):
    curve, state, mesh = run(*RUNS[name])
    losses, norms = curve.T
    expected_losses, expected_norms = one_device[0].T
    assert expected_losses[-1] < expected_losses[0] - 0.3  # it does learn
    np.testing.assert_allclose(losses, expected_losses, atol=1e-5, rtol=0)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-4)
    assert_split(state.params, mesh)
    assert_split(state.optimizer[0].mu, mesh)
    assert_split(state.optimizer[0].nu, mesh)


@pytest.mark.parametrize("name", all_but(QUICK[:1], [name for name, (sizes, _) in RUNS.items() if sizes]))
def test_initial_parameters_are_those_of_one_device(name):
    assert_begins_as_on_one_device(RUNS[name][0])


def assert_begins_as_on_one_device(sizes, **model):
    config, found = model_config_of(tiny_config(**model)), []
    for devices, some in ((1, {}), (8, sizes)):
        mesh = make_mesh(some, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            found.append(jax.jit(lambda: build(config, 0), out_shardings=shardings(skeleton(config)[1], mesh))())
    for one, many in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, many)


@pytest.mark.slow
def test_one_key_value_head_for_all_queries_as_on_one_device():
    curves = [run(sizes, 1, steps=1, num_kv_heads=1)[0] for sizes in ({}, {"data": 4, "fsdp": 2})]
    np.testing.assert_allclose(*curves, rtol=1e-5)


DEEPSEEK = dict(
    num_layers=2,
    num_kv_heads=4,
    mlp_pattern=("dense", "moe"),
    mtp_depth=1,
    rope=dict(interleaved=True),
    mla=dict(kv_rank=8, query_rank=8, rope_head_dim=4, value_head_dim=8),
    moe=dict(
        num_experts=8,
        expert_dim=16,
        shared_dim=16,
        num_groups=4,
        top_groups=2,
        scores="sigmoid",
        group_score="top2",
        balance_bias=True,
        bias_rate=0.01,
        balance_loss=0.01,
        router_z_loss=0.001,
    ),
)


LOCAL = dict(attention_pattern=("local", "global"), window=6, attention_softcap=5.0, attention_sinks=True)


@pytest.mark.slow
@pytest.mark.parametrize("across", ["ring", "all_gather"])
def test_windows_of_split_sequences_as_on_one_device(across):
    curves = [run(sizes, 1, steps=4, context_attention=across, **LOCAL)[0] for sizes in ({}, {"context": 4, "tensor": 2})]
    np.testing.assert_allclose(*curves, rtol=1e-5)


@pytest.mark.slow
def test_values_of_tokens_as_on_one_device():
    sizes = {"fsdp": 2, "tensor": 2, "context": 2}
    curves = [run(some, 1, steps=4, num_layers=3, value_embeddings=2)[0] for some in ({}, sizes)]
    np.testing.assert_allclose(*curves, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["tensor", "context"])
def test_experts_latents_and_looking_ahead_as_on_one_device(axis):
    sizes = {"expert": 2, "fsdp": 2, axis: 2}
    assert_begins_as_on_one_device(sizes, **DEEPSEEK)
    curve, state, mesh = run(sizes, 2, steps=3, **DEEPSEEK)
    expected, before, _ = run({}, 1, steps=3, **DEEPSEEK)
    np.testing.assert_allclose(curve, expected, rtol=1e-5)
    assert_split(state.params, mesh)
    biases = [params["stacks"][1][0]["feed_forward"]["balance_bias"].get_value() for params in (state.params, before.params)]
    np.testing.assert_allclose(*map(np.asarray, biases), atol=1e-7)
    assert np.abs(biases[0]).max() >= 0.009


@pytest.mark.slow
def test_more_devices_along_a_sequence_take_less_memory_of_each():
    """With masks or keys of whole sequences it would not fall."""

    def temporary(ways):
        config = tiny_config(remat="full")
        config.batch_size, config.sequence_length = 1, 2**17
        config.mesh.update(data=1, context=ways)
        return compile_step(config, jax.devices()[:ways]).compiled.memory_analysis().temp_size_in_bytes

    assert temporary(4) < 0.6 * temporary(2)


def test_a_feed_gives_each_device_its_part_of_a_sequence():
    mesh = make_mesh({"data": 2, "context": 4})
    tokens = np.arange(4 * 16, dtype=np.int32).reshape(4, 16)
    with jax.set_mesh(mesh):
        feed = Feed(types.SimpleNamespace(batch_size=4), mesh)
        batch = feed.to_devices({"tokens": tokens, "pairs": np.stack((tokens, tokens), 1), "margin": tokens[:, 0]})
    for shard in batch["tokens"].addressable_shards:
        row, part = divmod(shard.device.id, 4)
        slots = [2 * part, 2 * part + 1, 14 - 2 * part, 15 - 2 * part]
        np.testing.assert_array_equal(shard.data, tokens[2 * row : 2 * row + 2, slots])
    np.testing.assert_array_equal(batch["pairs"][:, 1], batch["tokens"])
    np.testing.assert_array_equal(batch["margin"], tokens[:, 0])


def assert_split(tree, mesh):
    """Every device holds its own part of each array and no more."""
    for variable in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        array = variable.get_value()
        names = [spec(axis, mesh=mesh)[0] or () for axis in logical_axes(variable)]
        ways = [math.prod(mesh.shape[name] for name in ((axes,) if isinstance(axes, str) else axes)) for axes in names]
        part = tuple(size // n for size, n in zip(array.shape, ways, strict=True))
        assert {shard.data.shape for shard in array.addressable_shards} == {part}
        assert len({str(shard.index) for shard in array.addressable_shards}) == np.prod(ways)
