"""Compiled attention to paged keys and values; lm/kernels/cpu/pages.py defines the layout and has the plain twin.

A unit of work is a few neighbouring tokens of one sequence. They go through the keys in blocks of 64 positions with the online
softmax (Milakov & Gimelshein 2018): a block's scores, their exponentials against the largest score so far, and the sums of
values, rescaled when that grows. Blocks begin at fixed positions and a masked block changes nothing, so a token's result does
not depend on the tokens beside it, to the bit.
"""

import numpy as np
from numba import njit

from lm.kernels.cpu.blocks import by_width, fetch, few_scores_into, keys_into, rows_into, slots_into, values_into
from lm.kernels.cpu.transposes import MAX
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
from lm.kernels.native.scores import KEYS, LOW, exp, exponentials, mask, multiply_scores, scale_by, softcapped
from lm.kernels.native.vectors import BLOCK, Pointer, float32s, int8s, int32s, int64s, largest, rows_of, scalar, tile

TOKENS, QUERIES = 32, 48  # of a unit of work, at most; a query is one head of a token
FEW = 16  # units; if there are fewer, each head of keys becomes a unit
Q, K_PAGES, V_PAGES, K_SCALES, V_SCALES, TABLES, SEQUENCES, PLACES, SINKS, OUT, TILES, SPLIT = (GIVEN + i for i in range(12))
HEADS, GROUPS, KEY, VALUE, STORED_VALUE, PAGE, TABLE, SCALE, SOFTCAP, WINDOW, WIDTH = (GIVEN + 12 + i for i in range(11))
half = scalar("bfloat16")


@njit(error_model="numpy")
def scales_into(out: int, scales: int, slots: int, heads: int, head: int) -> None:
    """Write the scales of a block's positions, stored as bfloat16 [slots, heads]."""
    for j in range(KEYS):
        float32s(out)[j] = half(scales + (int64s(slots)[j] * heads + head) * 2)


scores_of, add_copied = tile("float32", False), tile("float32", True)
add_tile = by_width(add_copied, tile("bfloat16", True), tile("int8", True))


@njit(error_model="numpy")
def score(count: int, q: int, K: int, keys: int, scores: int) -> None:
    """scores[count, KEYS] = q[count, K] · keys[K, KEYS]."""
    m = 0
    while m < count:
        rows = rows_of(count - m)
        scores_of(rows, q + m * K * 4, K * 4, keys, KEYS * 4, K, scores + m * KEYS * 4, KEYS * 4)
        m += rows


@njit(error_model="numpy")
def add_values(width: int, count: int, p: int, some: int, values: int, step: int, sums: int, columns: int) -> None:
    """sums[count, columns] += p[count, :some] · values[some, columns], as they are stored.

    Rows of p are KEYS apart, rows of values `step` bytes, rows of sums `columns` floats. columns: a multiple of 64.
    """
    for column in range(0, columns, BLOCK):
        m = 0
        while m < count:
            rows = rows_of(count - m)
            x, w, y = p + m * KEYS * 4, values + column * width, sums + (m * columns + column) * 4
            add_tile(width, rows, x, KEYS * 4, w, step, some, y, columns * 4)
            m += rows


@njit(error_model="numpy")
def fill(address: int, count: int, value: np.float32) -> None:
    x = float32s(address)
    for i in range(count):
        x[i] = value


@njit(error_model="numpy")
def part_of(words: Pointer, unit: int) -> tuple[int, int, int, int]:
    """Return (first token, number of tokens, first head of keys, number of these) of a unit."""
    split = words[SPLIT]
    tile, groups = int64s(words[TILES] + unit // split * 16), words[GROUPS] // split
    return tile[0], tile[1], unit % split * groups, groups


@njit(error_model="numpy")
def first_seen(place: int, window: int) -> int:
    """Return the first place that a token sees: with a window, or in a chunk of −window places if that is below 0."""
    if window > 0:
        return max(0, place - window + 1)
    return place - place % -window if window < 0 else 0


@njit(error_model="numpy")
def span(words: Pointer, first: int, tokens: int) -> tuple[int, int]:
    """Return the first and the last place that some tokens see."""
    places, window = int32s(words[PLACES]), int32s(words[WINDOW])[0]
    earliest, last = 1 << 40, 0
    for t in range(first, first + tokens):
        earliest = min(earliest, first_seen(places[t], window))
        last = max(last, places[t])
    return earliest, last


@njit(error_model="numpy")
def rows_of_block(
    words: Pointer, table: int, base: int, earliest: int, last: int, slots: int, k_rows: int, v_rows: int, head: int
) -> None:
    """Write the slots of a block's positions, and the addresses of a head's keys and values there."""
    G, width = words[GROUPS], words[WIDTH]
    slots_into(slots, table, words[PAGE], base, earliest, last)
    rows_into(k_rows, words[K_PAGES] + head * words[KEY] * width, slots, G * words[KEY] * width)
    rows_into(v_rows, words[V_PAGES] + head * words[STORED_VALUE] * width, slots, G * words[STORED_VALUE] * width)


@njit(error_model="numpy")
def first_block(words: Pointer, unit: int, slots: int, k_rows: int, v_rows: int) -> None:
    """Write slots and addresses, as `rows_of_block` does, for the first block of a unit."""
    first, tokens, head, _ = part_of(words, unit)
    earliest, last = span(words, first, tokens)
    table = words[TABLES] + int32s(words[SEQUENCES])[first] * words[TABLE] * 4
    rows_of_block(words, table, earliest // KEYS * KEYS, earliest, last, slots, k_rows, v_rows, head)


@njit(error_model="numpy")
def add_stored(
    words: Pointer, count: int, scores: int, base: int, begin: int, end: int, rows: int, later: int, g: int, sums: int
) -> None:
    """Add the values at the positions begin … end of a block, as they are stored, and fetch those at `later`, or 0."""
    V, width = words[VALUE], words[WIDTH]
    offset, step, page = g * words[STORED_VALUE] * width, words[GROUPS] * words[STORED_VALUE] * width, words[PAGE]
    j = begin
    while j < end:
        some = min(page - (base + j) % page, end - j)
        if later:
            fetch(later, j, j + some, offset, V * width)
        add_values(width, count, scores + j * 4, some, int64s(rows)[j] + offset, step, sums, V)
        j += some


@njit(error_model="numpy")
def queries_into(out: int, words: Pointer, first: int, tokens: int, g_first: int, groups: int) -> None:
    """Write the queries of a unit, times the scale, by head of keys."""
    K, H, R = words[KEY], words[HEADS], words[HEADS] // words[GROUPS]
    scale = float32s(words[SCALE])[0]
    for g in range(groups):
        for t in range(tokens):
            source = float32s(words[Q] + ((first + t) * H + (g_first + g) * R) * K * 4)
            to = float32s(out + (g * tokens + t) * R * K * 4)
            for i in range(R * K):
                to[i] = source[i] * scale


@njit(error_model="numpy")
def soften(
    scores: int,
    k_scales: int,
    v_scales: int,
    cap: np.float32,
    low: int,
    high: int,
    top: Pointer,
    total: Pointer,
    sums: int,
    step: int,
) -> None:
    """Replace a query's scores of a block by exp(s − top), at the positions low … high, and add them to `total`.

    If the largest score grows, what was summed before is rescaled. k_scales, v_scales: of stored integers, or 0.
    """
    s = float32s(scores)
    if k_scales:
        multiply_scores(s, float32s(k_scales))
    if cap > 0:
        for j in range(KEYS):
            s[j] = softcapped(s[j], cap)
    mask(s, low, high)
    new = max(top[0], largest(scores, KEYS))
    added = exponentials(s, KEYS, np.float32(1.0), new)
    if new > top[0]:
        shrink = exp(top[0] - new)
        top[0] = new
        total[0] *= shrink
        scale_by(float32s(sums), step, shrink)
    total[0] += added
    if v_scales:
        multiply_scores(s, float32s(v_scales))


@njit(error_model="numpy")
def results_from(
    words: Pointer, first: int, g_first: int, groups: int, count: int, tops: int, totals: int, sums: int, step: int
) -> None:
    """Write the results of a unit: the sums over the totals, to which sinks are added."""
    V, H, R = words[VALUE], words[HEADS], words[HEADS] // words[GROUPS]
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


@njit(error_model="numpy")
def do_unit(job: int, unit: int) -> int:
    """Do a unit. Return the next one of this thread, or -1."""
    words = int64s(job)
    first, tokens, g_first, groups = part_of(words, unit)
    K, V, G, width = words[KEY], words[VALUE], words[GROUPS], words[WIDTH]
    R, stored = words[HEADS] // G, words[STORED_VALUE]
    count, step = tokens * R, (V + BLOCK - 1) // BLOCK * BLOCK
    cap, window = float32s(words[SOFTCAP])[0], int32s(words[WINDOW])[0]
    places, table = int32s(words[PLACES]), words[TABLES] + int32s(words[SEQUENCES])[first] * words[TABLE] * 4
    earliest, last = span(words, first, tokens)

    # Scratch: the tokens of this block and of the next, queries, transposed keys, scores, values, the state of the softmax.
    memory = calls.malloc(64 + 4 * (groups * count * (K + step + 2) + KEYS * (K + count + step)) + 64 * KEYS)
    slots = (memory + 63) // 64 * 64
    slots_later = slots + 8 * KEYS
    k_rows = slots_later + 8 * KEYS
    v_rows = k_rows + 8 * KEYS
    k_later = v_rows + 8 * KEYS
    v_later = k_later + 8 * KEYS
    q = v_later + 8 * KEYS
    sums = q + groups * count * K * 4
    tops = sums + groups * count * step * 4
    totals = tops + groups * count * 4
    k_block = totals + groups * count * 4
    k_scales = k_block + KEYS * K * 4
    v_scales = k_scales + KEYS * 4
    scores = v_scales + KEYS * 4
    v_block = scores + KEYS * count * 4

    queries_into(q, words, first, tokens, g_first, groups)
    fill(tops, groups * count, LOW)
    fill(totals, groups * count, np.float32(0.0))
    fill(sums, groups * count * step, np.float32(0.0))
    few, direct = count <= MAX and K % 32 == 0, V == step
    if not direct:
        fill(v_block, KEYS * step, np.float32(0.0))

    upcoming = -1
    first_block(words, unit, slots, k_rows, v_rows)
    for base in range(earliest // KEYS * KEYS, last + 1, KEYS):
        # While a block is in work, the next one is fetched: of this unit, or the first of the unit that comes after it.
        has_later = base + KEYS <= last
        if has_later:
            rows_of_block(words, table, base + KEYS, earliest, last, slots_later, k_later, v_later, g_first)
        else:
            upcoming = next_unit(job)
            has_later = upcoming >= 0
            if has_later:
                first_block(words, upcoming, slots_later, k_later, v_later)
        begin, end = max(earliest - base, 0), min(KEYS, last + 1 - base)  # of the positions that are seen
        for g in range(groups):
            head = g_first + g
            some_q, later = q + g * count * K * 4, k_later if has_later else 0
            if few:
                few_scores_into(width, count, k_rows, begin, end, g * K * width, K, some_q, scores, later)
            else:
                keys_into(width, k_rows, g * K * width, K, k_block, later)
                score(count, some_q, K, k_block, scores)
            if words[K_SCALES]:
                scales_into(k_scales, words[K_SCALES], slots, G, head)
            if words[V_SCALES]:
                scales_into(v_scales, words[V_SCALES], slots, G, head)
            its_k_scales, its_v_scales = k_scales if words[K_SCALES] else 0, v_scales if words[V_SCALES] else 0
            for i in range(count):
                n, place = g * count + i, places[first + i // R]
                low, top, total = first_seen(place, window) - base, float32s(tops + n * 4), float32s(totals + n * 4)
                row, its_sums = scores + i * KEYS * 4, sums + n * step * 4
                soften(row, its_k_scales, its_v_scales, cap, low, place - base, top, total, its_sums, step)
            if direct:
                its_later = v_later if has_later else 0
                add_stored(words, count, scores, base, begin, end, v_rows, its_later, g, sums + g * count * step * 4)
            else:
                values_into(width, v_rows, g * stored * width, V, v_block, step)
                add_values(4, count, scores, KEYS, v_block, step * 4, sums + g * count * step * 4, step)
        slots, slots_later, k_rows, k_later, v_rows, v_later = slots_later, slots, k_later, k_rows, v_later, v_rows

    results_from(words, first, g_first, groups, count, tops, totals, sums, step)
    calls.free(memory)
    calls.finished(job)
    return upcoming


@njit(error_model="numpy")
def task(job: int) -> None:
    unit = next_unit(job)
    while unit >= 0:
        unit = do_unit(job, unit)
    calls.leave(job)


@njit(error_model="numpy")
def attend(frame: Pointer) -> None:
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
    words[TABLES], words[SEQUENCES] = data(frame, ARGUMENTS, 5), data(frame, ARGUMENTS, 6)
    words[PLACES] = data(frame, ARGUMENTS, 7)
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
def write(frame: Pointer) -> None:
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

    def lm_paged_attention(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            attend(frame)
        return 0

    def lm_write_pages(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            write(frame)
        return 0

    calls.handler(lm_paged_attention)
    calls.handler(lm_write_pages)
