"""From gradients to the next state: clipping, the optimizer, averages, and the steps that are left out."""

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
from lm.train.state import TrainState


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
        trained = jax.tree.map(lambda p, u: p - rate * u, params, direction)
        average = moving_average(state.average, trained, state.step, self.config.ema) if state.average else ()
        params = nnx.merge_state(trained, rest)
        if not self.model.adapter.rank:  # an adapter leaves the base unchanged
            params = with_balance(params, loads, self.model.moe.bias_rate)
        # A learning rate that is too large lets the update overflow. The moments cannot overflow: they average gradients and
        # their squares, and these are finite if the norm is.
        ok = jnp.isfinite(loss) & jnp.isfinite(norm) & ~overflowed(state.params, params)
        watched: guard.Guard | tuple[()] = ()
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


def moving_average(average: nnx.State, params: nnx.State, updates: jax.Array, decay: float) -> nnx.State:
    """Return d·average + (1−d)·params with d = min(decay, (1+n)/(10+n)) after n updates: early averages forget the start."""
    n = updates.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda a, p: d * a + (1 - d) * p, average, params)


def overflowed(old: PyTree, new: PyTree) -> jax.Array:
    """Return whether any number is finite in `old` and not in `new`, bool []. Leaves shared by both trees are not read."""
    pairs = [(a, b) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True) if a is not b]
    broken = [jnp.any(jnp.isfinite(a) & ~jnp.isfinite(b)) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.any(jnp.stack(broken))


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
