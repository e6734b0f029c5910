"""AdamW (Loshchilov and Hutter 2019) as an optax chain; the learning rate is applied by the step."""

import jax
import optax
from flax import nnx

from lm.parallel.mesh import logical_axes


def adamw(abstract_params: nnx.State, *, b1: float, b2: float, eps: float, weight_decay: float) -> optax.GradientTransformation:
    """Direction m̂/(√v̂+ε) + λ·w, to be scaled by −learning rate. Norm scales are not decayed."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decayed(abstract_params)),
    )


def decayed(abstract_params: nnx.State):
    """True for every matrix: what has two axes or more besides the stacked layers."""

    def is_matrix(variable: nnx.Variable) -> bool:
        return sum(axis != "layers" for axis in logical_axes(variable)) >= 2

    return jax.tree.map(is_matrix, abstract_params, is_leaf=lambda x: isinstance(x, nnx.Variable))
