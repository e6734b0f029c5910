"""Learning rate by step."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from lm.errors import UserError

if TYPE_CHECKING:
    import jax

KINDS = ("cosine", "wsd", "constant")


def check_schedule(kind: str, warmup: int) -> None:
    """Raise UserError for an unknown schedule or a negative warm-up."""
    if kind not in KINDS:
        raise UserError(f"optimizer.schedule={kind!r} is none of {', '.join(KINDS)}")
    if not 0 <= warmup:
        raise UserError(f"optimizer.warmup={warmup} must not be negative")


def schedule(
    kind: str, *, peak: float, steps: int, warmup: int, final: float = 0.1, decay: float = 0.2
) -> "Callable[[jax.Array | int], jax.Array]":
    """Return a function from the number of finished updates n (0, 1, …) to the learning rate of the next one (float32).

    Warm-up is linear: peak·(n+1)/warmup. Then, with u the finished fraction of the remaining steps:
      cosine    peak·(final + (1−final)·(1+cos πu)/2)  (Loshchilov and Hutter 2017)
      wsd       peak; over the last `decay` of all steps linearly down to peak·final  (warm-up-stable-decay, Hu et al. 2024)
      constant  peak
    """
    from jax import numpy as jnp  # here, so that check_schedule needs no JAX

    check_schedule(kind, warmup)
    warmup = min(warmup, steps)
    decay_steps = max(1, round(decay * steps))

    def learning_rate(finished: "jax.Array | int") -> "jax.Array":
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
