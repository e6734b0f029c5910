"""The state of a run, and its parts in a checkpoint."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lm.parallel.arrays import PyTree
from lm.parallel.memory import to_device
from lm.train.guard import Guard


class TrainState(NamedTuple):
    """Everything that a step changes. `step` counts batches, `skipped` the batches whose update was not applied.

    sources: weights of the sources that a run learns (lm/train/doremi.py); () in other runs. average: moving average of the
    trained parameters (config.ema); () without. guard: what the last steps were like (lm/train/guard.py); () without.
    """

    step: jax.Array  # int32
    params: nnx.State
    optimizer: optax.OptState
    skipped: jax.Array  # int32
    skipped_in_row: jax.Array  # int32
    sources: PyTree = ()
    average: nnx.State | tuple[()] = ()
    guard: Guard | tuple[()] = ()


def averaged(state: TrainState) -> nnx.State:
    """Return the parameters to evaluate and to keep: the averages with all that is not trained, or else the parameters."""
    return nnx.merge_state(state.params, state.average) if state.average else state.params


def stored(state: TrainState, learns: nnx.filterlib.Filter) -> dict[str, PyTree]:
    """Return the state by the names of a checkpoint: `params` are those of `averaged`, and `raw` the trained ones without
    averaging. So every reader of a checkpoint gets the averages. Without an average it has no `raw`."""
    fields = {name: value for name, value in state._asdict().items() if name != "average"}
    raw = {"raw": nnx.filter_state(state.params, learns)} if state.average else {}
    return fields | {"params": averaged(state)} | raw


def unstored(fields: dict[str, PyTree], learns: nnx.filterlib.Filter, average: bool) -> TrainState:
    """Return the state of a checkpoint. average: whether the run keeps one; without `raw` it starts from the parameters."""
    raw, params = fields.get("raw"), fields["params"]
    kept = nnx.filter_state(params, learns) if average else ()
    if raw:
        params = nnx.merge_state(params, raw)
    else:
        kept = jax.tree.map(jnp.copy, kept)  # both are donated: not the same buffers
    return TrainState(**{name: fields[name] for name in fields if name not in ("params", "raw")}, params=params, average=kept)


def sound(state: TrainState) -> jax.Array:
    """Return whether the parameters and the optimizer's moments are finite, and the parameters' squares too, bool [].

    Normalisation layers square activations: with parameters of 1e20 they return 0, and the loss stays finite.
    """
    moments = jax.tree.leaves(to_device(state.optimizer))
    finite = [jnp.all(jnp.isfinite(x)) for x in moments if jnp.issubdtype(x.dtype, jnp.inexact)]
    floats = [x for x in jax.tree.leaves(state.params) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(optax.global_norm(floats)), *finite]))
