"""The spans of a text at whose ends the student's and the teacher's tokens both end, as index arrays for the compiled step.

    student   | pos | ition | s of | a
    teacher   | positions   |  of  |  a      ->   spans: "positions", " of", …

GOLD (Patiño et al. 2025, "Unlocking On-Policy Distillation for Any Model Family"; TRL, trl/experimental/gold) aligns both
tokenizations by byte offsets in this way, and so do we, on the host, for each segment of each row.

Letters: B rows, T the student's tokens of a row, U the teacher's.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data.text.tokenizer import Tokenizer
from lm.align.cross.vocabulary import counterparts, spellings

ROOM, STEP = 1.15, 64  # the teacher's rows have this much more room than the rows that were measured; a multiple of STEP
Batch = dict[str, np.ndarray]


class Tokens(NamedTuple):
    """Tokens of a text: ids, the offset at which each ends, and whether it ends there, and not inside a character."""

    ids: np.ndarray
    ends: np.ndarray
    ends_whole: np.ndarray


class Aligner:
    """Adds to a batch of the student's tokens the teacher's tokens of the same texts, and the spans of both.

    measured: ids of texts of the student, by which the length of the teacher's rows is chosen. most: its limit, or None.
    """

    def __init__(self, student: Tokenizer, teacher: Tokenizer, measured: Iterable[Sequence[int]], most: int | None = None):
        self._teacher, self._most = teacher, most
        self._texts, self._symbols = spellings(student), counterparts(student, teacher)
        if student.bos_id is not None:
            self._texts[student.bos_id] = b""  # a teacher without a begin symbol reads none
        self._ratio = 1.0
        lengths = [(len(ids), len(self.translated(ids)[1].ids)) for ids in measured]
        if ours := sum(length for length, _ in lengths):
            self._ratio = sum(length for _, length in lengths) / ours

    def width(self, T: int) -> int:
        """Return U for rows of T tokens."""
        U = -(-int(T * self._ratio * ROOM + 1) // STEP) * STEP
        return U if self._most is None else min(U, self._most)

    def translated(self, ids: Sequence[int]) -> tuple[np.ndarray, Tokens]:
        """Return the offset at which each token of a text ends, int64 [n], and the teacher's tokens of the text.

        An offset counts bytes, and 1 for a control symbol that the teacher has too. Text never becomes a control symbol.
        """
        ours, theirs, at = [np.zeros(0, np.int64)], [Tokens(*np.zeros((3, 0), np.int64))], 0
        for is_symbol, part in itertools.groupby(ids, self._symbols.__contains__):
            if is_symbol:
                symbols = np.asarray([self._symbols[i] for i in part])
                ends = at + 1 + np.arange(len(symbols))
                theirs.append(Tokens(symbols, ends, np.ones(len(symbols))))
            else:
                texts = [self._texts[i] for i in part]
                ends = at + np.cumsum([len(text) for text in texts])
                tokens = encoded(self._teacher, b"".join(texts))
                theirs.append(tokens._replace(ends=at + tokens.ends))
            ours.append(ends)
            at = int(ends[-1])
        return np.concatenate(ours), Tokens(*map(np.concatenate, zip(*theirs)))

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with its spans. A span counts if all its tokens are trained and the teacher's row has room for it.

        Added, by the place that predicts the first token of a span, [B, T]:
            span_weights: float32, the span's number of the student's tokens; 0 where none begins.
            teacher_places: int32, the place in the teacher's row that predicts its first token.
        By the place that predicts a further token of a span, int32:
            span_ids [B, T], teacher_span_ids [B, U]: the place of the span's first token in the student's row; else T.
        teacher_tokens, teacher_targets, teacher_segment_ids, teacher_positions: the teacher's rows, int32 [B, U].
        """
        B, T = batch["tokens"].shape
        U = self.width(T)
        new = {f"teacher_{name}": np.zeros((B, U), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
        new |= {"teacher_places": np.zeros((B, T), np.int32), "span_weights": np.zeros((B, T), np.float32)}
        new |= {"span_ids": np.full((B, T), T, np.int32), "teacher_span_ids": np.full((B, U), T, np.int32)}
        for b, segments in enumerate(batch["segment_ids"]):
            begins = np.flatnonzero(np.diff(segments, prepend=0))
            room = 0
            for begin, end in zip(begins, [*begins[1:], T]):
                if segments[begin] and room < U:
                    room += self._add(batch, {name: array[b] for name, array in new.items()}, b, (begin, end), room)
        return batch | new

    def _add(self, batch: Batch, row: Batch, b: int, place: tuple[int, int], at: int) -> int:
        """Fill in a segment whose place in the row is [begin, end), for the teacher from `at`. Return its teacher's tokens."""
        begin, end = place
        weights = np.concatenate([[0.0], batch["weights"][b, begin:end]])  # by token: the first one is not predicted
        ids = np.concatenate([batch["tokens"][b, begin:end], batch["targets"][b, end - 1 : end]])
        if not weights[-1]:  # the last target is of another segment, or none
            weights, ids = weights[:-1], ids[:-1]
        ours, theirs = self.translated(ids.tolist())
        m, U = len(theirs.ids), len(row["teacher_tokens"])
        here = slice(at, min(at + m, U))
        room = here.stop - at
        row["teacher_tokens"][here], row["teacher_positions"][here] = theirs.ids[:room], np.arange(room)
        row["teacher_segment_ids"][here] = row["teacher_segment_ids"].max() + 1
        targets = theirs.ids[1 : 1 + room]
        row["teacher_targets"][at : at + len(targets)] = targets

        common = np.intersect1d(ours, theirs.ends[theirs.ends_whole > 0])
        spans = np.arange(len(common))
        of_ours, of_theirs = np.searchsorted(common, ours), np.searchsorted(common, theirs.ends)
        first, their_first = np.searchsorted(of_ours, spans), np.searchsorted(of_theirs, spans)
        inside = of_ours < len(common)
        counted = np.bincount(of_ours[inside], minlength=len(common))
        trained = np.bincount(of_ours[inside], weights[inside] > 0, minlength=len(common))
        last = np.searchsorted(of_theirs, spans, side="right") - 1
        good = (trained == counted) & (their_first >= 1) & (at + last <= U)
        where = np.where(good, begin + first - 1, len(row["span_ids"]))
        row["span_weights"][where[good]] = trained[good]
        row["teacher_places"][where[good]] = at + their_first[good] - 1
        for ids_, of, firsts, shift in (
            (row["span_ids"], of_ours, first, begin),
            (row["teacher_span_ids"], of_theirs, their_first, at),
        ):
            later = np.flatnonzero(of < len(common))
            later = later[(later > firsts[of[later]]) & good[of[later]]]
            ids_[shift + later - 1] = where[of[later]]
        return m


def encoded(tokenizer: Tokenizer, raw: bytes) -> Tokens:
    """Return the tokens of a text of any bytes, and the byte at which each ends.

    Offsets are exact where the tokenizer gives the bytes back. Elsewhere they are those of whole characters: it normalises, or
    the bytes are not UTF-8, as after a cut inside a character. Then a byte that is no part of a character is read as U+FFFD.
    """
    text = raw.decode("utf-8", "surrogateescape")
    ids, spans = tokenizer.encode_spans(text)
    tokens = np.asarray(ids, np.int64)
    if tokenizer.decode_bytes(ids) == raw:
        return Tokens(tokens, np.cumsum(tokenizer.bytes_per_token[tokens]), np.ones(len(ids)))
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    widths[(codes >= 0xDC80) & (codes <= 0xDCFF)] = 1  # bytes that are no part of a character
    offsets = np.concatenate([[0], np.cumsum(widths)])
    begins, ends = np.asarray(spans, np.int64).reshape(-1, 2).T
    return Tokens(tokens, offsets[ends], np.append(ends[:-1] <= begins[1:], True)[: len(ids)])
