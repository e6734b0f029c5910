"""Packing loses nothing, keeps the counts, and fills rows as well as the naive best fit does."""

import numpy as np
import pytest

from data.text.batches import layout
from data.text.packing import Counts, Packer, best_fit, pieces, row_dtype

BOS, EOS, PAD = 2, 1, 0


def pack(documents, counts, **options):
    packer = Packer(counts, **options)
    for document in documents:
        yield from packer.add(document)
    yield from packer.finish()


def documents(count, longest, seed=0):
    """Random documents whose first two tokens spell their number, so that they can be told apart."""
    random = np.random.default_rng(seed)
    for i in range(count):
        n = int(random.integers(0, longest))
        yield np.concatenate([[10 + i // 1000, 10 + i % 1000], random.integers(2000, 9000, n)])


def laid_out(row):
    """A row's tokens, segment ids and positions."""
    ids, positions = layout(row["joined"][None], len(row["tokens"]))
    return row["tokens"], ids[0], positions[0]


def segments(rows):
    """Every segment of the rows as a list of tokens; checks numbering, positions and padding on the way."""
    for row in rows:
        tokens, ids, positions = laid_out(row)
        used = int((ids > 0).sum())
        assert used and (np.diff(ids[:used]) >= 0).all()
        assert (ids[used:] == 0).all() and (tokens[used:] == PAD).all()
        assert set(ids[:used]) == set(range(1, ids.max() + 1))
        for segment in range(1, ids.max() + 1):
            where = ids == segment
            assert positions[where].tolist() == list(range(where.sum()))
            assert where.sum() >= 2
            yield tokens[where].tolist()


def reassemble(rows):
    """The documents in the rows, as a multiset: heads are followed by the piece that starts with their last token."""
    heads, tails = [], {}
    for segment in segments(rows):
        if segment[0] == BOS:
            heads.append(segment)
        else:
            tails.setdefault(segment[0], []).append(segment)
    whole = []
    for head in heads:
        while head[-1] != EOS:
            head = head + tails[head[-1]].pop()[1:]
        whole.append(tuple(head[1:-1]))
    assert not any(tails.values())
    return sorted(whole)


@pytest.mark.parametrize("length, longest, buffer", [(1, 5, 1), (2, 9, 50), (7, 30, 64), (64, 60, 4000), (256, 200, 1 << 20)])
def test_every_target_is_packed_exactly_once(length, longest, buffer):
    given = list(documents(400, longest))
    counts = Counts()
    rows = list(
        pack(given, counts, sequence_length=length, vocab_size=9000, bos_id=BOS, eos_id=EOS, pad_id=PAD, buffer_tokens=buffer)
    )
    found = list(segments(rows))
    assert counts.documents == len(given) and counts.rows == len(rows)
    assert counts.tokens_in == counts.tokens_packed == sum(len(d) + 1 for d in given) == sum(len(s) - 1 for s in found)
    assert counts.tokens_padded == sum(int((laid_out(row)[1] == 0).sum()) for row in rows)
    targets = sorted(token for segment in found for token in segment[1:])
    assert targets == sorted([int(token) for d in given for token in d] + [EOS] * len(given))


def test_no_document_is_lost():
    # Tokens that are unique over the corpus, so that the cut pieces join in one way only.
    random = np.random.default_rng(0)
    fresh = iter(random.permutation(np.arange(10, 60_000)))
    given = [np.asarray([next(fresh) for _ in range(n)], np.int64) for n in random.integers(0, 300, 150)]
    rows = list(
        pack(given, Counts(), sequence_length=32, vocab_size=60_000, bos_id=BOS, eos_id=EOS, pad_id=PAD, buffer_tokens=500)
    )
    assert reassemble(rows) == sorted(tuple(map(int, d)) for d in given)


def test_pieces_overlap_by_one_and_short_documents_stay_whole():
    assert [p.tolist() for p in pieces(np.arange(10, 13), 5, BOS, EOS)] == [[2, 10, 11, 12, 1]]
    assert [p.tolist() for p in pieces(np.arange(10, 14), 5, BOS, EOS)] == [[2, 10, 11, 12, 13], [13, 1]]
    assert [p.tolist() for p in pieces(np.arange(0), 2, BOS, EOS)] == [[2, 1]]
    assert [p.tolist() for p in pieces(np.asarray([7]), 2, BOS, EOS)] == [[2, 7], [7, 1]]


def naive_best_fit(items, width):
    """The slow twin: look at every bin."""
    bins = []
    for item in sorted(items, key=len, reverse=True):
        fitting = [b for b in bins if sum(map(len, b)) + len(item) <= width]
        if fitting:
            max(fitting, key=lambda b: sum(map(len, b))).append(item)
        else:
            bins.append([item])
    return bins


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_is_as_tight_as_its_slow_twin(seed):
    random = np.random.default_rng(seed)
    width = int(random.integers(2, 100))
    items = [np.zeros(n, np.int32) for n in random.integers(2, width + 1, random.integers(0, 300))]
    fast, slow = best_fit(items, width), naive_best_fit(items, width)
    assert sorted(sum(map(len, b)) for b in fast) == sorted(sum(map(len, b)) for b in slow)
    assert sorted(len(i) for b in fast for i in b) == sorted(map(len, items))


def test_rows_are_full_and_the_buffer_is_bounded():
    random = np.random.default_rng(0)
    held = peak = 0

    def stream():
        nonlocal held, peak
        for n in random.integers(1, 500, 3000):
            held += n + 2
            peak = max(peak, held)
            yield np.full(n, 5)

    counts = Counts()
    for row in pack(
        stream(), counts, sequence_length=256, vocab_size=100, bos_id=BOS, eos_id=EOS, pad_id=PAD, buffer_tokens=50_000
    ):
        held -= int((laid_out(row)[1] > 0).sum())
    assert counts.tokens_padded / (counts.rows * 257) < 0.015
    assert peak < 2 * 50_000


def test_documents_that_cannot_share_a_row_do_not_pile_up():
    given = [np.full(150, 5)] * 1000
    seen = 0

    def stream():
        for i, document in enumerate(given):
            assert i - seen <= 100 * 2
            yield document

    for _ in pack(
        stream(), Counts(), sequence_length=256, vocab_size=100, bos_id=BOS, eos_id=EOS, pad_id=PAD, buffer_tokens=15_000
    ):
        seen += 1
    assert seen == 1000


def test_the_same_documents_give_the_same_rows():
    def rows():
        return list(
            pack(
                documents(300, 90),
                Counts(),
                sequence_length=64,
                vocab_size=9000,
                bos_id=BOS,
                eos_id=EOS,
                pad_id=PAD,
                buffer_tokens=2000,
            )
        )

    assert all(a.tobytes() == b.tobytes() for a, b in zip(rows(), rows(), strict=True))


@pytest.mark.parametrize("width", [2, 7, 8, 9, 33, 200])
def test_the_layout_follows_from_a_bit_a_token(width):
    """Against the slow twin, which writes segments and positions piece by piece."""
    random = np.random.default_rng(width)
    bits, segment_ids, positions = [], [], []
    for _ in range(50):
        ids, place, continues, segment = [], [], [], 0
        while width - len(ids) >= 2 and random.random() < 0.9:
            n, segment = int(random.integers(2, width - len(ids) + 1)), segment + 1
            ids, place, continues = ids + [segment] * n, place + list(range(n)), continues + [0] + [1] * (n - 1)
        rest = [0] * (width - len(ids))
        segment_ids, positions = [*segment_ids, ids + rest], [*positions, place + rest]
        bits.append(np.packbits(np.asarray(continues + rest, bool), bitorder="little"))
    found = layout(np.stack(bits), width)
    assert [array.dtype for array in found] == [np.int32, np.int32]
    assert found[0].tolist() == segment_ids and found[1].tolist() == positions


def test_dtypes_follow_the_vocabulary_and_the_length():
    assert row_dtype(256, 1 << 16)["tokens"].base == np.uint16
    assert row_dtype(256, (1 << 16) + 1)["tokens"].base == np.uint32
    assert row_dtype(256, 100).itemsize == 257 * 2 + 33 and row_dtype(7, 1 << 17).itemsize == 8 * 4 + 1
    with pytest.raises(ValueError, match="sequence_length"):
        next(pack([], Counts(), sequence_length=0, vocab_size=10, bos_id=BOS, eos_id=EOS, pad_id=PAD))
