"""AdamW by hand, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig
from lm.model.transformer import skeleton
from lm.train.optimizer import adamw, decayed
from tests.lm.examples import parameters

CONFIG = ModelConfig(vocab_size=16, num_layers=2, embed_dim=8, num_heads=2, num_kv_heads=1, mlp_dim=12)


def names(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_all_but_the_norms_decays():
    mask = names(decayed(skeleton(CONFIG)[1]))
    kept = {name for name, decays in mask.items() if not decays}
    assert len(mask) == 12
    assert kept == {name for name in mask if "norm" in name} and len(kept) == 3  # two stacked in the layers, one last


def test_two_updates_by_hand():
    b1, b2, eps, weight_decay = 0.9, 0.95, 1e-3, 0.1
    abstract = skeleton(CONFIG)[1]
    transform = adamw(abstract, CONFIG, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    params = parameters(CONFIG)
    state = transform.init(params)
    update = jax.jit(transform.update)
    first = jax.tree.map(lambda p: jnp.sin(100 * p), params)
    second = jax.tree.map(lambda p: 0.1 * jnp.cos(70 * p), params)
    _, state = update(first, state, params)
    updates, _ = update(second, state, params)
    given = {name: [np.asarray(names(tree)[name]) for tree in (params, first, second)] for name in names(params)}
    for name, update in names(updates).items():
        w, g1, g2 = given[name]
        m = (b1 * (1 - b1) * g1 + (1 - b1) * g2) / (1 - b1**2)
        v = (b2 * (1 - b2) * g1**2 + (1 - b2) * g2**2) / (1 - b2**2)
        expected = m / (np.sqrt(v) + eps) + (0 if "norm" in name else weight_decay) * w
        np.testing.assert_allclose(update, expected, rtol=2e-5, atol=1e-6)
