"""Muon: its directions against singular vectors, on any mesh as on one device, and shared out among the devices."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from lm.train.optimizers.chain import mup_scale, optimizer, orthogonalised
from lm.train.optimizers.muon import shared_out
from lm.train.step import make_trainer, model_config_of
from tests.lm.examples import first_state, packed_batch, parameters, tiny_config
from tests.lm.train.test_meshes import DEEPSEEK
from tests.slow import all_but

SMALL = DEEPSEEK | {"mtp_depth": 0, "num_layers": 3}  # a dense layer with latent attention, and two of experts


@functools.cache
def directions(mesh_name: str, model_name: str, name="muon", turns=1, updates=1):
    """Return (the last of some updates by name, gradients by name, the compiled program), without decay, on a mesh."""
    sizes, model = MESHES[mesh_name], MODELS[model_name]
    config = tiny_config(**model)
    config.optimizer.update(name=name, weight_decay=0.0, turns=turns)
    shape = model_config_of(config)
    learns = trainable(shape)
    mesh = make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    with jax.set_mesh(mesh):
        abstract = nnx.filter_state(skeleton(shape)[1], learns)
        transform = optimizer(abstract, shape, config.optimizer)
        here = nnx.filter_state(parameters(shape), learns)
        slopes = jax.tree.map(lambda p: np.sin(100 * np.asarray(p) + np.float32(0.1)), here)
        params, grads = (jax.device_put(tree, shardings(abstract, mesh)) for tree in (here, slopes))
        state = transform.init(params)
        program = jax.jit(lambda g, s, p: transform.update(g, s, p)).lower(grads, state, params).compile()
        for _ in range(updates):
            found, state = program(grads, state, params)
    return named(found), named(grads), program.as_text()


def named(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


MESHES = {
    "one": {},
    "fsdp 8": {"fsdp": 8},
    "fsdp 4, tensor 2": {"fsdp": 4, "tensor": 2},
    "expert 2, fsdp 2, tensor 2": {"expert": 2, "fsdp": 2, "tensor": 2},
}
MODELS = {
    "eight layers": dict(num_layers=8),
    "three layers": dict(num_layers=3),
    "two layers": {},
    "latent attention and experts": SMALL,
}


@pytest.mark.parametrize("weight, stacked, inputs", [("query_up", 1, 1), ("output", 1, 2), ("gate", 1, 1), ("down", 2, 1)])
def test_singular_values_are_near_one_and_singular_vectors_stay(weight, stacked, inputs):
    """Of [layers, R, H, K], [layers, H, V, D], the dense [layers, D, F] and the experts' [layers, E, F, D]."""
    updates, grads, _ = directions("one", "latent attention and experts")
    name = next(
        n
        for n in updates
        if f"'{weight}'" in n
        and ("shared" not in n)
        and updates[n].ndim == grads[n].ndim >= 3
        and (weight not in ("gate", "down") or updates[n].ndim == stacked + 2)
    )
    rows = math.prod(updates[name].shape[stacked : stacked + inputs])
    count = math.prod(updates[name].shape[:stacked])
    for x, g in zip(*(tree[name].reshape(count, rows, -1) for tree in (updates, grads)), strict=True):
        u, s, vt = np.linalg.svd(g, full_matrices=False)
        mapped = u.T @ x @ vt.T / (0.2 * max(x.shape) ** 0.5)
        values = np.diag(mapped)
        assert values[s > 0.05 * s[0]].min() > 0.5 and values.max() < 1.3
        assert np.abs(mapped - np.diag(values)).max() < 1e-2


@pytest.mark.parametrize("weight, stacked, inputs", [("query_up", 1, 1), ("output", 1, 2), ("down", 2, 1)])
def test_normuon_gives_each_output_the_same_size_at_first(weight, stacked, inputs):
    """After one step the mean of squares is that of the step, so O / √v has rows of one size, in the directions of U·Vᵀ."""
    updates, grads, _ = directions("one", "latent attention and experts", "normuon")
    name = next(n for n in updates if f"'{weight}'" in n and "shared" not in n and updates[n].ndim >= stacked + 1 + inputs)
    rows, count = math.prod(updates[name].shape[stacked : stacked + inputs]), math.prod(updates[name].shape[:stacked])
    for x, g in zip(*(tree[name].reshape(count, rows, -1) for tree in (updates, grads)), strict=True):
        np.testing.assert_allclose(np.sqrt(np.mean(x**2, axis=0)), 0.2, rtol=1e-3)
        u, s, vt = np.linalg.svd(g, full_matrices=False)
        exact = (u @ vt) / np.linalg.norm(u @ vt, axis=0)
        if s[-1] > 0.05 * s[0]:
            assert np.min(np.sum(exact * x / np.linalg.norm(x, axis=0), axis=0)) > 0.97


@pytest.mark.parametrize("mesh", all_but(["fsdp 4, tensor 2"], ["one", "fsdp 4, tensor 2"]))
def test_layers_take_turns(mesh):
    """Of three layers, updates change 0 and 2, then 1, by twice what all would get; what is no layer changes in each."""
    model = "three layers"
    (all_, _, _), *some = [directions("one", model, "normuon"), *[directions(mesh, model, "normuon", 2, n) for n in (1, 2)]]
    stacks = {name for name, x in all_.items() if x.ndim > 2}
    for name, x in all_.items():
        first, second = (updates[name] for updates, _, _ in some)
        if name not in stacks:
            np.testing.assert_allclose(first, x, atol=1e-5, err_msg=name)
            continue
        np.testing.assert_allclose(first[::2], 2 * x[::2], atol=1e-4, err_msg=name)
        np.testing.assert_allclose(np.sqrt(np.mean(second[1] ** 2)), 0.4, rtol=1e-3)
        assert not first[1].any() and not second[::2].any()
    assert len(stacks) == 7


def test_the_memory_of_normuon_is_of_outputs_and_sharded_as_they_are():
    config = tiny_config(**SMALL)
    config.optimizer.name = "normuon"
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "expert": 2})
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        state = jax.eval_shape(trainer.init)
        found = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(state.optimizer)}
        placed = {
            jax.tree_util.keystr(path): x.spec
            for path, x in jax.tree_util.tree_leaves_with_path(shardings(state.optimizer, mesh))
        }
    outputs = {name: (x.shape, placed[name]) for name, x in found.items() if ".outputs" in name}
    down = next(value for name, value in outputs.items() if "'down'" in name and len(value[0]) == 3)
    assert down[0][1:] == (SMALL["moe"]["num_experts"], 32) and "expert" in str(down[1])
    assert sum(math.prod(shape) for shape, _ in outputs.values()) < 0.1 * sum(x.size for n, x in found.items() if ".mu" in n)


def test_embeddings_heads_routers_and_vectors_are_adamws():
    muon, adamw = (directions("one", "latent attention and experts", name)[0] for name in ("muon", "adamw"))
    same = {name for name in muon if np.array_equal(muon[name], adamw[name])}
    assert same == {name for name in muon if re.search(r"norm|embedding|head|router", name)} and len(same) >= 5


def test_scales_of_mup():
    """At twice the base width: 1/2 of a hidden matrix with AdamW and 1/√2 with Muon; an adapter's A and B as with AdamW."""
    config = model_config_of(tiny_config(mup_base_dim=16, adapter=dict(rank=2)))
    params = skeleton(config)[1]
    query = params["stacks"][0][0]["attention"]["query"]
    variables = [query["weight"], query["lora_a"], query["lora_b"], params["embedding"], params["head"]]
    assert [mup_scale(variable, config, "adamw") for variable in variables] == [0.5, 0.5, 1, 1, 1]
    assert [mup_scale(variable, config, "muon") for variable in variables] == [0.5**0.5, 0.5, 1, 1, 1]


def test_adapters_are_orthogonalised():
    config = tiny_config(adapter=dict(rank=4))
    learned = nnx.filter_state(skeleton(model_config_of(config))[1], nnx.LoRAParam)
    found = jax.tree.leaves(learned, is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert len(found) == 8 and all(map(orthogonalised, found))


SHARES = {("fsdp 8", "eight layers"): 8, ("fsdp 4, tensor 2", "two layers"): 3}
SHARES[("expert 2, fsdp 2, tensor 2", "latent attention and experts")] = 3


@pytest.mark.slow
@pytest.mark.parametrize("mesh, model", all_but(list(SHARES)[-1:], SHARES))
@pytest.mark.parametrize("optimizer", ["muon", "normuon"])
def test_as_on_one_device_and_shared_out(mesh, model, optimizer):
    """No device multiplies everything: with 8 layers on 8 devices an eighth each, else a third at most. One device loops."""
    (many, _, program), (one, _, alone) = directions(mesh, model, optimizer), directions("one", model, optimizer)
    for key, update in one.items():
        np.testing.assert_allclose(many[key], update, atol=1e-5, rtol=0, err_msg=key)
    assert flops(program) * SHARES[mesh, model] <= flops(alone) * {"eight layers": 8, "two layers": 2}.get(model, 1)


def flops(program: str) -> int:
    """Return the multiplications of all dots in a compiled program."""
    shapes, total = dict(re.findall(r"(%?[\w.-]+) = \w+\[([\d,]*)\]", program)), 0
    for out, lhs, contracted in re.findall(
        r"= \w+\[([\d,]*)\]\S* dot\((?:\w+\[[\d,]*\]\S* )?(%?[\w.-]+),.*lhs_contracting_dims=\{([\d,]*)\}", program
    ):
        sizes = numbers(shapes[lhs])
        total += math.prod(numbers(out)) * math.prod(sizes[i] for i in numbers(contracted))
    assert total
    return total


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


ONES = {"data": 1, "fsdp": 1, "tensor": 1, "expert": 1}


@pytest.mark.parametrize(
    "shape, spec, mesh, expected, padded",
    [
        ((32, 8, 24), (None, "fsdp", "tensor"), {"fsdp": 4, "tensor": 2}, (("fsdp", "tensor"), None, None), 32),
        ((3, 8, 24), (None, "fsdp", "tensor"), {"fsdp": 4}, ("fsdp", None, "tensor"), 4),  # one device idles
        ((1, 8, 24), (None, "fsdp", "tensor"), {"fsdp": 4, "tensor": 2}, (None, None, ("tensor", "fsdp")), 1),
        ((1, 24, 8), (None, "fsdp", "tensor"), {"fsdp": 4, "tensor": 2}, (None, ("fsdp", "tensor"), None), 1),
        ((6, 8, 24), (None, None, None), {"data": 2}, ("data", None, None), 6),  # split over replicas too
        ((2, 4, 8, 24), (None, "expert", "fsdp", None), {"expert": 2, "fsdp": 2}, (None, ("expert", "fsdp"), None, None), 2),
        ((1, 6, 10), (None, "fsdp", None), {"fsdp": 4}, (None, None, None), 1),  # fits nowhere: gathered
    ],
)
def test_places(shape, spec, mesh, expected, padded):
    moves, size = shared_out(shape, P(*spec), ONES | mesh)
    assert (moves[0], moves[-1], size) == (P(*spec), P(*expected), padded)


def test_a_run_learns_with_muon():
    config = tiny_config()
    config.optimizer.update(name="muon", learning_rate=1e-2)
    trainer = make_trainer(config)
    state, step, losses = first_state(trainer, config), jax.jit(trainer.step), []
    for n in range(config.steps):
        state, metrics = step(state, packed_batch(config, seed=n))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.5
