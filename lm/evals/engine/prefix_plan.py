"""Plan batches of likelihood requests: common prefixes of contexts are read once, and the rest is packed into full rows.

The continuations of one context form a trie after it, in depth-first order. Slot q attends to slot k if k ≤ q < ends[k], where
ends[k] is the slot after the last descendant of k. Tries in the same row do not attend to each other. Common beginnings of
several contexts (few-shot examples, a system message) are prefixes: read once into a key/value cache that rows continue from.
The plan depends only on the set of requests, not on their order.

Axes: B rows, T slots, P prefix slots, N scored slots of a row, K targets of a slot.
"""

import bisect
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
    """Tries that share a row. prefix: index of their prefix in the wave; −1: none."""

    prefix: int
    tries: list[Trie]


class Batch(NamedTuple):
    """Rows that are read together, padded to B × T. P: slots of a prefix. W: prefixes of a wave; the last wave may have fewer.
    wave: its index in PrefixPlan.waves."""

    B: int
    T: int
    P: int
    N: int
    K: int
    W: int
    wave: int
    rows: list[Row]


class PrefixPlan(NamedTuple):
    """batches: in the order to run them. waves: prefixes that are read together, each of at most P slots."""

    batches: list[Batch]
    waves: list[list[np.ndarray]]


class Costs(NamedTuple):
    """Costs of a plan, in tokens. width: D of the model. shape: compiling one more shape. batch: slots of a batch. cache: slots
    of key/value cache that fit. ways: devices that rows are split over."""

    width: int
    shape: int
    batch: int
    cache: int = 1 << 30
    ways: int = 1

    def slot(self, T, P=0):
        """Return the cost of a slot in a row of T after P cached ones (numbers or arrays), with attention as on a CPU."""
        return 1 + np.where(P, (P + T) / self.width, T / (4 * self.width))


def plan(contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], costs: Costs) -> PrefixPlan:
    """Return a plan for requests that fit the model. Each context and continuation has at least one token."""
    numbers: dict[bytes, dict[bytes, list[int]]] = {}
    for number, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        numbers.setdefault(_key(context), {}).setdefault(_key(continuation), []).append(number)
    begins = sorted(numbers)
    heads = [_ids(key) for key in begins]
    longest = max((len(head) + len(c) // 4 - 1 for key, head in zip(begins, heads) for c in numbers[key]), default=0)
    tries = [t for key, head in zip(begins, heads) for t in _tries(head, numbers[key], max(longest, costs.batch))]
    result = PrefixPlan([], [])
    for P, groups in _by_slots(_grouped(tries, costs), costs):
        _add(result, P, groups, costs)
    return result


def _key(ids: Sequence[int]) -> bytes:
    """Return bytes that sort like the ids."""
    return np.asarray(ids, ">u4").tobytes()


def _ids(key: bytes) -> np.ndarray:
    return np.frombuffer(key, ">u4").astype(np.int32)


def _tries(head: np.ndarray, numbers: dict[bytes, list[int]], most: int) -> list[Trie]:
    """Return the trie of a context, or several tries if one would have more than `most` tokens."""
    done, open_ = [], None
    for key in sorted(numbers):
        tail = _ids(key).tolist()
        if open_ is not None and open_.size + len(tail) - 1 > most:
            done.append(open_.trie())
            open_ = None
        open_ = open_ or _Growing(head)
        open_.add(tail, numbers[key])
    return [*done, open_.trie()]


class _Growing:
    """Builds a trie from continuations that arrive in lexicographic order."""

    def __init__(self, head: np.ndarray):
        self.head, self.tokens, self.depths = head, [], []
        self.path, self.last = [len(head) - 1], []
        self.targets: dict[int, dict[int, int]] = {}
        self.answers: dict[int, list[tuple[int, int]]] = {}

    @property
    def size(self) -> int:
        return len(self.head) + len(self.tokens)

    def add(self, tail: list[int], numbers: list[int]) -> None:
        shared = min(_common(self.last, tail), len(self.path) - 1)
        del self.path[shared + 1 :]
        for depth in range(len(self.path) - 1, len(tail) - 1):
            self.path.append(self.size)
            self.tokens.append(tail[depth])
            self.depths.append(len(self.head) + depth)
        answer = []
        for slot, target in zip(self.path, tail):
            known = self.targets.setdefault(slot, {})
            answer.append((slot, known.setdefault(target, len(known))))
        for number in numbers:
            self.answers[number] = answer
        self.last = tail

    def trie(self) -> Trie:
        n, size = len(self.head), self.size
        ends = np.full(size, size, np.int32)
        below: list[int] = []  # slots whose end is not known yet, in order of depth
        for i, depth in enumerate(self.depths):
            while below and self.depths[below[-1]] >= depth:
                ends[n + below.pop()] = n + i
            below.append(i)
        positions = np.concatenate([np.arange(n), np.asarray(self.depths, int)]).astype(np.int32)
        tokens = np.concatenate([self.head, np.asarray(self.tokens, int)]).astype(np.int32)
        return Trie(tokens, positions, ends, {s: list(known) for s, known in self.targets.items()}, self.answers)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    n = min(len(a), len(b))
    differs = np.asarray(a[:n]) != np.asarray(b[:n])
    return int(differs.argmax()) if differs.any() else n


class _Group(NamedTuple):
    """Tries whose first `shared` tokens are one prefix that is read separately; 0: no prefix."""

    shared: int
    tries: list[Trie]


def _grouped(tries: list[Trie], costs: Costs) -> list[_Group]:
    """Return the cheapest division of tries, sorted by context, into groups that share a prefix.

    Common beginnings of neighbours form a tree of ranges. From the leaves up, each range becomes one group or keeps the best
    division of its parts, whichever costs less.
    """
    if not tries:
        return []
    sizes = np.asarray([len(t.tokens) for t in tries], np.int64)
    heads = [int(next(iter(t.targets), 0)) for t in tries]
    alone = sizes * costs.slot(sizes)
    # Reading n tokens with a prefix of p costs (n − p)·(1 + n/D), so prefix sums over tries give the cost of any range.
    whole, each = (np.concatenate([[0], np.cumsum(x)]) for x in (sizes * costs.slot(0, sizes), costs.slot(0, sizes)))

    def together(begin: int, end: int, shared: int) -> float:
        return shared + GROUP + whole[end] - whole[begin] - shared * (each[end] - each[begin])

    class Range(NamedTuple):
        begin: int
        shared: int  # with the range before
        cost: float
        groups: list[tuple[int, int, int]]

    def merged(parts: list[Range], end: int, shared: int) -> Range:
        """Merge ranges that have `shared` tokens in common, or keep their groups if that is cheaper."""
        begin, cost = parts[0].begin, sum(part.cost for part in parts)
        whole_cost = together(begin, end, shared)
        if whole_cost < cost:
            return Range(begin, parts[0].shared, whole_cost, [(begin, end, shared)])
        return Range(begin, parts[0].shared, cost, [group for part in parts for group in part.groups])

    stack: list[Range] = []

    def close(end: int, shared: int) -> None:
        """Merge the ranges on the stack that share more than `shared` tokens with each other."""
        while len(stack) > 1 and stack[-1].shared > shared:
            common, first = stack[-1].shared, len(stack) - 1
            while first > 0 and stack[first].shared == common:
                first -= 1
            stack[first:] = [merged(stack[first:], end, common)]

    for i, trie in enumerate(tries):
        shared = 0
        if i:
            n = min(heads[i - 1], heads[i])  # a context's last token stays in its row: its output is scored
            shared = _common(tries[i - 1].tokens[:n], trie.tokens[:n])
        close(i, shared)
        stack.append(Range(i, shared, float(alone[i]), [(i, i + 1, 0)]))
    close(len(tries), 0)
    cost = sum(part.cost for part in stack)
    groups = [group for part in stack for group in part.groups]
    if alone.sum() - cost < costs.shape:
        return [_Group(0, tries)]
    single = [tries[begin] for begin, _, shared in groups if not shared]
    some = [_Group(0, single)] if single else []
    return some + [_Group(shared, tries[begin:end]) for begin, end, shared in groups if shared]


def _by_slots(groups: list[_Group], costs: Costs) -> list[tuple[int, list[_Group]]]:
    """Return groups by padded prefix size. Sizes are few enough that compiling each pays off."""
    by_slots = [(0, [g]) for g in groups if not g.shared]
    groups = sorted((g for g in groups if g.shared), key=lambda g: g.shared)
    lengths = [g.shared for g in groups]
    tokens = np.cumsum([0, *(sum(len(t.tokens) - g.shared for t in g.tries) for g in groups)])

    def cost(low: int, high: int) -> float:
        i, j = bisect.bisect_right(lengths, low), bisect.bisect_right(lengths, high)
        return (j - i) * high + (tokens[j] - tokens[i]) * costs.slot(SMALL, high) + 2 * costs.shape * (j > i)

    for low, high in _divided(lengths, lengths[-1] if lengths else 0, cost):
        by_slots.append((high, [g for g in groups if low < g.shared <= high]))
    return by_slots


def _add(result: PrefixPlan, P: int, groups: list[_Group], costs: Costs) -> None:
    """Add the waves and batches of groups whose prefixes take P slots to the plan."""
    sizes = sorted(len(t.tokens) - g.shared for g in groups for t in g.tries)
    total = np.cumsum([0, *sizes])

    def cost(low: int, high: int) -> float:
        """Return the cost of tries with more than `low` and at most `high` tokens in rows of `high`, packed to 95 %."""
        i, j = bisect.bisect_right(sizes, low), bisect.bisect_right(sizes, high)
        rows = max((total[j] - total[i]) / (0.95 * high), j - bisect.bisect_right(sizes, max(low, high // 2)))
        return rows * high * costs.slot(high, P) + costs.shape * (j > i)

    ranges = _divided(sizes, max(sizes[-1], costs.batch // 2), cost)
    at_once = max(costs.ways, min(costs.batch, costs.cache) // P) if P else len(groups)
    W = _multiple(_power(min(at_once, len(groups))), costs.ways) if P else 0
    waves = [groups[i : i + at_once] for i in range(0, len(groups), at_once)]
    by_range: list[list[tuple[int, list[Row]]]] = [[] for _ in ranges]
    for wave in waves:
        number = -1
        if P:
            number = len(result.waves)
            result.waves.append([g.tries[0].tokens[: g.shared] for g in wave])
        for (low, high), found in zip(ranges, by_range):
            rows = []
            for n, g in enumerate(wave):
                some = [_behind(t, g.shared) for t in g.tries if low < len(t.tokens) - g.shared <= high]
                rows += [Row(n if P else -1, tries) for tries in packed(some, high)]
            found.append((number, rows))
    batches = []
    for (_, T), found in zip(ranges, by_range):
        rows = [row for _, some in found for row in some]
        if not rows:
            continue
        room = min(costs.batch // T, costs.cache // (P + T) if P else costs.batch) // costs.ways * costs.ways
        B = _rows(max(len(some) for _, some in found), max(costs.ways, room), costs.ways)
        N = min(T, _multiple(max(sum(len(t.targets) for t in row.tries) for row in rows), 16))
        K = _power(max(len(ids) for row in rows for t in row.tries for ids in t.targets.values()))
        for number, some in found:
            batches += [Batch(B, T, P, N, K, W, number, some[i : i + B]) for i in range(0, len(some), B)]
    result.batches.extend(sorted(batches, key=lambda batch: batch.wave))  # so that only one wave's states are held at a time


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


def _divided(lengths: list[int], most: int, cost: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """Return ranges (low, high] that hold all sorted `lengths` at the least total cost; `high` is a step of a ladder."""
    if not lengths:
        return []
    steps = [0, SMALL]
    while steps[-1] < max(most, lengths[-1]):
        steps.append(steps[-1] + max(SMALL // 2, 1 << (steps[-1].bit_length() - 4)))
    best: list[tuple[float, int]] = [(0.0, 0)]  # for all lengths up to a step: the cost, and the previous step
    for j in range(1, len(steps)):
        best.append(min((best[i][0] + cost(steps[i], steps[j]), i) for i in range(j)))
    first = bisect.bisect_left(steps, lengths[-1])
    j = min(range(first, len(steps)), key=lambda j: best[j][0])
    ranges = []
    while j:
        i = best[j][1]
        if bisect.bisect_right(lengths, steps[j]) > bisect.bisect_right(lengths, steps[i]):
            ranges.append((steps[i], steps[j]))
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
