"""Compiled passes of a recurrence in chunks of tokens; lm/kernels/dense/recurrence.py says which.

A unit of work is a row of the batch, a head of keys, and one of the parts of its R heads of values. All is float32, but where
q, k and v are bfloat16, products round what they multiply to it if the processor multiplies it. Matrices in scratch memory have
no space between rows, and sides that are multiples of 32; what is beyond a size is 0.

For a head of values of a chunk, with the names of lm/kernels/recurrence.py: D [C, C], P = q·kᵀ ⊙ D, L = strictly
lower(β·k·kᵀ ⊙ D), X = (I + L)⁻¹, m = v − from_state·k·S, u = X·β·m, y = from_state·q·S + P·u, and the next S is
kept·S + kᵀ·(to_state·u).
"""

import numpy as np
from numba import njit

from lm.kernels.dense.packing import SIDE, TILE
from lm.kernels.dense.rows import dot
from lm.kernels.dense.tiling import BFLOAT16, ROW, block_product, clear, configure, pack_tile, padded, release
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
from lm.kernels.native.numbers import floats, rounded
from lm.kernels.native.scores import exp
from lm.kernels.native.vectors import Pointer, float32s, int32s, int64s

T, G, R, KEY, VALUE, CHUNK, PARTS, Q, K, V, DECAY, BETA, FRESH, Y, DY, DQ, DK, DV, DDECAY, DBETA, WIDTH = range(
    GIVEN, GIVEN + 21
)
# Words of a unit's scratch memory: padded sizes, and addresses of matrices and vectors.
(
    C, LEFT, KEYS, VALUES, QK, QQ, KK, DECAYS, WITHIN, LOWER, INVERSE, VALUE_ROWS, MIXED, OUT, BOTH, TURNED, DWITHIN, DLOWER,
    DQK, DQQ, DKK, SPREAD, FACTORS, TILES, STATE, DSTATE, SAVED, PACKED
) = range(28)  # fmt: skip
GAMMA, FROM, TO, LEARN, NUMBER, DGAMMA = range(6)  # rows of FACTORS


@njit(error_model="numpy")
def product(s: Pointer, a: int, a_turned: bool, b: int, b_turned: bool, m: int, n: int, inner: int, c: int, adds: bool) -> None:
    """c [m, n] = A·B, or with `adds` c += A·B. A is [m, inner], or turned stored as [inner, m]; B [inner, n], or [n, inner]."""
    packed, deep = s[PACKED], ROW // s[PACKED]
    steps = inner // deep
    a_step, b_step, b_tiles = (m if a_turned else inner) * 4, (inner if b_turned else n) * 4, s[TILES] + m * steps * ROW
    for i in range(0, m, SIDE):
        for k in range(steps):
            here = a + (k * deep * a_step + i * 4 if a_turned else i * a_step + k * deep * 4)
            pack_tile(4, packed, not a_turned, False, here, a_step, s[TILES] + (i // SIDE * steps + k) * TILE)
    for j in range(0, n, SIDE):
        for k in range(steps):
            here = b + (j * b_step + k * deep * 4 if b_turned else k * deep * b_step + j * 4)
            pack_tile(4, packed, b_turned, True, here, b_step, b_tiles + (j // SIDE * steps + k) * TILE)
    block_product(packed, s[TILES], steps * TILE, b_tiles, steps * TILE, steps, m, n, c, n * 4, adds)


@njit(error_model="numpy")
def add_scaled(x: Pointer, y: Pointer, factor: np.float32, count: int) -> None:
    """x += factor·y."""
    for n in range(count):
        x[n] += factor * y[n]


@njit(error_model="numpy")
def scaled(x: Pointer, y: Pointer, factor: np.float32, count: int) -> None:
    """x = factor·y."""
    for n in range(count):
        x[n] = factor * y[n]


@njit(error_model="numpy")
def bring(width: int, source: int, step: int, rows: int, count: int, all_rows: int, columns: int, to: int) -> None:
    """Copy `rows` rows of `count` numbers of some bytes, a step in bytes apart, to a matrix [all_rows, columns]."""
    for i in range(all_rows):
        there = float32s(to + i * columns * 4)
        if i < rows:
            floats(width, source + i * step, there, count)
        for n in range(count if i < rows else 0, columns):
            there[n] = np.float32(0.0)


@njit(error_model="numpy")
def store(width: int, source: int, columns: int, rows: int, count: int, to: int, step: int) -> None:
    """Copy rows of a matrix of `columns` out as numbers of some bytes, a step in bytes apart."""
    for i in range(rows):
        rounded(width, float32s(source + i * columns * 4), to + i * step, count)


@njit(error_model="numpy")
def factors(words: Pointer, s: Pointer, b: int, g: int, r: int, t0: int) -> np.float32:
    """Write γ, from_state, to_state, β and D of a head of values of the chunk from token t0 on. Return `kept`."""
    c, heads = s[C], words[G] * words[R]
    rows = s[FACTORS]
    gamma, before, after = float32s(rows), float32s(rows + FROM * c * 4), float32s(rows + TO * c * 4)
    learn, number = float32s(rows + LEARN * c * 4), int32s(rows + NUMBER * c * 4)
    total, sequence = np.float32(0.0), 0
    for i in range(c):
        there, at = t0 + i < words[T], (b * words[T] + t0 + i) * heads + g * words[R] + r
        if there:
            total += float32s(words[DECAY])[at]
            sequence += int32s(words[FRESH])[b * words[T] + t0 + i]
        gamma[i], number[i] = total, sequence
        learn[i] = float32s(words[BETA])[at] if there and words[BETA] else np.float32(0.0)
    for i in range(c):
        before[i] = exp(gamma[i]) if number[i] == 0 else np.float32(0.0)
        after[i] = exp(total - gamma[i]) if number[i] == sequence else np.float32(0.0)
        row = float32s(s[DECAYS] + i * c * 4)
        seen = (i // SIDE + 1) * SIDE
        for j in range(seen):
            power = exp(min(gamma[i] - gamma[j], np.float32(0.0)))
            row[j] = power if (j <= i) & (number[j] == number[i]) else np.float32(0.0)
        for j in range(seen, c):
            row[j] = np.float32(0.0)
    return before[c - 1]


@njit(error_model="numpy")
def begin_chunk(words: Pointer, s: Pointer, b: int, g: int, t0: int) -> None:
    """Bring q and k of a chunk, and write q·kᵀ and k·kᵀ."""
    c, keys, step = s[C], s[KEYS], words[G] * words[KEY] * words[WIDTH]
    at, rows = (b * words[T] + t0) * step + g * words[KEY] * words[WIDTH], min(c, words[T] - t0)
    k = s[QK] + c * keys * 4
    bring(words[WIDTH], words[Q] + at, step, rows, words[KEY], c, keys, s[QK])
    bring(words[WIDTH], words[K] + at, step, rows, words[KEY], c, keys, k)
    product(s, s[QK], False, k, True, c, c, keys, s[QQ], False)
    if words[BETA]:
        product(s, k, False, k, True, c, c, keys, s[KK], False)


@njit(error_model="numpy")
def value_rows(words: Pointer, s: Pointer, b: int, g: int, r: int, t0: int) -> tuple[int, int, int]:
    """Return where a chunk's values of a head begin within an array of values, the step, and how many there are."""
    head = words[VALUE] * words[WIDTH]
    step = words[G] * words[R] * head
    return (b * words[T] + t0) * step + (g * words[R] + r) * head, step, min(s[C], words[T] - t0)


@njit(error_model="numpy")
def goes_on(words: Pointer, b: int, t: int) -> bool:
    """Return whether a chunk that begins at a token has a state before it, which is not 0."""
    return 0 < t < words[T] and int32s(words[FRESH])[b * words[T] + t] == 0


@njit(error_model="numpy")
def within_chunk(s: Pointer, has_beta: bool) -> None:
    """Write P, and with beta L and X, row by row: X_i = e_i − Σ_{j<i} L_ij·X_j."""
    c, learn = s[C], float32s(s[FACTORS] + LEARN * s[C] * 4)
    for i in range(c):
        p, d, q = float32s(s[WITHIN] + i * c * 4), float32s(s[DECAYS] + i * c * 4), float32s(s[QQ] + i * c * 4)
        for j in range(c):
            p[j] = q[j] * d[j]
        if has_beta:
            lower, k, x = float32s(s[LOWER] + i * c * 4), float32s(s[KK] + i * c * 4), float32s(s[INVERSE] + i * c * 4)
            for j in range(c):
                lower[j] = learn[i] * k[j] * d[j] if j < i else np.float32(0.0)
                x[j] = np.float32(0.0)
            for j in range(i):
                add_scaled(x, float32s(s[INVERSE] + j * c * 4), -lower[j], (j // SIDE + 1) * SIDE)
            x[i] = np.float32(1.0)


@njit(error_model="numpy")
def update(words: Pointer, s: Pointer, b: int, g: int, r: int, t0: int, state: int, mixed: int, u: int, outputs: bool) -> None:
    """Go through a chunk with a head of values: write m and u, and y with `outputs`; change the state."""
    c, keys, values, has_beta = s[C], s[KEYS], s[VALUES], words[BETA] != 0
    k = s[QK] + c * keys * 4
    sees, passes, kept = goes_on(words, b, t0), goes_on(words, b, t0 + c), factors(words, s, b, g, r, t0)
    at, step, rows = value_rows(words, s, b, g, r, t0)
    before, after = float32s(s[FACTORS] + FROM * c * 4), float32s(s[FACTORS] + TO * c * 4)
    learn = float32s(s[FACTORS] + LEARN * c * 4)
    if has_beta or outputs:
        within_chunk(s, has_beta)
        first, last = (0 if outputs else c), (2 * c if has_beta else c)  # of the rows of q·S and k·S
        here, there = s[QK] + first * keys * 4, s[BOTH] + first * values * 4
        if sees:
            product(s, here, False, state, False, last - first, values, keys, there, False)
        else:
            clear(there, (last - first) * values)
    if has_beta:
        bring(words[WIDTH], words[V] + at, step, rows, words[VALUE], c, values, mixed)
        for i in range(c):
            add_scaled(float32s(mixed + i * values * 4), float32s(s[BOTH] + (c + i) * values * 4), -before[i], values)
            scaled(float32s(s[TURNED] + i * values * 4), float32s(mixed + i * values * 4), learn[i], values)
        product(s, s[INVERSE], False, s[TURNED], False, c, values, c, u, False)
    else:
        bring(words[WIDTH], words[V] + at, step, rows, words[VALUE], c, values, u)
    if outputs:
        for i in range(c):
            scaled(float32s(s[BOTH] + i * values * 4), float32s(s[BOTH] + i * values * 4), before[i], values)
        product(s, s[WITHIN], False, u, False, c, values, c, s[BOTH], True)
        store(words[WIDTH], s[BOTH], values, rows, words[VALUE], words[Y] + at, step)
    if passes:
        for i in range(c):
            scaled(float32s(s[TURNED] + i * values * 4), float32s(u + i * values * 4), after[i], values)
        if sees:
            scaled(float32s(state), float32s(state), kept, keys * values)
        product(s, k, True, s[TURNED], False, keys, values, c, state, sees)


@njit(error_model="numpy")
def forward(words: Pointer, s: Pointer, b: int, g: int, part: int) -> None:
    matrix = s[KEYS] * s[VALUES] * 4
    heads = words[R] // words[PARTS]
    for t0 in range(0, words[T], s[C]):
        begin_chunk(words, s, b, g, t0)
        for r in range(heads):
            update(words, s, b, g, part * heads + r, t0, s[STATE] + r * matrix, s[MIXED], s[VALUE_ROWS], True)


@njit(error_model="numpy")
def gradients_of_u(s: Pointer, dstate: int, u: int, passes: bool) -> None:
    """Write Pᵀ·dy + to_state·(k·dS), and add to γ's gradient what comes from to_state. dy is in OUT; passes: dS is not 0."""
    c, keys, values = s[C], s[KEYS], s[VALUES]
    after, dgamma = float32s(s[FACTORS] + TO * c * 4), float32s(s[FACTORS] + DGAMMA * c * 4)
    if passes:
        product(s, s[QK] + c * keys * 4, False, dstate, False, c, values, keys, s[TURNED], False)
    for i in range(c if passes else 0):
        du = float32s(s[TURNED] + i * values * 4)
        scaled(du, du, after[i], values)
        change = dot(du, float32s(u + i * values * 4), values)
        dgamma[i] -= change
        dgamma[c - 1] += change
    product(s, s[WITHIN], True, s[OUT], False, c, values, c, s[TURNED], passes)


@njit(error_model="numpy")
def gradients_of_beta(words: Pointer, s: Pointer, at: int, mixed: int, u: int) -> None:
    """Turn du into z = Xᵀ·du, and write dL = −z·uᵀ, that of k·S, of β and of v. at: of the first β."""
    c, values, heads = s[C], s[VALUES], words[G] * words[R]
    z, dlower, rows = s[VALUE_ROWS], s[DLOWER], s[FACTORS]
    before, learn, dbeta = float32s(rows + FROM * c * 4), float32s(rows + LEARN * c * 4), float32s(words[DBETA])
    product(s, s[INVERSE], True, s[TURNED], False, c, values, c, z, False)
    product(s, z, False, u, True, c, c, values, dlower, False)
    for i in range(c):
        d, k, change = float32s(s[DECAYS] + i * c * 4), float32s(s[KK] + i * c * 4), float32s(dlower + i * c * 4)
        z_row, dkk = float32s(z + i * values * 4), float32s(s[DKK] + i * c * 4)
        total = dot(z_row, float32s(mixed + i * values * 4), values)
        for j in range(c):
            change[j] = -change[j] * d[j] if j < i else np.float32(0.0)
            dkk[j] += change[j] * learn[i]
        if i < s[LEFT]:
            dbeta[at + i * heads] = total + dot(change, k, c)
        scaled(float32s(s[BOTH] + (c + i) * values * 4), z_row, -learn[i] * before[i], values)
        scaled(float32s(s[TURNED] + i * values * 4), z_row, learn[i], values)


@njit(error_model="numpy")
def gradients_of_decay(words: Pointer, s: Pointer, at: int) -> None:
    """Add what comes from D to γ's gradient, and write that of the decays. at: of the first decay."""
    c, heads, dgamma = s[C], words[G] * words[R], float32s(s[FACTORS] + DGAMMA * s[C] * 4)
    learn, ddecay = float32s(s[FACTORS] + LEARN * c * 4), float32s(words[DDECAY])
    for i in range(c):
        p, dp = float32s(s[WITHIN] + i * c * 4), float32s(s[DWITHIN] + i * c * 4)
        d, dqq = float32s(s[DECAYS] + i * c * 4), float32s(s[DQQ] + i * c * 4)
        for j in range(c):
            dqq[j] += dp[j] * d[j]
            p[j] *= dp[j]
        if words[BETA]:
            k, change = float32s(s[KK] + i * c * 4), float32s(s[DLOWER] + i * c * 4)
            for j in range(c):
                p[j] += learn[i] * k[j] * change[j]
        total = np.float32(0.0)
        for j in range(c):
            total += p[j]
            dgamma[j] -= p[j]
        dgamma[i] += total
    total = np.float32(0.0)
    for i in range(c - 1, -1, -1):
        total += dgamma[i]
        if i < s[LEFT]:
            ddecay[at + i * heads] = total


@njit(error_model="numpy")
def gradients_of_head(words: Pointer, s: Pointer, b: int, g: int, r: int, t0: int, saved: int, dstate: int) -> None:
    """Go back through a chunk with a head of values. saved: state, m and u of the way forward."""
    c, keys, values, matrix = s[C], s[KEYS], s[VALUES], s[KEYS] * s[VALUES]
    mixed, u = saved + matrix * 4, saved + (matrix + c * values) * 4
    sees, passes, kept = goes_on(words, b, t0), goes_on(words, b, t0 + c), factors(words, s, b, g, r, t0)
    at, step, rows = value_rows(words, s, b, g, r, t0)
    of_token, has_beta = (b * words[T] + t0) * words[G] * words[R] + g * words[R] + r, words[BETA] != 0
    before, after = float32s(s[FACTORS] + FROM * c * 4), float32s(s[FACTORS] + TO * c * 4)
    dgamma, both = float32s(s[FACTORS] + DGAMMA * c * 4), 2 * c if has_beta else c
    within_chunk(s, has_beta)
    clear(s[FACTORS] + DGAMMA * c * 4, c)
    bring(words[WIDTH], words[DY] + at, step, rows, words[VALUE], c, values, s[OUT])
    gradients_of_u(s, dstate, u, passes)
    product(s, s[OUT], False, u, True, c, c, values, s[DWITHIN], False)
    for i in range(c):
        scaled(float32s(s[BOTH] + i * values * 4), float32s(s[OUT] + i * values * 4), before[i], values)
        scaled(float32s(s[OUT] + i * values * 4), float32s(u + i * values * 4), after[i], values)
    if has_beta:
        gradients_of_beta(words, s, of_token, mixed, u)
    store(words[WIDTH], s[TURNED], values, rows, words[VALUE], words[DV] + at, step)
    if passes:
        product(s, s[OUT], False, dstate, True, c, keys, values, s[DQK] + c * keys * 4, True)
    if sees:
        product(s, s[BOTH], False, saved, True, both, keys, values, s[SPREAD], False)
        for i in range(both):
            row = float32s(s[SPREAD] + i * keys * 4)
            dgamma[i % c] += dot(row, float32s(s[QK] + i * keys * 4), keys)
            add_scaled(float32s(s[DQK] + i * keys * 4), row, np.float32(1.0), keys)
        if passes:
            dgamma[c - 1] += kept * dot(float32s(saved), float32s(dstate), matrix)
            scaled(float32s(dstate), float32s(dstate), kept, matrix)
        product(s, s[QK], True, s[BOTH], False, keys, values, both, dstate, passes)
    gradients_of_decay(words, s, of_token)


@njit(error_model="numpy")
def gradients(words: Pointer, s: Pointer, b: int, g: int, part: int) -> None:
    """Go forward, keeping states, and back. Those of q and k are sums over the heads of the part."""
    c, keys, values, heads = s[C], s[KEYS], s[VALUES], words[R] // words[PARTS]
    matrix, record = keys * values * 4, (keys + 2 * c) * values * 4
    for t0 in range(0, words[T], c):
        begin_chunk(words, s, b, g, t0)
        for r in range(heads):
            state, saved = s[STATE] + r * matrix, s[SAVED] + (t0 // c * heads + r) * record
            if goes_on(words, b, t0):
                scaled(float32s(saved), float32s(state), np.float32(1.0), keys * values)
            update(words, s, b, g, part * heads + r, t0, state, saved + matrix, saved + matrix + c * values * 4, False)
    for t0 in range((words[T] - 1) // c * c, -1, -c):
        s[LEFT] = min(c, words[T] - t0)
        begin_chunk(words, s, b, g, t0)
        clear(s[DQK], 2 * c * keys)
        clear(s[DQQ], c * c)
        clear(s[DKK], c * c)
        for r in range(heads):
            saved = s[SAVED] + (t0 // c * heads + r) * record
            gradients_of_head(words, s, b, g, part * heads + r, t0, saved, s[DSTATE] + r * matrix)
        k, dk = s[QK] + c * keys * 4, s[DQK] + c * keys * 4
        product(s, s[DQQ], False, k, False, c, keys, c, s[DQK], True)
        product(s, s[DQQ], True, s[QK], False, c, keys, c, dk, True)
        if words[BETA]:
            product(s, s[DKK], False, k, False, c, keys, c, dk, True)
            product(s, s[DKK], True, k, False, c, keys, c, dk, True)
        step = words[G] * words[KEY] * words[WIDTH]
        at = ((b * words[PARTS] + part) * words[T] + t0) * step + g * words[KEY] * words[WIDTH]
        store(words[WIDTH], s[DQK], keys, s[LEFT], words[KEY], words[DQ] + at, step)
        store(words[WIDTH], dk, keys, s[LEFT], words[KEY], words[DK] + at, step)


@njit(error_model="numpy")
def lay_out(words: Pointer, s: Pointer, memory: int) -> int:
    """Write where a unit's matrices stand from an address on. Return the first address after them."""
    c, keys, values = words[CHUNK], padded(words[KEY]), padded(words[VALUE])
    s[C], s[KEYS], s[VALUES], s[PACKED] = c, keys, values, 2 if BFLOAT16 and words[WIDTH] == 2 else 4
    heads, chunks = words[R] // words[PARTS], (words[T] + c - 1) // c
    states = heads * keys * values
    saved = chunks * heads * (keys + 2 * c) * values if words[DY] else 0
    tiles = (2 * c + keys + values) * max(keys, values, 2 * c)
    for name, count in (
        (QK, 2 * c * keys), (QQ, c * c), (KK, c * c), (DECAYS, c * c), (WITHIN, c * c), (LOWER, c * c), (INVERSE, c * c),
        (VALUE_ROWS, c * values), (MIXED, c * values), (OUT, c * values), (BOTH, 2 * c * values), (TURNED, c * values),
        (DWITHIN, c * c), (DLOWER, c * c), (DQK, 2 * c * keys), (DQQ, c * c), (DKK, c * c), (SPREAD, 2 * c * keys),
        (FACTORS, 6 * c), (TILES, tiles), (STATE, states), (DSTATE, states), (SAVED, saved),
    ):  # fmt: skip
        s[name] = memory
        memory += count * 4
    return memory


@njit(error_model="numpy")
def task(job: int) -> None:
    words, places = int64s(job), calls.malloc(8 * 32)
    s = int64s(places)
    memory = calls.malloc(lay_out(words, s, 0) + 64)
    lay_out(words, s, padded(memory, 64))
    configure(s[PACKED], s[TILES])
    unit = next_unit(job)
    while unit >= 0:
        head, part = unit // words[PARTS], unit % words[PARTS]
        if words[DY]:
            gradients(words, s, head // words[G], head % words[G], part)
        else:
            forward(words, s, head // words[G], head % words[G], part)
        calls.finished(job)
        unit = next_unit(job)
    release(s[PACKED])
    calls.free(memory)
    calls.free(places)
    calls.leave(job)


@njit(error_model="numpy")
def job_of(frame: Pointer) -> int:
    """Return a job of both passes. Arguments: q, k, v of one dtype, decay, fresh, beta, which may be empty.

    Attributes: chunk, parts.
    """
    b, t, g = size(frame, ARGUMENTS, 0, 0), size(frame, ARGUMENTS, 0, 1), size(frame, ARGUMENTS, 0, 2)
    parts = int32s(attribute(frame, 1))[0]
    job = new_job(b * g * parts)
    words = int64s(job)
    words[T], words[G], words[R], words[WIDTH] = t, g, size(frame, ARGUMENTS, 2, 3), width_of(frame, ARGUMENTS, 0)
    words[KEY], words[VALUE] = size(frame, ARGUMENTS, 0, 3), size(frame, ARGUMENTS, 2, 4)
    words[CHUNK], words[PARTS] = int32s(attribute(frame, 0))[0], parts
    words[Q], words[K], words[V] = data(frame, ARGUMENTS, 0), data(frame, ARGUMENTS, 1), data(frame, ARGUMENTS, 2)
    words[DECAY], words[FRESH] = data(frame, ARGUMENTS, 3), data(frame, ARGUMENTS, 4)
    words[BETA] = data(frame, ARGUMENTS, 5) if size(frame, ARGUMENTS, 5, 0) else 0
    return job


def register() -> None:
    digest = calls.sources()

    def lm_chunks(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            job = job_of(frame)
            words = int64s(job)
            words[Y], words[DY] = data(frame, RESULTS, 0), 0
            run(frame, job, address_of(task))
        return 0

    def lm_chunks_gradients(frame: Pointer) -> int:
        digest  # noqa: B018
        if calls.is_call(frame):
            job = job_of(frame)
            words = int64s(job)
            words[DY], words[DQ], words[DK] = data(frame, ARGUMENTS, 6), data(frame, RESULTS, 0), data(frame, RESULTS, 1)
            words[DV], words[DDECAY] = data(frame, RESULTS, 2), data(frame, RESULTS, 3)
            words[DBETA] = data(frame, RESULTS, 4)
            run(frame, job, address_of(task))
        return 0

    calls.handler(lm_chunks)
    calls.handler(lm_chunks_gradients)
