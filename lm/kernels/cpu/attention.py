"""Compiled attention to paged keys and values; lm/kernels/cpu/pages.py defines the layout and has the plain twin.

A unit of work is a few neighbouring tokens of one sequence. They go through the keys in blocks of 64 positions with the online
softmax (Milakov & Gimelshein 2018): a block's scores, their exponentials against the largest score so far, and the sums of
values, rescaled when that grows. Blocks begin at fixed positions and a masked block changes nothing, so a token's result does
not depend on the tokens beside it, to the bit.
"""

import numpy as np
from numba import njit

from lm.kernels.cpu import calls
from lm.kernels.cpu.calls import ARGUMENTS, GIVEN, RESULTS, address_of, attribute, data, new_job, next_unit, run, size, width_of
from lm.kernels.cpu.vectors import (
    BLOCK,
    LANES,
    SIZE,
    bits_of_float,
    converted,
    float32s,
    float_of_bits,
    int8s,
    int32s,
    int64s,
    prefetch,
    rows_of,
    scalar,
    tile,
    transposed,
)

KEYS = BLOCK  # positions of a block
TOKENS, QUERIES = 32, 48  # of a unit of work, at most; a query is one head of a token
FEW = 16  # units; if there are fewer, each head of keys becomes a unit
Q, K_PAGES, V_PAGES, K_SCALES, V_SCALES, TABLES, SEQUENCES, PLACES, SINKS, OUT, TILES, SPLIT = (GIVEN + i for i in range(12))
HEADS, GROUPS, KEY, VALUE, STORED_VALUE, PAGE, TABLE, SCALE, SOFTCAP, WINDOW, WIDTH = (GIVEN + 12 + i for i in range(11))
half = scalar("bfloat16")
LOW = np.float32(-1e30)  # below any score


@njit(error_model="numpy", fastmath={"contract"})
def exp(x):
    """Return eˣ of a float32 x ≤ 88 to about 2 ulp; e⁰ is exactly 1. eˣ = 2ⁿ·eʳ with |r| ≤ ln 2 / 2 (Cephes, expf.c)."""
    x = max(x, np.float32(-87.0))
    magic = np.float32(12582912.0)  # 1.5·2²³: adding it rounds to an integer, which then stands in the low bits
    shifted = x * np.float32(1.44269504) + magic
    n = shifted - magic
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * (r * r) + r + np.float32(1.0)
    return p * float_of_bits(np.int32((bits_of_float(shifted) << 23) + 0x3F800000))


@njit(error_model="numpy", fastmath={"contract"})
def softcapped(s, cap):
    e = exp(np.float32(-2.0) * abs(s) / cap)
    capped = cap * (np.float32(1.0) - e) / (np.float32(1.0) + e)
    return capped if s >= 0 else -capped


@njit(error_model="numpy")
def mask(s, visible_from, visible_to):
    """Set the scores outside the visible positions of the block to LOW."""
    for j in range(min(visible_from, KEYS)):
        s[j] = LOW
    for j in range(max(visible_to + 1, 0), KEYS):
        s[j] = LOW


@njit(error_model="numpy", fastmath={"nnan", "nsz", "reassoc"})
def largest(s):
    top = LOW
    for j in range(KEYS):
        top = s[j] if s[j] > top else top
    return top


@njit(error_model="numpy")
def multiply_scores(s, factors):
    for j in range(KEYS):
        s[j] *= factors[j]


@njit(error_model="numpy")
def scales_into(out, scales, slots, heads, head):
    """Write the scales of a block's positions, stored as bfloat16 [slots, heads]."""
    for j in range(KEYS):
        float32s(out)[j] = half(scales + (int64s(slots)[j] * heads + head) * 2)


@njit(error_model="numpy", fastmath={"contract", "reassoc"})
def exponentials(s, top):
    """Replace scores by exp(s − top); masked ones by 0. Return their sum."""
    total = np.float32(0.0)
    for j in range(KEYS):
        p = exp(s[j] - top)
        p = p if s[j] > LOW else np.float32(0.0) * s[j]
        s[j] = p
        total += p
    return total


@njit(error_model="numpy")
def scale_by(address, count, factor):
    x = float32s(address)
    for i in range(count):
        x[i] *= factor


def _layout(stored):
    width, flip, convert, one = SIZE[stored], transposed(stored), converted(stored), scalar(stored)

    @njit(error_model="numpy")
    def keys(rows, offset, K, out):
        whole = K // LANES * LANES
        for first in range(0, KEYS, LANES):
            for k in range(0, whole, LANES):
                flip(rows + 8 * first, offset + k * width, out + (k * KEYS + first) * 4, KEYS * 4)
            for k in range(whole, K):
                for j in range(first, first + LANES):
                    float32s(out)[k * KEYS + j] = one(int64s(rows)[j] + offset + k * width)

    @njit(error_model="numpy")
    def values(rows, offset, V, out, step):
        whole = V // LANES * LANES
        for j in range(KEYS):
            row, to = int64s(rows)[j] + offset, out + j * step * 4
            for v in range(0, whole, LANES):
                convert(row + v * width, to + v * 4)
            for v in range(whole, V):
                float32s(to)[v] = one(row + v * width)

    return keys, values


keys_float32, values_float32 = _layout("float32")
keys_bfloat16, values_bfloat16 = _layout("bfloat16")
keys_int8, values_int8 = _layout("int8")
multiply = tile("float32", True)


@njit(error_model="numpy")
def keys_into(width, rows, offset, K, out):
    """Write the transposed keys of a block, float32 [K, KEYS]. width: bytes of a stored number."""
    if width == 4:
        keys_float32(rows, offset, K, out)
    elif width == 2:
        keys_bfloat16(rows, offset, K, out)
    else:
        keys_int8(rows, offset, K, out)


@njit(error_model="numpy")
def values_into(width, rows, offset, V, out, step):
    """Write the values of a block, float32 [KEYS, step]."""
    if width == 4:
        values_float32(rows, offset, V, out, step)
    elif width == 2:
        values_bfloat16(rows, offset, V, out, step)
    else:
        values_int8(rows, offset, V, out, step)


@njit(error_model="numpy")
def add_product(count, x, K, w, w_step, y, y_step, columns):
    """y[count, columns] += x[count, K] · w[K, columns]; steps in floats, columns a multiple of 64."""
    for column in range(0, columns, BLOCK):
        m = 0
        while m < count:
            rows = rows_of(count - m)
            multiply(rows, x + m * K * 4, K * 4, w + column * 4, w_step * 4, K, y + (m * y_step + column) * 4, y_step * 4)
            m += rows


@njit(error_model="numpy")
def slots_into(out, table, page, base, earliest, last):
    """Write the slots of a block's positions. Those outside earliest … last may have no page: they get a neighbour's."""
    slots, pages = int64s(out), int32s(table)
    first, end = max(base, earliest), min(base + KEYS, last + 1)
    entry, token = first // page, first % page
    for j in range(first - base, end - base):
        slots[j] = pages[entry] * page + token
        token += 1
        if token == page:
            entry, token = entry + 1, 0
    for j in range(first - base):
        slots[j] = slots[first - base]
    for j in range(end - base, KEYS):
        slots[j] = slots[end - 1 - base]


@njit(error_model="numpy")
def fetch(address, slots, step, size):
    """Ask for the lines of a block's keys or values. step: bytes of a token; size: bytes of it that will be read."""
    for j in range(KEYS):
        for line in range(0, size, 64):
            prefetch(address + int64s(slots)[j] * step + line)


@njit(error_model="numpy")
def fill(address, count, value):
    x = float32s(address)
    for i in range(count):
        x[i] = value


@njit(error_model="numpy")
def unit_of(words, first, tokens, g_first, groups):
    K, V, H, G, page, width = words[KEY], words[VALUE], words[HEADS], words[GROUPS], words[PAGE], words[WIDTH]
    R, stored = H // G, words[STORED_VALUE]
    count, step = tokens * R, (V + BLOCK - 1) // BLOCK * BLOCK
    scale, cap, window = float32s(words[SCALE])[0], float32s(words[SOFTCAP])[0], int32s(words[WINDOW])[0]
    places, table = int32s(words[PLACES]), words[TABLES] + int32s(words[SEQUENCES])[first] * words[TABLE] * 4
    last, earliest = np.int64(0), np.int64(1) << 40
    for t in range(first, first + tokens):
        last = max(last, places[t])
        earliest = min(earliest, max(0, places[t] - window + 1) if window else 0)

    # Scratch: queries, transposed keys, scores, values, and the state of the softmax for each query.
    memory = calls.malloc(64 + 4 * (groups * count * (K + step + 2) + KEYS * (K + count + step)) + 32 * KEYS)
    rows = (memory + 63) // 64 * 64
    slots = rows + 8 * KEYS
    later = slots + 8 * KEYS
    q = later + 8 * KEYS
    sums = q + groups * count * K * 4
    tops = sums + groups * count * step * 4
    totals = tops + groups * count * 4
    k_block = totals + groups * count * 4
    k_scales = k_block + KEYS * K * 4
    v_scales = k_scales + KEYS * 4
    scores = v_scales + KEYS * 4
    v_block = scores + KEYS * count * 4

    for g in range(groups):
        for t in range(tokens):
            source = float32s(words[Q] + ((first + t) * H + (g_first + g) * R) * K * 4)
            to = float32s(q + (g * count + t * R) * K * 4)
            for i in range(R * K):
                to[i] = source[i] * scale
    fill(tops, groups * count, LOW)
    fill(totals, groups * count, np.float32(0.0))
    fill(sums, groups * count * step, np.float32(0.0))
    fill(v_block, KEYS * step, np.float32(0.0))

    slots_into(slots, table, page, earliest // KEYS * KEYS, earliest, last)
    for base in range(earliest // KEYS * KEYS, last + 1, KEYS):
        if base + KEYS <= last:
            slots_into(later, table, page, base + KEYS, earliest, last)
            fetch(words[K_PAGES] + g_first * K * width, later, G * K * width, groups * K * width)
            fetch(words[V_PAGES] + g_first * stored * width, later, G * stored * width, groups * stored * width)
        for g in range(groups):
            head = g_first + g
            for j in range(KEYS):
                int64s(rows)[j] = words[K_PAGES] + int64s(slots)[j] * G * K * width
            keys_into(width, rows, head * K * width, K, k_block)
            fill(scores, count * KEYS, np.float32(0.0))
            add_product(count, q + g * count * K * 4, K, k_block, KEYS, scores, KEYS, KEYS)
            for j in range(KEYS):
                int64s(rows)[j] = words[V_PAGES] + int64s(slots)[j] * G * stored * width
            values_into(width, rows, head * stored * width, V, v_block, step)
            if words[K_SCALES]:
                scales_into(k_scales, words[K_SCALES], slots, G, head)
            if words[V_SCALES]:
                scales_into(v_scales, words[V_SCALES], slots, G, head)
            for i in range(count):
                s = float32s(scores + i * KEYS * 4)
                if words[K_SCALES]:
                    multiply_scores(s, float32s(k_scales))
                if cap > 0:
                    for j in range(KEYS):
                        s[j] = softcapped(s[j], cap)
                place = places[first + i // R]
                top = float32s(tops)[g * count + i]
                mask(s, place - window + 1 - base if window else 0, place - base)
                new = max(top, largest(s))
                total = exponentials(s, new)
                if new > top:
                    shrink = exp(top - new)
                    float32s(tops)[g * count + i] = new
                    float32s(totals)[g * count + i] *= shrink
                    scale_by(sums + (g * count + i) * step * 4, step, shrink)
                float32s(totals)[g * count + i] += total
                if words[V_SCALES]:
                    multiply_scores(s, float32s(v_scales))
            add_product(count, scores, KEYS, v_block, step, sums + g * count * step * 4, step, step)
        slots, later = later, slots

    for g in range(groups):
        for i in range(count):
            h = (g_first + g) * R + i % R
            top, total, factor = float32s(tops)[g * count + i], float32s(totals)[g * count + i], np.float32(1.0)
            if words[SINKS]:
                sink = float32s(words[SINKS])[h]
                new = max(top, sink)
                factor = exp(top - new)
                total = total * factor + exp(sink - new)
            out = float32s(words[OUT] + ((first + i // R) * H + h) * V * 4)
            values = float32s(sums + (g * count + i) * step * 4)
            for v in range(V):
                out[v] = values[v] * (factor / total)
    calls.free(memory)


@njit(error_model="numpy")
def task(job):
    words = int64s(job)
    unit = next_unit(job)
    while unit >= 0:
        split = words[SPLIT]
        tile = int64s(words[TILES] + unit // split * 16)
        groups = words[GROUPS] // split
        unit_of(words, tile[0], tile[1], unit % split * groups, groups)
        calls.finished(job)
        unit = next_unit(job)
    calls.leave(job)


@njit(error_model="numpy")
def attend(frame):
    """Start a job. Arguments: queries, pages and scales of keys and values, tables, sequences, places, sinks."""
    T, H, G = size(frame, ARGUMENTS, 0, 0), size(frame, ARGUMENTS, 0, 1), size(frame, ARGUMENTS, 1, 2)
    V, sequences = size(frame, RESULTS, 0, 2), int32s(data(frame, ARGUMENTS, 6))
    most = max(1, min(TOKENS, QUERIES // max(1, H // G)))
    tiles = calls.malloc(16 * (T + 1))
    count, t = 0, 0
    while t < T:
        if sequences[t] < 0:
            out = float32s(data(frame, RESULTS, 0) + t * H * V * 4)
            for i in range(H * V):
                out[i] = np.float32(0.0)
            t += 1
            continue
        end = t + 1
        while end < T and end - t < most and sequences[end] == sequences[t]:
            end += 1
        int64s(tiles)[2 * count], int64s(tiles)[2 * count + 1] = t, end - t
        count, t = count + 1, end
    split = G if count < FEW else 1
    job = new_job(count * split)
    words = int64s(job)
    words[Q], words[K_PAGES], words[V_PAGES] = data(frame, ARGUMENTS, 0), data(frame, ARGUMENTS, 1), data(frame, ARGUMENTS, 2)
    words[K_SCALES] = data(frame, ARGUMENTS, 3) if size(frame, ARGUMENTS, 3, 0) else 0
    words[V_SCALES] = data(frame, ARGUMENTS, 4) if size(frame, ARGUMENTS, 4, 0) else 0
    words[TABLES], words[SEQUENCES], words[PLACES] = (
        data(frame, ARGUMENTS, 5),
        data(frame, ARGUMENTS, 6),
        data(frame, ARGUMENTS, 7),
    )
    words[SINKS] = data(frame, ARGUMENTS, 8) if size(frame, ARGUMENTS, 8, 0) else 0
    words[OUT], words[TILES], words[SPLIT] = data(frame, RESULTS, 0), tiles, split
    words[HEADS], words[GROUPS], words[VALUE] = H, G, V
    words[KEY], words[STORED_VALUE] = size(frame, ARGUMENTS, 1, 3), size(frame, ARGUMENTS, 2, 3)
    words[PAGE], words[TABLE] = size(frame, ARGUMENTS, 1, 1), size(frame, ARGUMENTS, 5, 1)
    words[SCALE], words[SOFTCAP], words[WINDOW] = attribute(frame, 0), attribute(frame, 1), attribute(frame, 2)
    words[WIDTH] = width_of(frame, ARGUMENTS, 1)
    run(frame, job, address_of(task))
    calls.free(tiles)


@njit(error_model="numpy")
def write(frame):
    """Copy the rows [T, G, K] into their slots of the pages, which are the result in place. A slot below 0 is skipped."""
    T, row = size(frame, ARGUMENTS, 1, 0), size(frame, ARGUMENTS, 1, 1) * size(frame, ARGUMENTS, 1, 2)
    row *= width_of(frame, ARGUMENTS, 1)
    slots = int32s(data(frame, ARGUMENTS, 2))
    for t in range(T):
        if slots[t] >= 0:
            source = int8s(data(frame, ARGUMENTS, 1) + t * row)
            to = int8s(data(frame, RESULTS, 0) + slots[t] * row)
            for i in range(row):
                to[i] = source[i]


def register() -> None:
    digest = calls.sources()

    def lm_paged_attention(frame):
        digest  # noqa: B018
        if calls.is_call(frame):
            attend(frame)
        return 0

    def lm_write_pages(frame):
        digest  # noqa: B018
        if calls.is_call(frame):
            write(frame)
        return 0

    calls.handler(lm_paged_attention)
    calls.handler(lm_write_pages)
