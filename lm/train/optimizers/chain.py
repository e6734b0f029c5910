"""The optimizer of a run as an optax chain; the learning rate is applied by the step.

Every optimizer returns a direction whose root mean square is about that of AdamW's, so one learning rate and one weight decay
serve all of them:
  adamw  m̂/(√v̂+ε) (Loshchilov and Hutter 2019)
  muon, normuon   hidden matrices: orthogonalised momentum (lm/train/optimizers/muon.py); all others: adamw
  lion   0.2 · sign of the interpolated momentum (Chen et al. 2023, whose rates are 3 to 10 times smaller than AdamW's)
  FILE.py:FUNCTION  the direction that a user's function of this section returns, an optax.GradientTransformation
"""

from collections.abc import Callable

import jax
import ml_collections
import optax
from flax import nnx

from lm.config import ModelConfig
from lm.errors import UserError
from lm.files.user_files import is_own
from lm.parallel.arrays import PyTree
from lm.runs import own_code
from lm.train.optimizers.compact import compact
from lm.train.optimizers.muon import is_variable, matrix_axes, scale_by_muon, scale_by_normuon

LION_RMS = 0.2  # as Muon's


def optimizer(abstract_params: nnx.State, config: ModelConfig, o: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Return the transform from gradients to direction + λ·w; the caller scales it by −learning rate.

    o: the section `optimizer` of a training config. Norm scales and biases are not decayed. The direction, not the decay, is
    scaled by `mup_scale`, and those of embeddings and the head by o.embedding_rate and o.head_rate.
    """
    adam = optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.eps)
    if is_own(o.name):
        direction = own_code.called("optimizer.name", o.name, o)
        if not isinstance(direction, optax.GradientTransformation):
            raise UserError(f"optimizer.name={o.name} returned {type(direction).__name__}, not an optax.GradientTransformation")
    elif o.name == "adamw":
        direction = adam
    elif o.name in ("muon", "normuon"):
        labels = by_variable(abstract_params, lambda variable: "muon" if orthogonalised(variable) else "adamw")
        dtype = config.compute_dtype
        muon = scale_by_muon(o.momentum, dtype) if o.name == "muon" else scale_by_normuon(o.momentum, dtype, max(1, o.turns))
        direction = optax.partition({"muon": muon, "adamw": adam}, labels)
    else:
        direction = optax.chain(optax.scale_by_lion(b1=o.b1, b2=o.b2), optax.scale(LION_RMS))
    for rate, is_part in ((o.embedding_rate, is_embedding), (o.head_rate, is_head)):
        if rate not in (None, 1):
            direction = optax.chain(direction, optax.masked(optax.scale(rate), by_variable(abstract_params, is_part)))
    scales = by_variable(abstract_params, lambda variable: mup_scale(variable, config, o.name))
    return optax.chain(
        compact(direction, o.state_dtype),
        optax.stateless(lambda updates, _: jax.tree.map(lambda u, scale: u * scale, updates, scales))
        if config.mup_base_dim
        else optax.identity(),
        optax.add_decayed_weights(o.weight_decay, mask=decayed(abstract_params)),
    )


def is_embedding(variable: nnx.Variable) -> bool:
    """Return whether a parameter is a table of vectors, and not a part of an adapter."""
    return role(variable) == "embedding" and not isinstance(variable, nnx.LoRAParam)


def is_head(variable: nnx.Variable) -> bool:
    """Return whether a parameter is the output layer. Routers and scores have its role too, but other axes."""
    return role(variable) == "head" and variable.get_metadata()["out_sharding"] == ("vocab", "embed")


def orthogonalised(variable: nnx.Variable) -> bool:
    """Return whether Muon updates a parameter: the matrices of layers and of adapters, not embeddings, heads and routers."""
    return matrix_axes(variable) is not None


def mup_scale(variable: nnx.Variable, config: ModelConfig, name: str) -> float:
    """Return the factor of a parameter's direction in μP, 1 where its update does not depend on the width.

    A hidden matrix: base/width (Yang et al. 2022, table 8, Adam). A direction of Muon has no large singular value: its spectral
    norm grows with √width and not with the width, so its factor is the root (Yang, Simon and Bernstein 2023: the spectral norm
    of an update must keep the size √(outputs/inputs)). The A of an adapter has a fixed number of outputs: base/width.
    """
    if role(variable) != "hidden" or not config.mup_base_dim:
        return 1.0
    width = config.mup_base_dim / config.embed_dim
    root = name in ("muon", "normuon") and not isinstance(variable, nnx.LoRAParam)
    return width**0.5 if root else width


def decayed(abstract_params: nnx.State) -> PyTree:
    """Return a tree of bools, True for every matrix."""
    return by_variable(abstract_params, lambda variable: role(variable) != "vector")


def role(variable: nnx.Variable) -> str:
    """Return the role that a parameter's declaration gives it (lm/model/initializers.py)."""
    return variable.get_metadata()["role"]


def by_variable(params: nnx.State, f: Callable[[nnx.Variable], bool | str | float]) -> PyTree:
    """Return a tree like `params` whose leaves are f(variable)."""
    return jax.tree.map(lambda variable: jax.tree.map(lambda _: f(variable), variable), params, is_leaf=is_variable)
