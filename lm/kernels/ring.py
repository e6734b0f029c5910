"""Causal attention of sequences that are split over the mesh's context axis, in the order of `lm.parallel.mesh.slots`.

A sequence is cut into 2·n chunks of C tokens; device i of n holds chunk i, its low half, and chunk 2n − 1 − i, its high half.
Each device computes the attention of its own queries. Keys and values come to it in one of two ways:

- ring (Liu et al. 2023, "Ring Attention with Blockwise Transformers"): in n − 1 rounds each device passes the keys and values
  that it holds on to the next, while it computes with them. A device holds those of two devices at a time.
- all_gather (Llama 3, Dubey et al. 2024, §3.3.2): each device gets the keys and values of all before it computes.

In round s, device i has the keys of device j = i − s mod n. If j < i, all its queries see all of j's low half and nothing of
its high half; if j > i, its high half sees all of j's keys and its low half none. So each round is the same work everywhere
(the zig-zag variant of striped attention, Brandon et al. 2023). With a window, round r instead brings each chunk c the keys of
chunk c − r from a neighbour, and there are only as many rounds as the window reaches.

A round's result is merged by its log-sum-exp. The backward pass brings the keys and values again, and their gradients, in
float32, travel along with them until they are back.

Axes here: B batch, T queries and S keys of a device, G key/value heads, R query heads per key/value head, K head size of
queries and keys, V head size of values; H = G·R.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lm.kernels import tiles
from lm.kernels.attention import MASKED, Scoring, Visible
from lm.kernels.saved import saved
from lm.kernels.tiles import Keys, half_of
from lm.parallel.arrays import PyTree
from lm.parallel.context import context_ways
from lm.parallel.mesh import reshard, spec

Found: TypeAlias = tuple[jax.Array, jax.Array]  # out and log Z
Gradients: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]  # of q, k, v
Residuals: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]
AXIS = "context"


class Plan(NamedTuple):
    """The static arguments: `how` (its offset is set for each round), the number of devices, and how keys reach them."""

    how: tiles.How
    ways: int
    gather: bool


def attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    visible: Visible,
    scoring: Scoring,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """Compute lm.kernels.ops.attention. Layers with a window exchange keys with their neighbours, whatever `across` says."""
    sinks_H = None if sinks_H is None else reshard(sinks_H, "heads")
    assert visible.branches is None, "branches of a row are not split over devices"
    how = tiles.How(scoring.scale, scoring.window, scoring.softcap, 0)
    plan = Plan(how, context_ways(), scoring.across == "all_gather")
    return _split(plan, q_BTHK, k_BSGK, v_BSGV, visible.segments_BT, sinks_H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _split(
    plan: Plan, q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, segments_BT: jax.Array, sinks_H: jax.Array | None
) -> jax.Array:
    return _forward(plan, q_BTHK, k_BTGK, v_BTGV, segments_BT, sinks_H)[0]


def _specs(sinks_H: jax.Array | None) -> tuple[PartitionSpec | None, ...]:
    of_queries, of_keys = spec("batch", "length", "heads", None), spec("batch", "length", "kv_heads", None)
    return of_queries, of_keys, spec("batch", "length"), None if sinks_H is None else spec("heads")


def _forward(
    plan: Plan, q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, segments_BT: jax.Array, sinks_H: jax.Array | None
) -> tuple[jax.Array, Residuals]:
    of_queries, of_keys, of_segments, of_sinks = _specs(sinks_H)
    logz = spec("batch", "length", "heads")

    @functools.partial(
        jax.shard_map, in_specs=(of_queries, of_keys, of_keys, of_segments, of_sinks), out_specs=(of_queries, logz)
    )
    def on_device(
        q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, segments_BT: jax.Array, sinks_H: jax.Array | None
    ) -> Found:
        q_BGRTK, keys = _by_group(q_BTHK, k_BTGK.shape[2]), Keys(_by_head(k_BTGK), _by_head(v_BTGV), segments_BT)
        out, logz = (_near if plan.how.window else _far)(plan, q_BGRTK, keys)
        if sinks_H is not None:
            sinks_GR1 = sinks_H.astype(jnp.float32).reshape(*q_BGRTK.shape[1:3], 1)
            out, logz = out * jax.nn.sigmoid(logz - sinks_GR1)[..., None], jnp.logaddexp(logz, sinks_GR1)
        B, T, H, _ = q_BTHK.shape
        return _by_time(out.astype(q_BTHK.dtype)), jnp.moveaxis(logz, 3, 1).reshape(B, T, H)

    out_BTHV, logz_BTH = on_device(q_BTHK, k_BTGK, v_BTGV, segments_BT, sinks_H)
    # Named inside, so that a remat policy can keep both and the backward pass need not run this again.
    out_BTHV, logz_BTH = saved(out_BTHV), saved(logz_BTH)
    return out_BTHV, (q_BTHK, k_BTGK, v_BTGV, segments_BT, sinks_H, out_BTHV, logz_BTH)


def _backward(
    plan: Plan, residuals: Residuals, dout_BTHV: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
    q_BTHK, k_BTGK, v_BTGV, segments_BT, sinks_H, out_BTHV, logz_BTH = residuals
    of_queries, of_keys, of_segments, _ = _specs(None)
    rows = spec("batch", "length", "heads")
    delta_BTH = jnp.sum(dout_BTHV.astype(jnp.float32) * out_BTHV.astype(jnp.float32), axis=-1)

    @functools.partial(
        jax.shard_map,
        in_specs=(of_queries, of_keys, of_keys, of_segments, of_queries, rows, rows),
        out_specs=(of_queries, of_keys, of_keys),
    )
    def on_device(
        q_BTHK: jax.Array,
        k_BTGK: jax.Array,
        v_BTGV: jax.Array,
        segments_BT: jax.Array,
        dout_BTHV: jax.Array,
        logz_BTH: jax.Array,
        delta_BTH: jax.Array,
    ) -> Gradients:
        G = k_BTGK.shape[2]
        keys = Keys(_by_head(k_BTGK), _by_head(v_BTGV), segments_BT)
        q, dout, logz, delta = (_by_group(x, G) for x in (q_BTHK, dout_BTHV, logz_BTH, delta_BTH))
        gradient = _near_gradient if plan.how.window else _far_gradient
        dq, dk, dv = gradient(plan, q, keys, dout, logz, delta)
        dk, dv = (jnp.moveaxis(x.astype(q.dtype), 2, 1) for x in (dk, dv))
        return _by_time(dq.astype(q.dtype)), dk, dv

    dq, dk, dv = on_device(q_BTHK, k_BTGK, v_BTGV, segments_BT, dout_BTHV.astype(q_BTHK.dtype), logz_BTH, delta_BTH)
    dsinks_H = None
    if sinks_H is not None:
        dsinks_H = -jnp.sum(jnp.exp(sinks_H.astype(jnp.float32) - logz_BTH) * delta_BTH, axis=(0, 1)).astype(sinks_H.dtype)
    return dq, dk, dv, None, dsinks_H


_split.defvjp(_forward, _backward)


# Without a window: rounds around the ring, with the whole of another device's keys.


def _far(plan: Plan, q: jax.Array, keys: Keys) -> Found:
    """Return (out, logz) of one device, float32."""
    how, n = plan.how, plan.ways
    me, segments = lax.axis_index(AXIS), keys.segments
    first, step = _rounds(plan, keys)
    found = tiles.forward(q, segments, keys, how)  # its own two chunks are in order
    everything = how._replace(offset=q.shape[3])  # later than all keys

    def one(carry: tuple[PyTree, Found], s: jax.Array) -> tuple[tuple[PyTree, Found], None]:
        moving, found = carry
        now, moving = step(moving, s)

        def earlier() -> Found:
            low = now.half(0)
            return tiles.forward(q, segments, low, everything)

        def later() -> Found:
            out, logz = tiles.forward(half_of(q, 3, 1), half_of(segments, 1, 1), now, everything)
            return _after(out, 3, 0.0), _after(logz, 3, MASKED)

        return (moving, _merged(found, lax.cond(s <= me, earlier, later))), None

    return lax.scan(one, (first, found), jnp.arange(1, n))[0][1]


def _far_gradient(plan: Plan, q: jax.Array, keys: Keys, dout: jax.Array, logz: jax.Array, delta: jax.Array) -> Gradients:
    """Return (dq, dk, dv) of one device, float32."""
    how, n = plan.how, plan.ways
    me, segments = lax.axis_index(AXIS), keys.segments
    first, step = _rounds(plan, keys)
    dq, *dkeys = tiles.backward(q, segments, keys, dout, logz, delta, how)
    everything = how._replace(offset=q.shape[3])
    if plan.gather:  # of all devices, added up at the end
        dkeys = [jnp.zeros_like(x, shape=(n, *x.shape)).at[me].set(x) for x in dkeys]

    def one(
        carry: tuple[PyTree, jax.Array, list[jax.Array]], s: jax.Array
    ) -> tuple[tuple[PyTree, jax.Array, list[jax.Array]], None]:
        moving, dq, dkeys = carry
        now, moving = step(moving, s)
        if not plan.gather:  # to where the keys are; on its way while this round is computed
            dkeys = _passed(dkeys, n)

        def earlier() -> tuple[jax.Array, list[jax.Array]]:
            low = now.half(0)
            dq, *some = tiles.backward(q, segments, low, dout, logz, delta, everything)
            return dq, [jnp.concatenate((x, jnp.zeros_like(x)), axis=2) for x in some]  # the high half is 0

        def later() -> tuple[jax.Array, list[jax.Array]]:
            mine, of_dout, of_logz, of_delta = (half_of(x, 3, 1) for x in (q, dout, logz, delta))
            of_mine = half_of(segments, 1, 1)
            dq, *some = tiles.backward(mine, of_mine, now, of_dout, of_logz, of_delta, everything)
            return _after(dq, 3, 0.0), some

        more, some = lax.cond(s <= me, earlier, later)
        if plan.gather:
            dkeys = [lax.dynamic_update_index_in_dim(x, y, (me - s) % n, 0) for x, y in zip(dkeys, some)]
        else:
            dkeys = [x + y for x, y in zip(dkeys, some)]
        return (moving, dq + more, dkeys), None

    (_, dq, dkeys), _ = lax.scan(one, (first, dq, dkeys), jnp.arange(1, n))
    if plan.gather:
        return dq, *(lax.psum_scatter(x, AXIS) for x in dkeys)
    return dq, *_passed(dkeys, n)


def _rounds(plan: Plan, keys: Keys) -> tuple[Keys, Callable[[Keys, jax.Array], tuple[Keys, Keys]]]:
    """Return what the first round starts with, and step(moving, s) -> (the keys of device i − s, what the next one gets)."""
    n = plan.ways
    if plan.gather:
        everyone = jax.tree.map(lambda x: lax.all_gather(x, AXIS), keys)

        def pick(everyone: Keys, s: jax.Array) -> tuple[Keys, Keys]:
            j = (lax.axis_index(AXIS) - s) % n
            return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, j, keepdims=False), everyone), everyone

        return everyone, pick
    # Passed on before the round computes, so that both happen at once.
    return _passed(keys, n), lambda now, s: (now, _passed(now, n))


def _passed(tree: PyTree, n: int) -> PyTree:
    return jax.tree.map(lambda x: lax.ppermute(x, AXIS, [(i, (i + 1) % n) for i in range(n)]), tree)


# With a window: rounds along the line of chunks. The two chunks of a device become rows of a batch.


def _near(plan: Plan, q: jax.Array, keys: Keys) -> Found:
    """Return (out, logz) of one device, float32."""
    q, keys = _as_batch(q, 3), Keys(_as_batch(keys.k, 2), _as_batch(keys.v, 2), _as_batch(keys.segments, 1))
    C, found = q.shape[3], tiles.forward(q, keys.segments, keys, plan.how)
    segments = keys.segments
    for r in range(1, _reach(plan, C) + 1):
        keys = _moved(keys, 1, plan.ways)
        seen = _seen(keys.segments, r, plan.ways)
        found = _merged(found, tiles.forward(q, segments, keys._replace(segments=seen), plan.how._replace(offset=r * C)))
    out, logz = found
    return _from_batch(out, 3), _from_batch(logz, 3)


def _near_gradient(plan: Plan, q: jax.Array, keys: Keys, dout: jax.Array, logz: jax.Array, delta: jax.Array) -> Gradients:
    """Return (dq, dk, dv) of one device, float32."""
    q, dout, logz, delta = (_as_batch(x, 3) for x in (q, dout, logz, delta))
    keys = Keys(_as_batch(keys.k, 2), _as_batch(keys.v, 2), _as_batch(keys.segments, 1))
    C, n, segments = q.shape[3], plan.ways, keys.segments
    dq, *dkeys = tiles.backward(q, segments, keys, dout, logz, delta, plan.how)
    reach = _reach(plan, C)
    for r in range(1, reach + 1):
        keys, dkeys = _moved(keys, 1, n), _moved(dkeys, 1, n)
        seen = _seen(keys.segments, r, n)
        how = plan.how._replace(offset=r * C)
        more, *some = tiles.backward(q, segments, keys._replace(segments=seen), dout, logz, delta, how)
        dq, dkeys = dq + more, [x + y for x, y in zip(dkeys, some)]
    dk, dv = (_from_batch(x, 2) for x in _moved(dkeys, -reach, n))
    return _from_batch(dq, 3), dk, dv


def _reach(plan: Plan, C: int) -> int:
    """Return how many chunks back a window reaches."""
    return min(2 * plan.ways - 1, -(-(plan.how.window - 1) // C))


def _seen(segments: jax.Array, r: int, n: int) -> jax.Array:
    """Return the segments of the keys of chunk c − r, and −1, which no query has, where there is no such chunk."""
    i = lax.axis_index(AXIS)
    chunk = jnp.stack((i, 2 * n - 1 - i))
    rows = jnp.repeat(chunk >= r, segments.shape[0] // 2, total_repeat_length=segments.shape[0])
    return jnp.where(rows[:, None], segments, -1)


def _moved(tree: PyTree, r: int, n: int) -> PyTree:
    """Return arrays [2·B, …] that hold at chunk c what they held at chunk c − r, modulo the number of chunks."""

    def device(chunk: int) -> int:
        return min(chunk, 2 * n - 1 - chunk)

    def one(x: jax.Array) -> jax.Array:
        halves = x.reshape(2, -1, *x.shape[1:])
        arrived = []
        for half in (0, 1):
            parts = []
            for source in (0, 1):
                ways = [((t - r) % (2 * n), t) for t in range(n * half, n * half + n)]
                ways = [(device(a), device(b)) for a, b in ways if a // n == source]
                if ways:
                    parts.append(lax.ppermute(halves[source], AXIS, ways))  # a device that gets nothing has 0
            arrived.append(sum(parts[1:], start=parts[0]))
        return jnp.concatenate(arrived)

    return jax.tree.map(one, tree)


# Layout.


def _merged(one: Found, other: Found) -> Found:
    """Return (out, logz) of the keys of both."""
    (out, logz), (more, of_more) = one, other
    both = jnp.logaddexp(logz, of_more)
    return out * jnp.exp(logz - both)[..., None] + more * jnp.exp(of_more - both)[..., None], both


def _by_group(x_BTH: jax.Array, G: int) -> jax.Array:
    """Reshape [B, T, H, …] to [B, G, R, T, …]."""
    B, T, H, *rest = x_BTH.shape
    return jnp.moveaxis(x_BTH.reshape(B, T, G, H // G, *rest), 1, 3)


def _by_head(x_BTGK: jax.Array) -> jax.Array:
    return jnp.swapaxes(x_BTGK, 1, 2)


def _by_time(x_BGRTV: jax.Array) -> jax.Array:
    B, G, R, T, V = x_BGRTV.shape
    return jnp.moveaxis(x_BGRTV, 3, 1).reshape(B, T, G * R, V)


def _after(x: jax.Array, axis: int, filling: float) -> jax.Array:
    """Return the high half x with a low half before it."""
    return jnp.concatenate((jnp.full_like(x, filling), x), axis=axis)


def _as_batch(x: jax.Array, axis: int) -> jax.Array:
    """Reshape [B, …, T, …] to [2·B, …, C, …]: rows of low halves, then of high halves."""
    return jnp.concatenate((half_of(x, axis, 0), half_of(x, axis, 1)))


def _from_batch(x: jax.Array, axis: int) -> jax.Array:
    return jnp.concatenate(jnp.split(x, 2), axis=axis)
