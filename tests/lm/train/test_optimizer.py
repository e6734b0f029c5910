"""AdamW, Lion and Adafactor by hand, and which parameters decay."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from configs.train import default
from lm.config import ModelConfig
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from lm.train.optimizers.adafactor import scale_by_adafactor
from lm.train.optimizers.chain import decayed, optimizer
from tests.lm.examples import parameters

CONFIG = ModelConfig(vocab_size=16, num_layers=2, embed_dim=8, num_heads=2, num_kv_heads=1, mlp_dim=12)


def names(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_all_but_the_norms_decays():
    mask = names(decayed(skeleton(CONFIG)[1]))
    kept = {name for name, decays in mask.items() if not decays}
    assert len(mask) == 12
    assert kept == {name for name in mask if "norm" in name} and len(kept) == 3  # two stacked in the layers, one last


def two_updates(**keys):
    """Return, by name, (parameter, first gradient, second gradient, second update)."""
    o = default.get_config().optimizer
    o.update(eps=1e-3, **keys)
    transform = optimizer(skeleton(CONFIG)[1], CONFIG, o)
    params = parameters(CONFIG)
    state = transform.init(params)
    update = jax.jit(transform.update)
    first = jax.tree.map(lambda p: np.sin(np.float32(100) * np.asarray(p)), params)
    second = jax.tree.map(lambda p: np.float32(0.1) * np.cos(np.float32(70) * np.asarray(p)), params)
    _, state = update(first, state, params)
    updates, _ = update(second, state, params)
    trees = [names(tree) for tree in (params, first, second, updates)]
    return {name: [np.asarray(tree[name]) for tree in trees] for name in trees[0]}


def test_adamw_by_hand():
    b1, b2, eps, weight_decay = 0.9, 0.95, 1e-3, 0.1
    for name, (w, g1, g2, update) in two_updates().items():
        m = (b1 * (1 - b1) * g1 + (1 - b1) * g2) / (1 - b1**2)
        v = (b2 * (1 - b2) * g1**2 + (1 - b2) * g2**2) / (1 - b2**2)
        expected = m / (np.sqrt(v) + eps) + (0 if "norm" in name else weight_decay) * w
        np.testing.assert_allclose(update, expected, rtol=2e-5, atol=1e-6)


def test_lion_by_hand():
    for name, (w, g1, g2, update) in two_updates(name="lion", weight_decay=0.1, b1=0.9, b2=0.95).items():
        expected = 0.2 * np.sign(0.9 * (0.05 * g1) + 0.1 * g2) + (0 if "norm" in name else 0.1) * w
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)


def squares(g, axes):
    """Return g² averaged over axes, which stay with size 1."""
    return np.mean(g.astype(np.float64) ** 2, axis=axes, keepdims=True)


def test_adafactor_by_hand():
    """A matrix [layers, D, H, K] is factored into D and H·K, the embedding [V, D] into its axes; a norm is not factored."""
    outputs = {"query": (2, 3), "embedding": (1,)}
    found = two_updates(name="adafactor", weight_decay=0.0, b1=0.5)
    for name, (_, g1, g2, update) in found.items():
        kind = next((kind for kind in (*outputs, "norm") if kind in name), None)
        if kind is None:
            continue
        decay, directions = 1 - 2**-0.8, []
        r, c, v = 0.0, 0.0, 0.0
        for g, keep in ((g1, 0.0), (g2, decay)):
            if kind == "norm":
                v = keep * v + (1 - keep) * squares(g, ())
                over = tuple(range(g.ndim))
            else:
                out = outputs[kind]
                into = tuple(i for i in range(int(kind == "query"), g.ndim) if i not in out)
                r, c = keep * r + (1 - keep) * squares(g, out), keep * c + (1 - keep) * squares(g, into)
                v, over = r * c / np.mean(r, axis=into, keepdims=True), (*into, *out)
            u = g / np.sqrt(v)
            directions.append(u / np.maximum(1, np.sqrt(np.mean(u**2, axis=over, keepdims=True))))
        expected = (0.25 * directions[0] + 0.5 * directions[1]) / 0.75
        np.testing.assert_allclose(update, expected, rtol=2e-4, atol=1e-5, err_msg=name)


def test_adafactor_of_a_single_number():
    transform = scale_by_adafactor(b1=0.0)
    gain = nnx.State({"gain": nnx.Param(np.float32(3), out_sharding=(), role="vector")})
    direction, _ = transform.update(gain, transform.init(gain))
    np.testing.assert_allclose(direction["gain"].get_value(), 1, rtol=1e-5)  # g/√g², clipped at 1


def test_adafactor_keeps_little_and_shards_it():
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "data": 2})
    with jax.set_mesh(mesh):
        state = jax.eval_shape(scale_by_adafactor(b1=0.0).init, skeleton(CONFIG)[1])
        where = names(shardings(state, mesh))
    sizes = {name: x.shape for name, x in names(state).items()}
    assert sum(map(np.prod, sizes.values())) < 0.3 * sum(p.size for p in jax.tree.leaves(parameters(CONFIG)))
    query = {name: shape for name, shape in sizes.items() if "query" in name}
    assert sorted(query.values()) == [(2, 2, 4), (2, 8)]
    assert {where[name].spec for name in query} == {P(None, "fsdp"), P(None, "tensor", None)}


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor"])
def test_the_directions_of_all_optimizers_are_about_as_large(name):
    rms = [
        np.sqrt(np.mean(update**2)) for key, (*_, update) in two_updates(name=name, weight_decay=0.0).items() if "key" in key
    ]
    assert 0.1 < min(rms) and max(rms) < 1.2
