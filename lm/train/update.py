"""The state of a run, and how gradients change it: clipping, schedule, optimizer, averages, and steps that are left out."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx

from lm.config import ModelConfig
from lm.model.moe import balanced
from lm.model.transformer import LayerPath
from lm.parallel.arrays import PyTree
from lm.parallel.memory import to_device, to_host
from lm.train import guard
from lm.train.guard import Guard


class TrainState(NamedTuple):
    """Everything that a step changes. `step` counts batches, `skipped` the batches whose update was not applied.

    average: moving average of the trained parameters (config.ema); () without. guard: what the last steps were like
    (lm/train/guard.py); () without.
    """

    step: jax.Array  # int32
    params: nnx.State
    optimizer: optax.OptState
    skipped: jax.Array  # int32
    skipped_in_row: jax.Array  # int32
    average: nnx.State | tuple[()] = ()
    guard: Guard | tuple[()] = ()


class Update(NamedTuple):
    """How gradients change the state. learns: the parameters that learn. offload: the moments are in host memory between steps.
    spikes: how they are found (lm/train/guard.py); None: not at all."""

    transform: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    config: ml_collections.ConfigDict
    model: ModelConfig
    learns: nnx.filterlib.Filter
    offload: bool
    spikes: guard.Settings | None

    def first_state(self, params: nnx.State) -> TrainState:
        zero, trained = jnp.zeros((), jnp.int32), nnx.filter_state(params, self.learns)
        average = jax.tree.map(jnp.copy, trained) if self.config.ema else ()
        optimizer = self.transform.init(trained)
        optimizer = to_host(optimizer) if self.offload else optimizer
        watched = guard.init(self.spikes) if self.spikes else ()
        return TrainState(zero, params, optimizer, zero, zero, average=average, guard=watched)

    def applied(
        self, state: TrainState, grads: nnx.State, loss: jax.Array, loads: dict[LayerPath, jax.Array]
    ) -> tuple[TrainState, jax.Array, dict[str, jax.Array]]:
        """Return (the next state, whether it was updated, numbers to log).

        A step is left out if loss or gradient is not finite, the update overflows, or the guard finds a spike.
        """
        params, rest = nnx.split_state(state.params, self.learns, ...)
        norm = optax.global_norm(grads)
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, self.config.optimizer.clip_norm / (norm + 1e-9)), grads)
        rate = self.learning_rate(state.step)
        if state.guard and self.spikes:
            rate = rate * guard.rate_factor(state.guard, state.step, self.spikes)
        moments = to_device(state.optimizer) if self.offload else state.optimizer
        direction, optimizer = self.transform.update(grads, moments, params)
        too_large = overflows(params, direction, rate)
        trained = jax.tree.map(lambda p, u: p - rate * u, params, direction)
        average = moving_average(state.average, trained, state.step, self.config.ema) if state.average else ()
        params = nnx.merge_state(trained, rest)
        if loads and not self.model.adapter.rank:  # an adapter leaves the base unchanged
            params = with_balance(params, loads, self.model.moe.bias_rate)
        # A learning rate that is too large lets the update overflow. The moments cannot overflow: they average gradients and
        # their squares, and these are finite if the norm is.
        ok = jnp.isfinite(loss) & jnp.isfinite(norm) & ~too_large
        watched: Guard | tuple[()] = ()
        numbers: dict[str, jax.Array] = {}
        if state.guard and self.spikes:
            ok, watched, numbers = guard.judge(state.guard, loss, norm, ok, state.skipped_in_row, self.spikes)
        # A bad step leaves parameters and moments bitwise unchanged, without a host sync.
        params, optimizer, average = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old), (params, optimizer, average), (state.params, moments, state.average)
        )
        if self.offload:
            optimizer = to_host(optimizer)
        bad = jnp.int32(1) - ok.astype(jnp.int32)
        in_row = (state.skipped_in_row + bad) * bad
        after = TrainState(state.step + 1, params, optimizer, state.skipped + bad, in_row, average=average, guard=watched)
        counts = {"skipped": after.skipped, "skipped_in_row": in_row}
        return after, ok, {"grad_norm": norm, "learning_rate": rate} | counts | numbers


def schedule(
    kind: str, *, peak: float, steps: int, warmup: int, final: float = 0.1, decay: float = 0.2
) -> Callable[[jax.Array | int], jax.Array]:
    """Return a function from the number of finished updates n (0, 1, …) to the learning rate of the next one (float32).

    Warm-up is linear: peak·(n+1)/warmup. Then, with u the finished fraction of the remaining steps:
      cosine    peak·(final + (1−final)·(1+cos πu)/2)  (Loshchilov and Hutter 2017)
      wsd       peak; over the last `decay` of all steps linearly down to peak·final  (warm-up-stable-decay, Hu et al. 2024)
      constant  peak
    """
    warmup = min(warmup, steps)
    decay_steps = max(1, round(decay * steps))

    def learning_rate(finished: jax.Array | int) -> jax.Array:
        n = jnp.asarray(finished, jnp.float32)
        warm = jnp.minimum(1.0, (n + 1) / max(1, warmup))
        if kind == "cosine":
            u = jnp.clip((n - warmup) / max(1, steps - 1 - warmup), 0.0, 1.0)
            shape = final + (1 - final) * 0.5 * (1 + jnp.cos(math.pi * u))
        elif kind == "wsd":
            u = jnp.clip((n - (steps - 1 - decay_steps)) / decay_steps, 0.0, 1.0)
            shape = 1 - (1 - final) * u
        else:
            shape = jnp.ones_like(n)
        return peak * warm * shape

    return learning_rate


def moving_average(average: nnx.State, params: nnx.State, updates: jax.Array, decay: float) -> nnx.State:
    """Return d·average + (1−d)·params with d = min(decay, (1+n)/(10+n)) after n updates: early averages forget the start."""
    n = updates.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda a, p: d * a + (1 - d) * p, average, params)


def overflows(params: PyTree, direction: PyTree, rate: jax.Array) -> jax.Array:
    """Return whether a finite parameter would change by a number whose square is not finite, bool [].

    It is known before the new parameters, so these take the place of the old ones in one pass over memory.
    """
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(direction), strict=True)
    largest = jnp.stack([jnp.max(jnp.where(jnp.isfinite(p), jnp.abs(u), 0.0)) for p, u in pairs])
    return ~jnp.all(jnp.isfinite(jnp.square(rate * largest)))


def with_balance(params: nnx.State, loads: dict[LayerPath, jax.Array], rate: float) -> nnx.State:
    """Return the parameters with each router's balance bias moved against its load (DeepSeek-V3, 2024, §2.1.2)."""
    params = jax.tree.map(lambda x: x, params)
    for path, load in loads.items():
        layer: PyTree = params
        for name in path:
            layer = layer[name]
        if "balance_bias" in layer["feed_forward"]:
            bias = layer["feed_forward"]["balance_bias"]
            bias.set_value(balanced(bias.get_value(), load, rate))
    return params


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


def sound(state: TrainState, offload: bool) -> jax.Array:
    """Return whether the parameters and the optimizer's moments are finite, and the parameters' squares too, bool [].

    Normalisation layers square activations: with parameters of 1e20 they return 0, and the loss stays finite. offload: the
    moments are in host memory.
    """
    moments = jax.tree.leaves(to_device(state.optimizer) if offload else state.optimizer)
    finite = [jnp.all(jnp.isfinite(x)) for x in moments if jnp.issubdtype(x.dtype, jnp.inexact)]
    floats = [x for x in jax.tree.leaves(state.params) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(optax.global_norm(floats)), *finite]))
