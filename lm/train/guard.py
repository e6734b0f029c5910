"""Find spikes of loss and gradient norm inside the step, without waiting for the host.

Two numbers of each step are compared with those of the last W accepted steps: the loss, and the logarithm of the gradient norm
before clipping. A step is a spike if one of them is more than `threshold` deviations above its level:

    level     = median of the newest W/4 values
    deviation = 1.4826 · MAD of the W values, the standard deviation of Gaussian noise, and at least FLOOR

Medians are used because a mean and a standard deviation grow with the spikes that they should find (as in the
SkipStepOptimizer of OLMo-core: 128 steps, 6 standard deviations). The test is one-sided: a fall is never a spike. Trends:
a falling line is subtracted before the MAD, so that the fast fall at the start hides no spike; a rising one is not, so that a
steady rise of any slope is at most W/8 · slope above the level and W/8 / (1.4826 · W/4) = 0.34 deviations. Nothing is a spike
before `warmup` steps were accepted. A norm of 0 is not compared, and the step does not count in the window.

The two numbers have different floors. The norms of sound batches have a narrow body and a long tail: a few unusual rows make a
norm several times as large, while the loss is as always. Clipping and AdamW bound what such a step can do. So a norm alone
counts only from e^2.8 = 16 times its level on (docs/benchmarks.md, "The spike guard").

False alarms, for independent Gaussian noise of standard deviation σ: the level has the variance π/2 · σ² / (W/4), and the
deviation the mean σ and the variance σ² / (2 · 0.3675 · W), 0.3675 being the efficiency of the MAD. So, for each number,

    P(false alarm) = E[Q(threshold · s / √(1 + 2π / W))],   s ~ N(1, 1 / (0.735 · W)),   Q: tail of the normal distribution.

With W = 128: 2e-4 at threshold 4, 6e-6 at 5, 2e-7 at 6 and 5e-10 at 8, the default; FLOOR only lowers it. Measured rates, also
for heavy tails, are in docs/train.md, and tests/lm/train/test_guard.py measures them through `judge`.

Batches of a kind that is rare and has a higher loss are data, and no spikes. They come one by one, and they come back. So a
high loss right after a step without a spike is accepted if at least `RECURRING` such steps came before it, where each counts
e^(−age / MEMORY), so from the fifth in short order on. Of spikes in a row all but the first are always skipped, so a run that
diverges is still found.

A level that stays higher is no spike either: after `patience` skipped steps in a row the window is emptied, and the next
`warmup` steps are accepted. The loop may go back to a checkpoint before that (lm/train/events/divergence.py).

Axes: 2 the loss and the logarithm of the gradient norm, W steps of the window, R possible rewinds.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

# Least deviation: of the loss as a fraction of its level, and of the logarithm of the gradient norm. With threshold 8 a loss
# that is 4 % higher, or a norm that is 16 times as large, is never a spike.
FLOOR_2 = (0.005, 0.35)
# Only a kind of batch rarer than 1 in 285 is skipped for ever: 1 / (e^(285 / MEMORY) − 1) is RECURRING.
RECURRING, MEMORY = 3, 1000  # single steps with a high loss, steps
UNKNOWN = 3e38  # a level before one is known; finite, like all that a checkpoint holds
HIGH = 0.2  # an accepted loss is high from a fifth above its lowest level on


class Settings(NamedTuple):
    """See config.guard in configs/train/default.py. patience: config.max_skipped_in_row."""

    window: int
    warmup: int
    threshold: float
    patience: int
    lower_rate: float
    lower_steps: int
    rewinds: int


class Guard(NamedTuple):
    """Part of the training state. values_2W: a ring; the value of accepted step n (from 0) is at n mod W.

    count: accepted steps since the window was empty. spikes: steps skipped as spikes, in the whole run. low, low_deviation: the
    lowest level of the loss since then. high_in_row: accepted steps in a row with a loss far above `low`. lowered_R: the steps
    after which the learning rate is lowered; −1: none. spiked: whether the last step was a spike, accepted or not.
    recent: number of single steps with a high loss, each weighing e^(−age / MEMORY).
    """

    values_2W: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count; a name in checkpoints
    spikes: jax.Array
    low: jax.Array
    low_deviation: jax.Array
    high_in_row: jax.Array
    lowered_R: jax.Array
    spiked: jax.Array
    recent: jax.Array


def settings(config: ml_collections.ConfigDict) -> Settings | None:
    """Return the settings of a run, or None without a guard: config.guard.on=False, and reinforcement learning.

    The loss of rollouts has no level: it is a difference of advantages, and their gradient is 0 when all answers are equal.
    """
    g = config.guard
    if not g.on or config.get("method") == "rl":
        return None
    return Settings(g.window, g.warmup, g.threshold, config.max_skipped_in_row, g.lower_rate, g.lower_steps, g.rewinds)


def init(s: Settings) -> Guard:
    """Return the state of a guard that has seen no step."""
    zero = jnp.zeros((), jnp.int32)
    values_2W = jnp.zeros((2, s.window), jnp.float32)
    lowered_R = jnp.full(max(1, s.rewinds), -1, jnp.int32)
    return Guard(values_2W, zero, zero, jnp.float32(UNKNOWN), jnp.float32(0), zero, lowered_R, zero, jnp.float32(0))


def judge(
    guard: Guard, loss: jax.Array, norm: jax.Array, sound: jax.Array, in_row: jax.Array, s: Settings
) -> tuple[jax.Array, Guard, dict[str, jax.Array]]:
    """Return (whether the step is accepted, the next Guard, metrics).

    Args: loss, norm: float32 []. sound: whether both and the update are finite. in_row: steps in a row skipped before.
    Metrics: spike: how many deviations the step is above the level, the larger of both; 0 in the warm-up. spikes, high_in_row,
    recent: as in Guard, after the step.
    """
    new_2 = jnp.stack([loss, jnp.log(norm)])
    level_2, deviation_2 = level(guard.values_2W, guard.count)
    warm = guard.count >= s.warmup
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)  # a flipped bit may raise the loss and let the update overflow: a spike
    compared_2 = warm & finite & jnp.stack([jnp.bool_(True), norm > 0])
    above_2 = jnp.where(compared_2, (new_2 - level_2) / deviation_2, 0.0)
    spike = jnp.max(above_2) > s.threshold
    single = (above_2[0] > s.threshold) & (guard.spiked == 0)
    skipped = spike & ~(single & (guard.recent >= RECURRING))
    accepted = sound & ~skipped

    W = guard.values_2W.shape[1]
    kept = accepted & (norm > 0)
    values_2W = jnp.where(kept & (jnp.arange(W) == guard.count % W), new_2[:, None], guard.values_2W)
    lower = warm & accepted & (level_2[0] < guard.low)
    low = jnp.where(lower, level_2[0], guard.low)
    low_deviation = jnp.where(lower, deviation_2[0], guard.low_deviation)
    high = warm & (loss > low + jnp.maximum(s.threshold * low_deviation, HIGH * jnp.abs(low)))
    high_in_row = jnp.where(accepted, jnp.where(high, guard.high_in_row + 1, 0), guard.high_in_row)
    shifted = skipped & (in_row + 1 >= s.patience)
    after = guard._replace(
        values_2W=values_2W,
        count=jnp.where(shifted, 0, guard.count + kept.astype(jnp.int32)),
        spikes=guard.spikes + skipped.astype(jnp.int32),
        low=jnp.where(shifted, UNKNOWN, low),
        low_deviation=jnp.where(shifted, 0.0, low_deviation),
        high_in_row=jnp.where(shifted, 0, high_in_row),
        spiked=spike.astype(jnp.int32),
        recent=guard.recent * (1 - 1 / MEMORY) + single,
    )
    seen = {"spike": jnp.max(above_2), "spikes": after.spikes, "high_in_row": after.high_in_row, "recent": after.recent}
    return accepted, after, seen


def level(values_2W: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (level, deviation), each float32 [2], of the window after `count` accepted steps."""
    W = values_2W.shape[1]
    n = jnp.minimum(count, W)
    age_W = (count - 1 - jnp.arange(W)) % W
    level_2 = median(values_2W, age_W < jnp.minimum(n, W // 4))
    newer_2, older_2 = median(values_2W, age_W < n // 2), median(values_2W, (age_W >= n - n // 2) & (age_W < n))
    fall_2 = jnp.minimum(0.0, (newer_2 - older_2) / jnp.maximum(1, n - n // 2))
    level_line_2W = values_2W + fall_2[:, None] * age_W
    apart_2W = jnp.abs(level_line_2W - median(level_line_2W, age_W < n)[:, None])
    least_2 = jnp.array(FLOOR_2, jnp.float32) * jnp.stack([jnp.abs(level_2[0]), jnp.float32(1)])
    return level_2, jnp.maximum(1.4826 * median(apart_2W, age_W < n), jnp.maximum(least_2, 1e-6))


def median(values_2W: jax.Array, chosen_W: jax.Array) -> jax.Array:
    """Return the median of the chosen values of each row, float32 [2]; any number if none is chosen."""
    sorted_2W = jnp.sort(jnp.where(chosen_W, values_2W, jnp.inf), axis=1)
    n = jnp.maximum(1, jnp.sum(chosen_W))
    return (jnp.take(sorted_2W, (n - 1) // 2, axis=1) + jnp.take(sorted_2W, n // 2, axis=1)) / 2


def rate_factor(guard: Guard, step: jax.Array, s: Settings) -> jax.Array:
    """Return the factor of the learning rate after `step` steps: s.lower_rate for s.lower_steps after a rewind, else 1."""
    lowered = jnp.any((guard.lowered_R >= 0) & (step >= guard.lowered_R) & (step < guard.lowered_R + s.lower_steps))
    return jnp.where(lowered, s.lower_rate, 1.0)
