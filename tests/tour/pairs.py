"""A model of the tour and the same model of the library, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.config import ModelConfig
from lm.model.transformer import skeleton
from tests.lm.examples import tiny_config
from tests.lm.weights import drawn
from tour.mesh import make_mesh
from tour.model import Config, Params, declare, shardings

NAMES = {  # of the tour's weights of a layer: those of the library
    "attention_norm": "attention_norm.scale",
    "query": "attention.query.weight",
    "key": "attention.key.weight",
    "value": "attention.value.weight",
    "output": "attention.output.weight",
    "query_norm": "attention.query_norm.scale",
    "key_norm": "attention.key_norm.scale",
    "feed_forward_norm": "feed_forward_norm.scale",
    "router": "feed_forward.router",
}
EXPERTS = dict(mlp_pattern=("moe",), moe=dict(num_experts=4, top_k=2, balance_loss=0.01))
MODELS = {
    "default": dict(qk_norm="head"),
    "llama": dict(qk_norm="none", tie_embeddings=True),
    "experts": dict(qk_norm="head", **EXPERTS),
}


def training_config(**model):
    """The library's tiny float32 config of a training run, with these keys of its model."""
    return tiny_config(**model)


def config_of(model: ModelConfig) -> Config:
    """The tour's config of a model of the library."""
    moe = model.moe.num_experts
    return Config(
        vocab_size=model.vocab_size,
        num_layers=model.num_layers,
        embed_dim=model.embed_dim,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        mlp_dim=model.mlp_dim,
        rope_theta=model.rope.theta,
        norm_eps=model.norm_eps,
        qk_norm=model.qk_norm == "head",
        tie_embeddings=model.tie_embeddings,
        num_experts=moe,
        top_k=model.moe.top_k,
        balance_loss=model.moe.balance_loss,
        dtype=model.dtype,
    )


def library_name(name: str, config: Config) -> str:
    """The library's name of a weight of a layer."""
    tail = "" if config.num_experts else ".weight"
    return NAMES.get(name, f"feed_forward.{name}{tail}")


def ours(state: nnx.State, config: Config) -> Params:
    """The tour's tree of a tree of the library's parameters, such as weights or gradients, as numpy arrays."""

    def at(path: str) -> np.ndarray:
        node = state
        for part in path.split("."):
            node = node[int(part) if part.isdecimal() else part]
        return np.asarray(node.get_value())

    where = declare(config)
    tree = {name: at(name) for name in where if name in ("embedding", "head")} | {"norm": at("norm.scale")}
    return tree | {"layers": {name: at(f"stacks.0.0.{library_name(name, config)}") for name in where["layers"]}}


def one_device():
    """The mesh of one device."""
    return make_mesh(1)


def placed(params: Params, config: Config) -> Params:
    """The weights as arrays on the mesh that is set, not shared with the caller's."""
    return jax.tree.map(lambda x, where: jax.device_put(jnp.array(x), where), params, shardings(declare(config)))


def weights(model: ModelConfig, seed: int = 0, scale: float = 3.0):
    """(the library's parameters, graph): random, and larger than initial ones, so that every weight matters."""
    return drawn(model, seed, scale), skeleton(model)[0]


def assert_same(tree, other, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    """The trees have the same names and, within atol + rtol · value, the same values."""
    named = dict(jax.tree_util.tree_leaves_with_path(tree))
    others = dict(jax.tree_util.tree_leaves_with_path(other))
    assert named.keys() == others.keys()
    for path, x in named.items():
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(np.asarray(x), np.asarray(others[path]), atol=atol, rtol=rtol, err_msg=name)
