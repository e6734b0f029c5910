"""Compiled attention of training; lm/kernels/dense/attention.py says which.

A unit of work is a row of the batch and a key/value head. The axes are those of lm/kernels/attention.py.
"""

import math

import numpy as np
from numba import njit

from lm.kernels.dense.packing import SIDE, TILE
from lm.kernels.dense.tiling import (
    PAIR,
    ROW,
    block_product,
    clear,
    configure,
    pack_matrix,
    pack_tile,
    padded,
    release,
    row_into,
    store,
)
from lm.kernels.native import calls
from lm.kernels.native.calls import (
    ARGUMENTS,
    GIVEN,
    RESULTS,
    address_of,
    attribute,
    data,
    new_job,
    next_unit,
    run,
    size,
    width_of,
)
from lm.kernels.native.scores import LOW, exp, exponentials, scale_by
from lm.kernels.native.vectors import Pointer, float32s, float_of_bits, int32s, int64s, largest, uint16s

KEYS = 512  # whose scores exist at once in the forward pass
BLOCK_KEYS, BLOCK_QUERIES = 64, 128  # of the backward pass
T, H, G, HEAD, VALUE, SCALE, WINDOW, Q, K, V, SEGMENTS, OUT, LOGZ, DOUT, DQ, DK, DV, WIDTH = (GIVEN + i for i in range(18))


@njit(error_model="numpy")
def span(segments: Pointer, count: int) -> tuple[int, int]:
    """Return the smallest and the largest of some segments."""
    low = high = segments[0]
    for n in range(1, count):
        low, high = min(low, segments[n]), max(high, segments[n])
    return low, high


@njit(error_model="numpy")
def divide_by(x: Pointer, count: int, divisor: np.float32) -> None:
    for j in range(count):
        x[j] /= divisor


@njit(error_model="numpy")
def softmax_block(
    words: Pointer,
    scores: int,
    keys: int,
    first: int,
    t0: int,
    segments: Pointer,
    apart: bool,
    tiles: int,
    tops: Pointer,
    sums: Pointer,
    out: int,
    values: int,
    fresh: bool,
) -> None:
    """Turn scores of 32 queries and some keys into exponentials in tiles of A, and rescale what was summed before.

    first: the first key. segments: of all tokens. apart: whether some may be of different segments. fresh: nothing was summed
    yet.
    """
    scale, width = float_of_bits(np.int32(words[SCALE])), words[WIDTH]
    group = KEYS * width // ROW * TILE
    for i in range(PAIR):
        s = float32s(scores + i * KEYS * 4)
        t = min(t0 + i, words[T] - 1)
        for j in range(max(t - first + 1, 0), keys):
            s[j] = LOW
        if words[WINDOW]:
            for j in range(min(t - words[WINDOW] + 1 - first, keys)):
                s[j] = LOW
        if apart:
            for j in range(keys):
                s[j] = s[j] if segments[first + j] == segments[t] else LOW
        top = max(tops[i], largest(scores + i * KEYS * 4, keys) * scale)
        total = exponentials(s, keys, scale, top)
        if fresh:
            sums[i] = total
        else:
            kept = exp(tops[i] - top)
            sums[i] = sums[i] * kept + total
            if kept != np.float32(1.0):
                scale_by(float32s(out + i * values * 4), values, kept)
        tops[i] = top
        row_into(width, scores + i * KEYS * 4, keys, tiles + i // SIDE * group + i % SIDE * ROW)


@njit(error_model="numpy")
def attend(words: Pointer, b: int, g: int, memory: int) -> None:
    """Compute the forward pass of a row and a key/value head."""
    t, h, head, value, kv_heads, width = words[T], words[H], words[HEAD], words[VALUE], words[G], words[WIDTH]
    deep = ROW // width
    whole, steps, values = padded(t), padded(head, deep) // deep, padded(value)
    k_tiles = memory
    v_tiles = k_tiles + whole * steps * ROW
    q_tiles = v_tiles + whole * values * width
    p_tiles = q_tiles + PAIR * steps * ROW
    scores = p_tiles + PAIR * KEYS * width
    out = scores + PAIR * KEYS * 4
    rows = out + PAIR * values * 4
    spare = rows + 512
    segments_of = spare + 2048
    tops, sums, segments = float32s(rows), float32s(rows + 256), int32s(segments_of)
    for n in range(whole):
        segments[n] = int32s(words[SEGMENTS])[b * t + n] if n < t else np.int32(-1)
    k, v = words[K] + (b * t * kv_heads + g) * head * width, words[V] + (b * t * kv_heads + g) * value * width
    pack_matrix(k, t, whole // SIDE, head, steps, True, kv_heads * head * width, width, True, k_tiles, spare)
    pack_matrix(v, value, values // SIDE, t, whole // deep, False, kv_heads * value * width, width, True, v_tiles, spare)
    k_group, v_group, p_group = steps * TILE, whole // deep * TILE, KEYS // deep * TILE
    for r in range(h // kv_heads):
        n = g * (h // kv_heads) + r
        for t0 in range(0, t, PAIR):
            q = words[Q] + ((b * t + t0) * h + n) * head * width
            pack_matrix(q, t - t0, 2, head, steps, True, h * head * width, width, False, q_tiles, spare)
            low, high = span(int32s(segments_of + t0 * 4), min(PAIR, t - t0))
            first = max(t0 - words[WINDOW] + 1, 0) // PAIR * PAIR if words[WINDOW] else 0
            fresh = True
            for i in range(PAIR):
                tops[i] = LOW
            while first < t0 + PAIR:
                keys = min(KEYS, t0 + PAIR - first)
                lowest, highest = span(int32s(segments_of + first * 4), min(keys, t - first))
                if lowest <= high and low <= highest:
                    k_here, v_here = k_tiles + first // SIDE * k_group, v_tiles + first // deep * TILE
                    block_product(width, q_tiles, k_group, k_here, k_group, steps, PAIR, keys, scores, KEYS * 4, False)
                    apart = not (low == high and lowest == highest)
                    softmax_block(words, scores, keys, first, t0, segments, apart, p_tiles, tops, sums, out, values, fresh)
                    block_product(
                        width, p_tiles, p_group, v_here, v_group, keys // deep, PAIR, values, out, values * 4, not fresh
                    )
                    fresh = False
                first += keys
            for i in range(min(PAIR, t - t0)):
                divide_by(float32s(out + i * values * 4), value, sums[i])
                there = words[OUT] + ((b * t + t0 + i) * h + n) * value * width
                store(out + i * values * 4, 0, 1, value, there, 0, width)
                float32s(words[LOGZ])[(b * h + n) * t + t0 + i] = tops[i] + np.float32(math.log(sums[i]))


@njit(error_model="numpy")  # without "contract", as `exponentials`
def gradients_of_scores(s: Pointer, d: Pointer, logz: Pointer, delta: Pointer, scale: np.float32) -> None:
    """Replace scores of a key by P = exp(scale·s − log Z), and dP by dS = P·(dP − delta)·scale."""
    for j in range(BLOCK_QUERIES):
        p = exp(s[j] * scale - logz[j])
        s[j] = p
        d[j] = p * (d[j] - delta[j]) * scale


@njit(error_model="numpy")
def masked_gradients_of_scores(
    s: Pointer,
    d: Pointer,
    logz: Pointer,
    delta: Pointer,
    scale: np.float32,
    before: int,
    window: int,
    segments: Pointer,
    mine: int,
) -> None:
    """The same, but 0 for queries that do not see the key. before: the place of the first query − that of the key."""
    for j in range(BLOCK_QUERIES):
        p = exp(s[j] * scale - logz[j])
        ds = p * (d[j] - delta[j]) * scale
        seen = (before + j >= 0) & (before + j < window) & (segments[j] == mine)
        s[j] = p if seen else np.float32(0.0)
        d[j] = ds if seen else np.float32(0.0)


@njit(error_model="numpy", fastmath={"contract", "reassoc"})
def dot(width: int, a: int, b: int, count: int) -> np.float32:
    """Return the product of two vectors of numbers of some bytes."""
    total = np.float32(0.0)
    if width == 4:
        x, y = float32s(a), float32s(b)
        for n in range(count):
            total += x[n] * y[n]
    else:
        left, right = uint16s(a), uint16s(b)
        for n in range(count):
            total += float_of_bits(np.int32(left[n]) << 16) * float_of_bits(np.int32(right[n]) << 16)
    return total


@njit(error_model="numpy")
def tiles_of_gradients(width: int, p: int, ds: int, p_tiles: int, ds_tiles: int, dst_tiles: int) -> None:
    """Bring a block's P and dS [BLOCK_KEYS, BLOCK_QUERIES] into tiles, and dS transposed into tiles too."""
    deep = ROW // width
    by_query, by_key = BLOCK_QUERIES // deep, BLOCK_KEYS // deep
    for i in range(BLOCK_KEYS):
        row, there = i * BLOCK_QUERIES * 4, i // SIDE * by_query * TILE + i % SIDE * ROW
        row_into(width, p + row, BLOCK_QUERIES, p_tiles + there)
        row_into(width, ds + row, BLOCK_QUERIES, ds_tiles + there)
    for j in range(0, BLOCK_QUERIES, SIDE):
        for i in range(by_key):
            here = ds + (i * deep * BLOCK_QUERIES + j) * 4
            pack_tile(4, width, False, False, here, BLOCK_QUERIES * 4, dst_tiles + (j // SIDE * by_key + i) * TILE)


@njit(error_model="numpy")
def gradients(words: Pointer, b: int, g: int, memory: int) -> None:
    """Compute the backward pass of a row and a key/value head."""
    t, h, head, value, kv_heads, width = words[T], words[H], words[HEAD], words[VALUE], words[G], words[WIDTH]
    deep = ROW // width
    window = words[WINDOW] if words[WINDOW] else t + BLOCK_QUERIES
    scale = float_of_bits(np.int32(words[SCALE]))
    whole = padded(t, BLOCK_QUERIES)
    heads, values = padded(head), padded(value)
    k_rows = memory
    v_rows = k_rows + whole * heads * width
    k_pairs = v_rows + whole * values * width
    q_columns = k_pairs + whole * heads * width
    o_columns = q_columns + whole * heads * width
    q_pairs = o_columns + whole * values * width
    o_pairs = q_pairs + whole * heads * width
    p_tiles = o_pairs + whole * values * width
    ds_tiles = p_tiles + BLOCK_KEYS * BLOCK_QUERIES * width
    dst_tiles = ds_tiles + BLOCK_KEYS * BLOCK_QUERIES * width
    scores = dst_tiles + BLOCK_KEYS * BLOCK_QUERIES * width
    dscores = scores + BLOCK_KEYS * BLOCK_QUERIES * 4
    dq = dscores + BLOCK_KEYS * BLOCK_QUERIES * 4
    dk = dq + whole * heads * 4
    dv = dk + whole * heads * 4
    logz_of = dv + whole * values * 4
    delta_of = logz_of + whole * 4
    segments_of = delta_of + whole * 4
    spare = segments_of + whole * 4
    logz, delta, segments = float32s(logz_of), float32s(delta_of), int32s(segments_of)
    for n in range(whole):
        segments[n] = int32s(words[SEGMENTS])[b * t + n] if n < t else np.int32(-1)
    k, v = words[K] + (b * t * kv_heads + g) * head * width, words[V] + (b * t * kv_heads + g) * value * width
    by_head, by_value, by_token = heads // deep, values // deep, whole // deep
    groups, head_group, value_group, token_group = whole // SIDE, by_head * TILE, by_value * TILE, by_token * TILE
    pack_matrix(k, t, groups, head, by_head, True, kv_heads * head * width, width, False, k_rows, spare)
    pack_matrix(v, t, groups, value, by_value, True, kv_heads * value * width, width, False, v_rows, spare)
    pack_matrix(k, head, heads // SIDE, t, by_token, False, kv_heads * head * width, width, True, k_pairs, spare)
    clear(dk, whole * (heads + values))  # and dv, which comes next
    by_query, by_key = BLOCK_QUERIES // deep, BLOCK_KEYS // deep
    for r in range(h // kv_heads):
        n = g * (h // kv_heads) + r
        q = words[Q] + (b * t * h + n) * head * width
        o, do = words[OUT] + (b * t * h + n) * value * width, words[DOUT] + (b * t * h + n) * value * width
        pack_matrix(q, t, groups, head, by_head, True, h * head * width, width, True, q_columns, spare)
        pack_matrix(do, t, groups, value, by_value, True, h * value * width, width, True, o_columns, spare)
        pack_matrix(q, head, heads // SIDE, t, by_token, False, h * head * width, width, True, q_pairs, spare)
        pack_matrix(do, value, values // SIDE, t, by_token, False, h * value * width, width, True, o_pairs, spare)
        for i in range(whole):
            logz[i] = float32s(words[LOGZ])[(b * h + n) * t + i] if i < t else np.float32(1e30)
            step = i * h * value * width
            delta[i] = dot(width, do + step, o + step, value) if i < t else np.float32(0.0)
        clear(dq, whole * heads)
        for k0 in range(0, t, BLOCK_KEYS):
            low, high = span(int32s(segments_of + k0 * 4), min(BLOCK_KEYS, t - k0))
            for q0 in range(k0 // BLOCK_QUERIES * BLOCK_QUERIES, min(t, k0 + BLOCK_KEYS - 1 + window), BLOCK_QUERIES):
                lowest, highest = span(int32s(segments_of + q0 * 4), min(BLOCK_QUERIES, t - q0))
                if highest < low or high < lowest:
                    continue
                k_here, v_here = k_rows + k0 // SIDE * head_group, v_rows + k0 // SIDE * value_group
                q_here, o_here = q_columns + q0 // SIDE * head_group, o_columns + q0 // SIDE * value_group
                sizes = BLOCK_KEYS, BLOCK_QUERIES
                block_product(width, k_here, head_group, q_here, head_group, by_head, *sizes, scores, BLOCK_QUERIES * 4, False)
                block_product(
                    width, v_here, value_group, o_here, value_group, by_value, *sizes, dscores, BLOCK_QUERIES * 4, False
                )
                seen = q0 >= k0 + BLOCK_KEYS - 1 and q0 + BLOCK_QUERIES - k0 <= window
                seen = seen and low == high and lowest == highest and k0 + BLOCK_KEYS <= t
                z, e, of = float32s(logz_of + q0 * 4), float32s(delta_of + q0 * 4), int32s(segments_of + q0 * 4)
                for i in range(BLOCK_KEYS):
                    row = i * BLOCK_QUERIES * 4
                    s, d = float32s(scores + row), float32s(dscores + row)
                    if seen:
                        gradients_of_scores(s, d, z, e, scale)
                    else:
                        masked_gradients_of_scores(s, d, z, e, scale, q0 - k0 - i, window, of, segments[k0 + i])
                tiles_of_gradients(width, scores, dscores, p_tiles, ds_tiles, dst_tiles)
                k_here, q_here, o_here = k_pairs + k0 // deep * TILE, q_pairs + q0 // deep * TILE, o_pairs + q0 // deep * TILE
                group, dv_here, dk_here = by_query * TILE, dv + k0 * values * 4, dk + k0 * heads * 4
                block_product(
                    width, p_tiles, group, o_here, token_group, by_query, BLOCK_KEYS, values, dv_here, values * 4, True
                )
                block_product(
                    width, ds_tiles, group, q_here, token_group, by_query, BLOCK_KEYS, heads, dk_here, heads * 4, True
                )
                group, dq_here = by_key * TILE, dq + q0 * heads * 4
                block_product(
                    width, dst_tiles, group, k_here, token_group, by_key, BLOCK_QUERIES, heads, dq_here, heads * 4, True
                )
        store(dq, heads * 4, t, head, words[DQ] + (b * t * h + n) * head * width, h * head * width, width)
    store(dk, heads * 4, t, head, words[DK] + (b * t * kv_heads + g) * head * width, kv_heads * head * width, width)
    store(dv, values * 4, t, value, words[DV] + (b * t * kv_heads + g) * value * width, kv_heads * value * width, width)


@njit(error_model="numpy")
def task(job: int) -> None:
    words = int64s(job)
    forward = words[DOUT] == 0
    heads, values, width = padded(words[HEAD]), padded(words[VALUE]), words[WIDTH]
    if forward:
        whole = padded(words[T])
        count = whole * ((heads + values) * width + 4) + PAIR * (heads * width + KEYS * (4 + width) + values * 4) + 2560
    else:
        whole = padded(words[T], BLOCK_QUERIES)
        count = whole * (heads * (4 * width + 8) + values * (3 * width + 4) + 12)
        count += BLOCK_KEYS * BLOCK_QUERIES * (3 * width + 8) + 2048
    memory = calls.malloc(count + 64)
    configure(width, memory)
    unit = next_unit(job)
    while unit >= 0:
        if forward:
            attend(words, unit // words[G], unit % words[G], padded(memory, 64))
        else:
            gradients(words, unit // words[G], unit % words[G], padded(memory, 64))
        calls.finished(job)
        unit = next_unit(job)
    release(width)
    calls.free(memory)
    calls.leave(job)


@njit(error_model="numpy")
def job_of(frame: Pointer) -> int:
    """Return a job with what both passes need. Arguments: q, k, v, segments; attributes: scale, window."""
    b, t, h = size(frame, ARGUMENTS, 0, 0), size(frame, ARGUMENTS, 0, 1), size(frame, ARGUMENTS, 0, 2)
    g = size(frame, ARGUMENTS, 1, 2)
    job = new_job(b * g)
    words = int64s(job)
    words[T], words[H], words[G] = t, h, g
    words[HEAD], words[VALUE] = size(frame, ARGUMENTS, 0, 3), size(frame, ARGUMENTS, 2, 3)
    words[SCALE], words[WINDOW] = int32s(attribute(frame, 0))[0], int32s(attribute(frame, 1))[0]
    words[Q], words[K], words[V] = data(frame, ARGUMENTS, 0), data(frame, ARGUMENTS, 1), data(frame, ARGUMENTS, 2)
    words[SEGMENTS], words[WIDTH] = data(frame, ARGUMENTS, 3), width_of(frame, ARGUMENTS, 0)
    return job


def register() -> None:
    digest = calls.sources()

    def lm_flash(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            job = job_of(frame)
            words = int64s(job)
            words[OUT], words[LOGZ], words[DOUT] = data(frame, RESULTS, 0), data(frame, RESULTS, 1), 0
            run(frame, job, address_of(task))
        return 0

    def lm_flash_gradients(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            job = job_of(frame)
            words = int64s(job)
            words[OUT], words[LOGZ] = data(frame, ARGUMENTS, 4), data(frame, ARGUMENTS, 5)
            words[DOUT] = data(frame, ARGUMENTS, 6)
            words[DQ], words[DK], words[DV] = data(frame, RESULTS, 0), data(frame, RESULTS, 1), data(frame, RESULTS, 2)
            run(frame, job, address_of(task))
        return 0

    calls.handler(lm_flash)
    calls.handler(lm_flash_gradients)
