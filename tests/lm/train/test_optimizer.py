"""AdamW and Lion by hand, and which parameters decay."""

import jax
import numpy as np
import pytest

from configs.train import default
from lm.config import ModelConfig
from lm.model.transformer import skeleton
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
    config = default.get_config()
    default.adamw(config)
    o = config.optimizer
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


def test_embeddings_have_a_rate_of_their_own():
    usual, faster = two_updates(weight_decay=0.0), two_updates(weight_decay=0.0, embedding_rate=15.0)
    for name, (*_, update) in usual.items():
        np.testing.assert_allclose(faster[name][-1], (15 if "embedding" in name else 1) * update, rtol=1e-5)


def test_lion_by_hand():
    for name, (w, g1, g2, update) in two_updates(name="lion", weight_decay=0.1, b1=0.9, b2=0.95).items():
        expected = 0.2 * np.sign(0.9 * (0.05 * g1) + 0.1 * g2) + (0 if "norm" in name else 0.1) * w
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon", "normuon", "lion"])
def test_the_directions_of_all_optimizers_are_about_as_large(name):
    rms = [
        np.sqrt(np.mean(update**2)) for key, (*_, update) in two_updates(name=name, weight_decay=0.0).items() if "key" in key
    ]
    assert 0.1 < min(rms) and max(rms) < 1.2
