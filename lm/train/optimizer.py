"""AdamW (Loshchilov and Hutter 2019) as an optax chain; the learning rate is applied by the step."""

import jax
import optax
from flax import nnx

from lm.config import ModelConfig


def adamw(
    abstract_params: nnx.State, config: ModelConfig, *, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """Return the transform to the direction m̂/(√v̂+ε) + λ·w; the caller scales it by −learning rate.

    Norm scales and biases are not decayed. In μP the first term of a hidden matrix is scaled by base/width (Yang et al. 2022,
    table 8, Adam); the decay is not.
    """
    width = config.mup_base_dim / config.embed_dim if config.mup_base_dim else 1.0
    scales = by_variable(abstract_params, lambda variable: width if role(variable) == "hidden" else 1.0)
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.stateless(lambda updates, _: jax.tree.map(lambda u, scale: u * scale, updates, scales))
        if width != 1.0
        else optax.identity(),
        optax.add_decayed_weights(weight_decay, mask=decayed(abstract_params)),
    )


def decayed(abstract_params: nnx.State):
    """Return a tree of bools, True for every matrix."""
    return by_variable(abstract_params, lambda variable: role(variable) != "vector")


def role(variable: nnx.Variable) -> str:
    """Return the role that a parameter's declaration gives it (lm/model/initializers.py)."""
    return variable.get_metadata()["role"]


def by_variable(params: nnx.State, f):
    """Return a tree like `params` whose leaves are f(variable)."""
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return jax.tree.map(lambda variable: jax.tree.map(lambda _: f(variable), variable), params, is_leaf=is_variable)
