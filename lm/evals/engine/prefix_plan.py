"""Plan batches of likelihood requests: common prefixes of contexts are read once, and the rest is packed into full rows.

The continuations of one context form a trie after it, in depth-first order. Slot q attends to slot k if k ≤ q < ends[k], where
ends[k] is the slot after the last descendant of k. Tries in the same row do not attend to each other. Common beginnings of
several contexts (few-shot examples, a system message) are prefixes: read once into a key/value cache that rows continue from.
The plan depends only on the set of requests, not on their order.

Axes: B rows, T slots, P prefix slots, N scored slots of a row, K targets of a slot, W prefixes of a wave.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

SMALL = 64  # slots of the shortest row or prefix
GROUP = 256  # minimum tokens that a shared prefix must save


class Trie(NamedTuple):
    """One context and all its continuations.

    tokens, positions, ends: int32 [n]. targets: {scored slot: its target ids}. answers: {request number: (slot, index of the
    target) of each of its tokens}.
    """

    tokens: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    targets: dict[int, list[int]]
    answers: dict[int, list[tuple[int, int]]]


class Row(NamedTuple):
    """Tries that share a row. prefix: index of their prefix in the batch's prefixes; −1: none."""

    prefix: int
    tries: list[Trie]


class Batch(NamedTuple):
    """Rows that are read together, padded to B × T. prefixes: a wave of at most W, each padded to P slots, which batches in
    turn share; none if P is 0."""

    B: int
    T: int
    P: int
    N: int
    K: int
    W: int
    prefixes: list[np.ndarray]
    rows: list[Row]


class Costs(NamedTuple):
    """Costs of a plan, in tokens. width: D of the model. shape: compiling one more shape. batch: slots of a batch. cache: slots
    of key/value cache that fit. ways: devices that rows are split over. shares: whether continuations share what they have in
    common; a layer with a state reads each text from its beginning."""

    width: int
    shape: int
    batch: int
    cache: int = 1 << 30
    ways: int = 1
    shares: bool = True

    def slot(self, T, P=0):
        """Return the cost of a slot in a row of T after P cached ones (numbers or arrays), with attention as on a CPU."""
        return 1 + np.where(P, (P + T) / self.width, T / (4 * self.width))


def plan(contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], costs: Costs) -> list[Batch]:
    """Return the batches for requests that fit the model, in the order to run them. No context or continuation is empty."""
    numbers: dict[bytes, dict[bytes, list[int]]] = {}
    for number, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        numbers.setdefault(_key(context), {}).setdefault(_key(continuation), []).append(number)
    heads = {key: _ids(key) for key in sorted(numbers)}
    longest = max((len(head) + len(c) // 4 - 1 for key, head in heads.items() for c in numbers[key]), default=0)
    most = max(longest, costs.batch) if costs.shares else 0
    tries = [trie for key, head in heads.items() for trie in _tries(head, numbers[key], most)]
    return [batch for P, groups in _by_slots(_grouped(tries, costs), costs) for batch in _batches(P, groups, costs)]


def _key(ids: Sequence[int]) -> bytes:
    """Return bytes that sort like the ids."""
    return np.asarray(ids, ">u4").tobytes()


def _ids(key: bytes) -> np.ndarray:
    return np.frombuffer(key, ">u4").astype(np.int32)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    n = min(len(a), len(b))
    differs = np.asarray(a[:n]) != np.asarray(b[:n])
    return int(differs.argmax()) if differs.any() else n


def _tries(head: np.ndarray, numbers: dict[bytes, list[int]], most: int) -> list[Trie]:
    """Return the trie of a context, or several tries if one would have more than `most` tokens."""
    keys = sorted(numbers)
    tails = [_ids(key).tolist() for key in keys]
    shared = [0, *(min(_common(a, b), len(a) - 1) for a, b in itertools.pairwise(tails))]  # tokens, with the tail before
    begins, size = [0], len(head)
    for i, tail in enumerate(tails):
        if i > begins[-1] and size + len(tail) - 1 > most:
            begins.append(i)
            size, shared[i] = len(head), 0
        size += len(tail) - 1 - shared[i]
    owners = [numbers[key] for key in keys]
    return [_trie(head, tails[i:j], shared[i:j], owners[i:j]) for i, j in itertools.pairwise([*begins, len(tails)])]


def _trie(head: np.ndarray, tails: list[list[int]], shared: list[int], owners: list[list[int]]) -> Trie:
    """Return the trie of sorted continuations. Their last tokens are only targets."""
    n = len(head)
    tokens, positions, ends = head.tolist(), [*range(n)], [0] * n
    path = [n - 1]  # slots whose outputs predict the current tail
    targets: dict[int, dict[int, int]] = {}
    answers: dict[int, list[tuple[int, int]]] = {}
    for tail, depth, numbers in zip(tails, shared, owners, strict=True):
        for slot in path[depth + 1 :]:
            ends[slot] = len(tokens)
        new = tail[depth:-1]
        path = [*path[: depth + 1], *range(len(tokens), len(tokens) + len(new))]
        tokens += new
        positions += range(n + depth, n + depth + len(new))
        ends += [0] * len(new)
        answer = []
        for slot, target in zip(path, tail, strict=True):
            known = targets.setdefault(slot, {})
            answer.append((slot, known.setdefault(target, len(known))))
        answers |= dict.fromkeys(numbers, answer)
    ends = [end or len(tokens) for end in ends]
    arrays = (np.array(values, np.int32) for values in (tokens, positions, ends))
    return Trie(*arrays, {slot: list(known) for slot, known in targets.items()}, answers)


class _Group(NamedTuple):
    """Tries whose first `shared` tokens are one prefix that is read separately; 0: no prefix."""

    shared: int
    tries: list[Trie]


class _Range(NamedTuple):
    """Neighbouring tries from `begin` on, that have `shared` tokens in common with the one before. groups: (begin, end, length
    of the prefix) of their cheapest division, which costs `cost`."""

    begin: int
    shared: int
    cost: float
    groups: list[tuple[int, int, int]]


def _grouped(tries: list[Trie], costs: Costs) -> list[_Group]:
    """Return the cheapest division of tries, sorted by context, into groups that share a prefix.

    Common beginnings of neighbours form a tree of ranges. From the leaves up, each range becomes one group or keeps the best
    division of its parts, whichever costs less.
    """
    sizes = np.asarray([len(t.tokens) for t in tries], np.int64)
    heads = [int(next(iter(t.targets), 0)) for t in tries]  # a context's last token stays in its row: its output is scored
    alone = sizes * costs.slot(sizes)
    # Reading n tokens with a prefix of p costs (n − p)·(1 + n/D), so prefix sums over tries give the cost of any range.
    whole, each = (np.concatenate([[0], np.cumsum(x)]) for x in (sizes * costs.slot(0, sizes), costs.slot(0, sizes)))
    ranges: list[_Range] = []
    for i in range(len(tries) + 1):
        shared = 0
        if 0 < i < len(tries):
            n = min(heads[i - 1], heads[i])
            shared = _common(tries[i - 1].tokens[:n], tries[i].tokens[:n])
        while len(ranges) > 1 and ranges[-1].shared > shared:
            common, parts = ranges[-1].shared, [ranges.pop()]
            while parts[0].shared == common:
                parts.insert(0, ranges.pop())
            begin, cost = parts[0].begin, sum(part.cost for part in parts)
            together = common + GROUP + whole[i] - whole[begin] - common * (each[i] - each[begin])
            groups = [(begin, i, common)] if together < cost else [group for part in parts for group in part.groups]
            ranges.append(_Range(begin, parts[0].shared, min(together, cost), groups))
        if i < len(tries):
            ranges.append(_Range(i, shared, float(alone[i]), [(i, i + 1, 0)]))
    if not costs.shares or alone.sum() - sum(part.cost for part in ranges) < costs.shape:
        return [_Group(0, tries)]
    groups = [group for part in ranges for group in part.groups]
    single = [tries[begin] for begin, _, shared in groups if not shared]
    return [_Group(0, single), *(_Group(shared, tries[begin:end]) for begin, end, shared in groups if shared)]


def _by_slots(groups: list[_Group], costs: Costs) -> list[tuple[int, list[_Group]]]:
    """Return groups by padded prefix size. Sizes are few enough that compiling each pays off."""
    alone = [g for g in groups if not g.shared]
    groups = sorted((g for g in groups if g.shared), key=lambda g: g.shared)
    lengths = [g.shared for g in groups]
    tokens = np.cumsum([0, *(sum(len(t.tokens) - g.shared for t in g.tries) for g in groups)])

    def cost(low: int, high: int) -> float:
        i, j = bisect.bisect_right(lengths, low), bisect.bisect_right(lengths, high)
        return (j - i) * high + (tokens[j] - tokens[i]) * costs.slot(SMALL, high) + 2 * costs.shape * (j > i)

    longest = max(lengths, default=0)
    ranges = divided(_ladder(longest), longest, cost)
    return [(0, alone), *((high, [g for g in groups if low < g.shared <= high]) for low, high in ranges)]


def _batches(P: int, groups: list[_Group], costs: Costs) -> list[Batch]:
    """Return the batches of groups whose prefixes take P slots."""
    sizes = sorted(len(t.tokens) - g.shared for g in groups for t in g.tries)
    if not sizes:
        return []
    total = np.cumsum([0, *sizes])

    def cost(low: int, high: int) -> float:
        """Return the cost of tries with more than `low` and at most `high` tokens in rows of `high`, packed to 95 %."""
        i, j = bisect.bisect_right(sizes, low), bisect.bisect_right(sizes, high)
        rows = max((total[j] - total[i]) / (0.95 * high), j - bisect.bisect_right(sizes, max(low, high // 2)))
        return rows * high * costs.slot(high, P) + costs.shape * (j > i)

    at_once = max(costs.ways, min(costs.batch, costs.cache) // P) if P else len(groups)
    W = _multiple(_power(min(at_once, len(groups))), costs.ways) if P else 0
    waves = [groups[i : i + at_once] for i in range(0, len(groups), at_once)]
    prefixes = [[g.tries[0].tokens[: g.shared] for g in wave] if P else [] for wave in waves]
    batches: list[list[Batch]] = [[] for _ in waves]
    for low, T in divided(_ladder(max(sizes[-1], costs.batch // 2)), sizes[-1], cost):
        rows_of_waves: list[list[Row]] = []
        for wave in waves:
            rows_of_waves.append([])
            for n, g in enumerate(wave):
                some = [_behind(t, g.shared) for t in g.tries if low < len(t.tokens) - g.shared <= T]
                rows_of_waves[-1] += [Row(n if P else -1, tries) for tries in packed(some, T)]
        rows = [row for own in rows_of_waves for row in own]
        if not rows:
            continue
        room = min(costs.batch // T, costs.cache // (P + T) if P else costs.batch) // costs.ways * costs.ways
        B = _rows(max(map(len, rows_of_waves)), max(costs.ways, room), costs.ways)
        N = min(T, _multiple(max(sum(len(t.targets) for t in row.tries) for row in rows), 16))
        K = _power(max(len(ids) for row in rows for t in row.tries for ids in t.targets.values()))
        for own, wave_prefixes, wave_batches in zip(rows_of_waves, prefixes, batches, strict=True):
            wave_batches += [Batch(B, T, P, N, K, W, wave_prefixes, own[i : i + B]) for i in range(0, len(own), B)]
    return [batch for wave in batches for batch in wave]  # so that only one wave's states are held at a time


def _behind(trie: Trie, shared: int) -> Trie:
    """Return the trie without its first `shared` tokens."""
    if not shared:
        return trie
    return Trie(
        trie.tokens[shared:],
        trie.positions[shared:],
        trie.ends[shared:] - shared,
        {slot - shared: ids for slot, ids in trie.targets.items()},
        {number: [(slot - shared, k) for slot, k in answer] for number, answer in trie.answers.items()},
    )


def packed(tries: list[Trie], T: int) -> list[list[Trie]]:
    """Pack tries of at most T tokens into rows of T: longest first, each into the fullest row that has room."""
    rows: list[list[Trie]] = []
    by_room: list[list[int]] = [[] for _ in range(T + 1)]
    for trie in sorted(tries, key=lambda t: -len(t.tokens)):
        n = len(trie.tokens)
        room = next((room for room in range(n, T + 1) if by_room[room]), None)
        if room is None:
            row, room = len(rows), T
            rows.append([])
        else:
            row = by_room[room].pop()
        rows[row].append(trie)
        by_room[room - n].append(row)
    return rows


def _ladder(most: int) -> list[int]:
    """Return the sizes that rows and prefixes may have, from 0 to at least `most`; their distance grows with them."""
    steps = [0, SMALL]
    while steps[-1] < most:
        steps.append(steps[-1] + max(SMALL // 2, 1 << (steps[-1].bit_length() - 4)))
    return steps


def divided(bounds: Sequence[int], least: int, cost: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """Return adjoining ranges (low, high] between bounds, from the first one to one that is at least `least`, at the least
    total cost."""
    best: list[tuple[float, int]] = [(0.0, 0)]  # up to each bound: the cost, and the index of the previous bound
    for j in range(1, len(bounds)):
        best.append(min((best[i][0] + cost(bounds[i], bounds[j]), i) for i in range(j)))
    j = min(range(bisect.bisect_left(bounds, least), len(bounds)), key=lambda j: best[j][0])
    ranges = []
    while j:
        i = best[j][1]
        ranges.append((bounds[i], bounds[j]))
        j = i
    return ranges[::-1]


def _rows(needed: int, most: int, ways: int) -> int:
    """Return the rows of a batch, a multiple of `ways`: the maximum or, for few rows, the size that they fill best."""
    if needed >= 16 * most:
        return most
    sizes = range(_multiple(max(1, min(needed, most // 2)), ways), most + 1, ways)
    return min(sizes, key=lambda B: (_multiple(needed, B), -B), default=ways)


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _multiple(n: int, of: int) -> int:
    """Return the least multiple of `of` that is at least n."""
    return -(-n // of) * of
