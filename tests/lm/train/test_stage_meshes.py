"""Stages: the same training as on one device, with the layers of a stack on different devices."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.config import Pipeline
from lm.infer.generate import generate
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from lm.parallel.pipeline import Schedule, schedule
from lm.runs.checkpoint import Checkpoints
from lm.train.step import abstract_state, make_trainer, model_config_of, state_shardings
from tests.lm.examples import packed_batch, parameters, tiny_config
from tests.lm.train.test_meshes import DEEPSEEK, run
from tests.slow import all_but
from tests.tpu import needs_libtpu, printed_by

DENSE = dict(num_layers=8)
LOCAL = dict(num_layers=9, attention_pattern=("local", "global"), window=8, local_rope_theta=1000.0)  # the last layer is alone
# With two repeats on two stages the four global layers are a pipeline, and the two local ones are sent.
MIXED = dict(num_layers=6, attention_pattern=("local",) * 2 + ("global",) * 4, window=8)
MIXTURE = DEEPSEEK | dict(num_layers=5, mlp_pattern=("dense", "moe", "moe", "moe", "moe"))  # the first layer is alone
RUNS = {
    "stage 2, data 2, tensor 2": ({"stage": 2, "data": 2, "tensor": 2}, 1, DENSE, {}),
    "stage 2, fsdp 2, tensor 2, accumulate 2": ({"stage": 2, "fsdp": 2, "tensor": 2}, 2, DENSE, {}),
    "stage 4, fsdp 2": ({"stage": 4, "fsdp": 2}, 1, DENSE, {"overlap": True}),
    "stage 8": ({"stage": 8}, 1, DENSE, {"microbatches": 16}),
    "stage 2, twice around": ({"stage": 2, "data": 2, "fsdp": 2}, 1, MIXED, {"repeats": 2}),
    "stage 4, twice around": ({"stage": 4, "data": 2}, 1, DENSE, {"repeats": 2, "overlap": True}),
    "stage 2, four times around, unrolled": ({"stage": 2, "fsdp": 4}, 1, DENSE | {"scan_layers": False}, {"repeats": 4}),
    "stage 2, unrolled": ({"stage": 2, "data": 4}, 1, DENSE | {"scan_layers": False, "remat": "none"}, {}),
    "stage 4, local and global layers": ({"stage": 4, "data": 2}, 1, LOCAL | {"remat": "full"}, {}),
    "stage 2, context 2, fsdp 2": ({"stage": 2, "context": 2, "fsdp": 2}, 1, DENSE, {}),
    "stage 2, context 2, tensor 2, local and global": ({"stage": 2, "context": 2, "tensor": 2}, 2, LOCAL, {}),
    "stage 2, values of tokens": ({"stage": 2, "data": 2, "fsdp": 2}, 1, DENSE | {"value_embeddings": 2}, {}),
    "stage 2, experts": ({"stage": 2, "expert": 2, "fsdp": 2}, 2, MIXTURE, {}),
    "stage 2, tensor 2, experts twice around": ({"stage": 2, "expert": 2, "tensor": 2}, 1, MIXTURE, {"repeats": 2}),
}


def sizes_alone(model):
    """The model without what only says how it is compiled."""
    return {key: value for key, value in model.items() if key not in ("scan_layers", "remat")}


@pytest.fixture(scope="module")
def alone():
    """Runs on one device, by model."""
    known = {}

    def of(model):
        key = repr(sorted(sizes_alone(model).items()))
        if key not in known:
            known[key] = run({}, 1, **sizes_alone(model))
        return known[key]

    return of


@pytest.mark.parametrize("name", all_but(["stage 2, data 2, tensor 2"], RUNS))
def test_as_on_one_device(alone, name):
    sizes, accumulate, model, pipeline = RUNS[name]
    curve, state, mesh = run(sizes, accumulate, pipeline=pipeline, **model)
    expected, last, _ = alone(model)
    assert expected[-1, 0] < expected[0, 0] - 0.3  # it does learn
    np.testing.assert_allclose(curve, expected, rtol=1e-5)
    for (path, ours), theirs in zip(nnx.to_flat_state(state.params), jax.tree.leaves(last.params), strict=True):
        if path[-1] == "balance_bias":
            np.testing.assert_allclose(ours.get_value(), np.asarray(theirs), atol=1e-7)
    assert_split(state.params, mesh)
    assert_split(state.optimizer[0].mu, mesh)
    assert_split(state.optimizer[0].nu, mesh)


def assert_split(tree, mesh):
    """Every stage holds its own layers of each stack that the stages divide, and no others."""
    stacked = 0
    for path, variable in nnx.to_flat_state(tree):
        array = variable.get_value()
        if path[0] != "stacks":
            continue
        layers, ways = array.shape[0], mesh.shape["stage"]
        parts = {(shard.index[0].start or 0, shard.index[0].stop or layers) for shard in array.addressable_shards}
        each = layers // ways if layers % ways == 0 else layers
        assert parts == {(begin, begin + each) for begin in range(0, layers, each)}, path
        stacked += len(parts) > 1
    assert stacked > 3


@pytest.mark.parametrize("S, M, R, d", [(2, 8, 1, 1), (4, 4, 1, 1), (4, 12, 2, 1), (2, 8, 3, 2), (4, 4, 2, 2), (3, 6, 1, 2)])
def test_each_stage_computes_each_microbatch_after_the_stage_before(S, M, R, d):
    plan = Schedule(S, M, R, d)
    done = {}
    for tick, stage in itertools.product(range(plan.ticks), range(S)):
        microbatch, repeat, there = map(int, plan.at(jnp.int32(tick - d * stage)))
        if there:
            assert done.setdefault((microbatch, repeat * S + stage), tick) == tick
    assert sorted(done) == list(itertools.product(range(M), range(S * R)))
    assert max(done.values()) == plan.ticks - 1
    assert all(done[m, part] == done[m, part - 1] + d for m, part in done if part)
    if M % (S * d) == 0 or R == 1:
        assert plan.bubble == pytest.approx(d * (S - 1) / (M * R + d * (S - 1)))


def test_a_schedule_says_how_long_stages_are_idle():
    assert str(Schedule(2, 8, 1, 1)) == "2 stages, 8 microbatches: bubble 11.1 % of 9 ticks"
    assert str(Schedule(4, 16, 2, 1)) == "4 stages, 16 microbatches, each 2 times around: bubble 8.6 % of 35 ticks"


def test_as_many_microbatches_as_the_config_wants_and_the_rows_allow():
    mesh = make_mesh({"stage": 2, "data": 4}).abstract_mesh

    def microbatches(want, rows):
        return schedule(Pipeline(microbatches=want), rows, mesh).microbatches

    found = {(want, rows): microbatches(want, rows) for want in (0, 4) for rows in (8, 48, 128)}
    assert found == {(0, 8): 2, (0, 48): 6, (0, 128): 8, (4, 8): 2, (4, 48): 4, (4, 128): 4}


def state_on(sizes, config, devices=8):
    """(trainer, its state after `init`, mesh)."""
    mesh = make_mesh(sizes, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        abstract = abstract_state(trainer, mesh)
        return abstract, jax.jit(trainer.init, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))()


STAGED, FLAT = ({"stage": 2, "fsdp": 4}, {"data": 8}), ({"tensor": 2, "data": 4}, {"stage": 4, "data": 2})


@pytest.mark.slow
@pytest.mark.parametrize("before, after", all_but([STAGED], [STAGED, FLAT]))
def test_a_checkpoint_is_restored_on_any_number_of_stages(tmp_path, before, after):
    config = tiny_config(num_layers=4)
    (_, state), (abstract, other) = state_on(before, config), state_on(after, config)
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)  # it begins alike on any number of stages
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"config": config.to_dict(), "tokens": 0})
    checkpoints.wait()
    restored = checkpoints.restore(1, abstract)
    checkpoints.close()
    for ours, theirs, target in zip(*map(jax.tree.leaves, (restored, state, abstract)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.sharding == target.sharding


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [True, False])
def test_text_is_drawn_as_on_one_device(scan_layers):
    """Layers are sent to all devices one at a time, since a token would leave all stages but one idle."""
    config = model_config_of(tiny_config(num_layers=4, scan_layers=scan_layers))
    params = parameters(config, scale=3.0)
    prompts = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]

    def drawn(sizes, devices):
        mesh = make_mesh(sizes, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            graph, abstract = skeleton(config)
            there = jax.device_put(params, shardings(abstract, mesh))
            return generate(nnx.merge(graph, there), None, prompts, max_new_tokens=6, temperature=0.0)

    assert drawn({"stage": 2, "data": 2}, 4) == drawn({}, 1)


def test_rows_that_do_not_fill_the_microbatches_are_computed_too():
    """As in an evaluation: fewer rows than the config's microbatches."""
    config = tiny_config(num_layers=4)
    config.batch_size = 4
    batch = packed_batch(config, 0)
    logits = {}
    for sizes, devices in (({"stage": 2, "data": 2}, 4), ({}, 1)):
        mesh = make_mesh(sizes, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            trainer = make_trainer(config)
            where = state_shardings(trainer, mesh).params
            params = jax.device_put(parameters(model_config_of(config)), where)
            logits[devices] = jax.jit(trainer.evaluate)(params, batch)["objective"]
    np.testing.assert_allclose(logits[4], logits[1], rtol=1e-6)


PROGRAM = """
import json
from jax.experimental import topologies
from configs.train import default
from lm.train.plan.compiled import compile_step
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
for mesh in (dict(data=2, fsdp=8), dict(data=1, stage=2, fsdp=8)):
    config = default.get_config()
    config.batch_size, config.sequence_length, config.model.remat = 64, 512, "full"
    config.model.update(num_layers=8, embed_dim=1024, num_heads=8, num_kv_heads=8, head_dim=128, mlp_dim=4096)
    config.optimizer.name = "adamw"  # whose update has no loops
    config.model.pipeline.overlap = True
    config.mesh.update(mesh)
    compiled = compile_step(config, devices).compiled
    memory = compiled.memory_analysis()
    print(json.dumps([memory.argument_size_in_bytes, memory.temp_size_in_bytes]))
print(compiled.as_text())
"""


@pytest.mark.slow
@needs_libtpu
def test_a_tpu_computes_layers_while_rows_travel_between_stages():
    """In the forward pass, each permutation of the loop over ticks begins before the loop over layers and ends after it.

    In the backward pass the loop over layers has permutations of its own, and XLA starts no other one before it.
    """
    flat, staged, program = printed_by(PROGRAM).split("\n", 2)
    assert sum(json.loads(staged)) < sum(json.loads(flat)), "bytes of a chip"
    begun, around = {}, 0
    for number, line in enumerate(program.split("\n")):
        if started := re.match(r"\s*%?(collective-permute-start[\w.]*) = ", line):
            begun[started[1]] = number
        elif ended := re.search(r" collective-permute-done\(.*%(collective-permute-start[\w.]*)\)", line):
            around += any(" while(" in between for between in program.split("\n")[begun[ended[1]] : number])
    assert around == 3  # what a stage receives, what the first one gets back, and results
