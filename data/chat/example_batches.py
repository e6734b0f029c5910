"""Batches of encoded examples as a pure function of (seed, step); data/text/batches.py does the same for text.

Letters: B examples in a batch, T tokens in a sequence, S tokens in a column (see data/chat/example_files.py).
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.text.batches import NO_ROW, Batches, shuffled

KINDS = ("conversation", "pair", "labelled", "steps")
SCALARS = {"margin", "desirable"}  # one number per example


class Sides(NamedTuple):
    """The tokens of a pair's two sequences, int [N], and which of them are trained, bool [N].

    Both become one row with the prompt once; the answers do not see one another:

        prompt without its last token | that token, chosen answer | that token, rejected answer | padding

    The prompt's last token stands at the head of both answers, because it predicts their first tokens. So a prompt is computed
    once instead of twice (prefix sharing, Wang & Hegde 2024, arXiv 2410.20305). Two rows of T tokens become one of at most 2·T.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_trained: np.ndarray
    rejected_trained: np.ndarray

    def shared(self) -> int:
        """Return the number of tokens that are stored once: the common prefix before any answer, without its last token."""
        untrained = min(int(np.argmax(trained)) for trained in self[2:])
        differ = np.flatnonzero(self.chosen[:untrained] != self.rejected[:untrained])
        return max(0, (int(differ[0]) if len(differ) else untrained) - 1)

    def length(self) -> int:
        """Return the number of tokens of the row."""
        return len(self.chosen) + len(self.rejected) - self.shared()


def joined_pairs(pairs: Sequence[Sides | None], length: int) -> dict[str, np.ndarray]:
    """Return a batch of rows of `length` tokens; None gives an empty row.

    `tokens`, `targets`, `segment_ids` (1; 0 is padding), `positions` (from 0 in each sequence), `ends` (the slot before which
    queries see the token: see lm.kernels.attention.Branches) and `rejected` (1 in the rejected answer) are int32 [B, length];
    `weights` float32 [B, length], 1 at the targets of the answers.
    """
    B = len(pairs)
    names = ("tokens", "targets", "segment_ids", "positions", "ends", "rejected")
    batch = {name: np.zeros((B, length), np.int32) for name in names} | {"weights": np.zeros((B, length), np.float32)}
    for b, pair in enumerate(pairs):
        if pair is None:
            continue
        shared, middle, end = pair.shared(), len(pair.chosen), pair.length()
        sides = ((slice(shared, middle), *pair[::2]), (slice(middle, end), *pair[1::2]))
        batch["tokens"][b, :shared], batch["positions"][b, :shared] = pair.chosen[:shared], np.arange(shared)
        for here, tokens, trained in sides:
            targets = slice(here.start, here.stop - 1)
            batch["tokens"][b, here], batch["positions"][b, here] = tokens[shared:], np.arange(shared, len(tokens))
            batch["targets"][b, targets], batch["weights"][b, targets] = tokens[shared + 1 :], trained[shared + 1 :]
        batch["segment_ids"][b, :end] = 1
        batch["rejected"][b, middle:end] = 1
        batch["ends"][b] = length
        batch["ends"][b, shared:middle] = middle
    return batch


class ExampleBatches(Batches):
    """The batches of one split of `data.chat.examples.prepare_examples`. Immutable; threads may share it.

    With `shuffle` the stream is endless and reads every example once per epoch. Without, examples keep their order, and the
    last batch is padded with examples of weight 0 and id -1.

    Args:
        columns: the columns of a split, from `prepare_examples`.
        kind: one of KINDS.
        batch_size: B, over all hosts.
        seed: of the shuffle, at least 0.
        lengths: those that the rows of a whole batch may have, the longest is T of the prepared examples, or 2·T with `joined`.
            Each batch gets the shortest one that holds its longest example, so less of it is padding. Every length is one more
            program to compile.
        joined: store a pair as one row with the prompt once, of at most 2·T tokens (`Sides`).
        media: gives the arrays of the images and audio of rows, for a batch (data/chat/media/rows.py); None: text only.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        *,
        kind: str,
        lengths: Sequence[int],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        joined: bool = False,
        media: Callable[[Sequence[int]], dict[str, np.ndarray]] | None = None,
    ):
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
        num_rows = len(columns["ends"])
        order = shuffled(num_rows, seed) if shuffle else np.arange(num_rows)
        super().__init__(order, num_rows, batch_size, shuffle)
        self.kind = kind
        self._joined = joined and kind == "pair"
        self._media = media
        self._more: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
        self._lengths = sorted(lengths)
        self._columns, self._ends = columns, np.asarray(columns["ends"])
        self._begins = np.concatenate([[0], self._ends.reshape(-1)[:-1]]).reshape(self._ends.shape)

    def batch(self, n: int, rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Read batch n, or its examples [b] selected by `rows`.

        Returns `tokens`, `targets`, `segment_ids` (from 1; 0 is padding), `positions` (from 0 in each segment), int32, and
        `weights`, float32, each [b, T], or [b, 2, T] for the kinds pair and labelled; and `ids`, int64 [b], see
        `global_row_ids`. T is one of the `lengths`, the same one for every choice of `rows`.
            conversation: weight 1 if an assistant wrote the target; with media, also `images` and `audio`.
            pair: row 0 is prompt and chosen answer, row 1 prompt and rejected answer; weight 1 at the targets of the answers;
                `margin` float32 [b]. With `joined` see `joined_pairs`.
            labelled: row 0 is prompt and own answer, row 1 the same prompt and the answer of the previous example in the
                batch. So rows 1 hold the same answers as rows 0, with other prompts; `desirable` float32 [b].
            steps: weight 1 at the last token of each step; `labels` float32 [b, T], 1 if that step is right.
        """
        every = self.global_row_ids(n)
        chosen = range(len(every)) if rows is None else rows
        batch = (self._pairs if self._joined else self._rows)(every, chosen)
        ids = every[chosen]
        for name in SCALARS & self._columns.keys():
            batch[name] = np.where(ids == NO_ROW, 0, self._columns[name][ids]).astype(np.float32)
        batch |= (self._media(ids) if self._media else {}) | {"ids": ids}
        return self._more(batch) if self._more else batch

    def with_arrays(self, more: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> "ExampleBatches":
        """Return these batches with more arrays: more(batch) is a batch with them, each of its rows from that row alone."""
        other = copy.copy(self)
        other._more = more
        return other

    def pair(self, id: int) -> Sides | None:
        """Return an example of kind pair; None for NO_ROW."""
        if id == NO_ROW:
            return None
        places = [slice(*ends) for ends in zip(self._begins[id], self._ends[id])]
        return Sides(*(self._columns[name][here] for name in ("tokens", "trained") for here in places))

    def _pairs(self, every: np.ndarray, chosen: Sequence[int]) -> dict[str, np.ndarray]:
        pairs = [self.pair(id) for id in every]
        return joined_pairs([pairs[place] for place in chosen], self._length(pair.length() for pair in pairs if pair))

    def _length(self, lengths: Iterable[int]) -> int:
        longest = max(lengths, default=0)
        return next((length for length in self._lengths if length >= longest), self._lengths[-1])

    def _rows(self, every: np.ndarray, chosen: Sequence[int]) -> dict[str, np.ndarray]:
        if self.kind == "pair":
            parts = [[[(i, half)] for half in (0, 1)] for i in every]
        elif self.kind == "labelled":
            parts = [[[(i, 0), (answer, 1)] for answer in (i, other)] for i, other in zip(every, self._others(every))]
        else:
            parts = [[[(i,)]] for i in every]
        T = self._length(sum(map(self._tokens, row)) for example in parts for row in example)
        batch = self._filled([row for place in chosen for row in parts[place]], T)
        if self._ends.ndim == 2:
            return {name: array.reshape(len(chosen), 2, -1) for name, array in batch.items()}
        return batch

    def _tokens(self, place: tuple[int, ...]) -> int:
        return 0 if place[0] == NO_ROW else int(self._ends[place] - self._begins[place])

    def _others(self, ids: np.ndarray) -> np.ndarray:
        """Return for each example the previous one in the batch (cyclic). A single example gets any other example."""
        real = ids[ids != NO_ROW]
        others = np.roll(real, 1) if len(real) > 1 else (real + 1) % self.num_rows
        return np.concatenate([others, ids[len(real) :]])

    def _filled(self, parts: Sequence[Sequence[tuple[int, ...]]], T: int) -> dict[str, np.ndarray]:
        """Build rows: each concatenates the parts at the given indices of `ends`; NO_ROW gives an empty row."""
        packed, width = self.kind == "conversation", T + 1
        tokens, segments = np.zeros((len(parts), width), np.int32), np.zeros((len(parts), width), np.int32)
        trained, labels = np.zeros((len(parts), width), np.float32), np.zeros((len(parts), width), np.float32)
        for row, places in enumerate(parts):
            at = 0
            for place in places:
                if place[0] == NO_ROW:
                    continue
                begin = self._begins[place]
                end = min(self._ends[place], begin + T + packed - at)
                here = slice(at, at + end - begin)
                tokens[row, here], trained[row, here] = self._columns["tokens"][begin:end], self._columns["trained"][begin:end]
                segments[row, here] = self._columns["segments"][begin:end] if packed else 1
                if self.kind == "steps":
                    labels[row, here] = self._columns["labels"][begin:end]
                at = here.stop
        batch = {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "segment_ids": segments[:, :-1],
            "positions": positions(segments)[:, :-1],
            "weights": trained[:, 1:],
        }
        return batch | {"weights": trained[:, :-1], "labels": labels[:, :-1]} if self.kind == "steps" else batch


def positions(segments_BT: np.ndarray) -> np.ndarray:
    """Return int32 [B, T]: positions within each segment, from 0; 0 in padding."""
    place = np.broadcast_to(np.arange(segments_BT.shape[1], dtype=np.int32), segments_BT.shape)
    new = np.ones(segments_BT.shape, bool)
    new[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return (place - np.maximum.accumulate(np.where(new, place, 0), axis=1)) * (segments_BT > 0)
