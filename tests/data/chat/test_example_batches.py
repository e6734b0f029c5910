"""Batches of examples are a pure function of (seed, step), and each kind's arrays are what the losses count on."""

import functools

import numpy as np
import pytest

from data.chat.example_batches import KINDS, ExampleBatches, positions
from data.text.batches import NO_ROW, read_ahead

T = 12
COUNT = 23


def columns(kind, seed=0):
    """COUNT rows as data/chat/examples.py leaves them on disk; the first token of each sequence tells them apart."""
    draw = np.random.default_rng(seed)
    halves = {"pair": 2, "labelled": 2}.get(kind, 1)
    slots = T + (kind == "conversation")
    tokens, trained, segments, labels, ends = [], [], [], [], []
    for row in range(COUNT):
        prompt = int(draw.integers(1, 5))
        for half in range(halves):
            length = prompt if (kind, half) == ("labelled", 0) else int(draw.integers(2, slots - prompt + 1))
            tokens += [100 * half + row + 1, *draw.integers(300, 400, length - 1)]
            asked, answered = ((kind, half) == ("labelled", n) for n in (0, 1))
            part = (draw.random(length) < 0.5) & (not asked)
            part[0], part[-1] = answered, not asked
            trained += part.tolist()
            labels += (part & (draw.random(length) < 0.5)).tolist()
            cut = int(draw.integers(1, length)) if kind == "conversation" else length
            segments += [1] * cut + [2] * (length - cut)
            if kind == "conversation":
                trained[len(trained) - length + cut] = False  # nothing stands before a segment's first token
            ends.append(len(tokens))
    made = {"tokens": np.asarray(tokens, np.uint16), "trained": np.asarray(trained), "ends": np.asarray(ends, np.int64)}
    if halves == 2:
        made["ends"] = made["ends"].reshape(-1, 2)
    made |= {
        "conversation": {"segments": np.asarray(segments, np.uint16)},
        "steps": {"labels": np.asarray(labels)},
        "pair": {"margin": np.arange(COUNT, dtype=np.float32)},
        "labelled": {"desirable": np.float32(np.arange(COUNT) % 3 > 0)},
    }[kind]
    return made


def batches(kind, batch_size=4, lengths=(T,), **options):
    return ExampleBatches(columns(kind), kind=kind, lengths=lengths, batch_size=batch_size, **options)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def sequence(made, place):
    """Lists of one sequence's tokens, trained and the rest: the slow twin's reading."""
    ends = [0, *made["ends"].reshape(-1).tolist()]
    begin, end = ends[place], ends[place + 1]
    return {name: array[begin:end].tolist() for name, array in made.items() if array.shape == made["tokens"].shape}


def expected(kind, made, ids):
    """The slow twin: a batch of examples `ids`, a list a row, one token at a time."""
    rows = []
    for n, i in enumerate(ids):
        if kind == "labelled":
            prompt = sequence(made, 2 * i)
            for j in (i, ids[n - 1]):
                answer = sequence(made, 2 * j + 1)
                rows.append({name: (prompt[name] + answer[name])[:T] for name in prompt})
        else:
            halves = 2 if kind == "pair" else 1
            rows += [sequence(made, halves * i + half) for half in range(halves)]
    out = {name: np.zeros((len(rows), T)) for name in ("tokens", "targets", "segment_ids", "positions", "weights", "labels")}
    for r, row in enumerate(rows):
        segments = row.get("segments", [1] * len(row["tokens"]))
        for t in range(min(T, len(segments))):
            out["tokens"][r, t], out["segment_ids"][r, t] = row["tokens"][t], segments[t]
            out["positions"][r, t] = t - segments.index(segments[t])
            if t + 1 < len(segments):
                out["targets"][r, t], out["weights"][r, t] = row["tokens"][t + 1], row["trained"][t + 1]
            if kind == "steps":
                out["weights"][r, t], out["labels"][r, t] = row["trained"][t], row["labels"][t]
    return {name: array.reshape(len(ids), 2, T) if kind in ("pair", "labelled") else array for name, array in out.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_the_slow_twin_makes(kind):
    made, stream = columns(kind), batches(kind, batch_size=5, seed=3)
    for n in range(8):
        batch = stream.batch(n)
        for name, array in expected(kind, made, batch["ids"].tolist()).items():
            if name != "labels" or kind == "steps":
                np.testing.assert_array_equal(batch[name], array, err_msg=name)
    scalars = {"pair": {"margin"}, "labelled": {"desirable"}, "steps": {"labels"}}.get(kind, set())
    assert batch.keys() == {"tokens", "targets", "segment_ids", "positions", "weights", "ids"} | scalars
    floats = {"weights"} | scalars
    assert {name: array.dtype for name, array in batch.items() if name != "ids"} == {
        name: np.float32 if name in floats else np.int32 for name in batch if name != "ids"
    }
    for name in scalars & {"margin", "desirable"}:
        np.testing.assert_array_equal(batch[name], made[name][batch["ids"]])


def test_the_other_answers_of_a_batch_are_its_own_ones_after_other_prompts():
    made, stream = columns("labelled"), batches("labelled", batch_size=6)
    for n in range(6):
        batch = stream.batch(n)
        begins = {half: [sequence(made, 2 * i + half)["tokens"] for i in batch["ids"]] for half in (0, 1)}
        for r, prompt in enumerate(begins[0]):
            assert batch["tokens"][r, :, : len(prompt)].tolist() == [prompt, prompt]
        answers = batch["tokens"][np.arange(6)[:, None], [0, 1], [[len(p)] for p in begins[0]]]
        assert sorted(answers[:, 0]) == sorted(answers[:, 1]) and (answers[:, 0] != answers[:, 1]).all()
    alone = batches("labelled", batch_size=1).batch(0)
    assert (alone["tokens"][0, 0] != alone["tokens"][0, 1]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_reads_the_same_batches(kind, shuffle, hosts):
    whole, share = batches(kind, batch_size=8, shuffle=shuffle), 8 // hosts
    readers = [read_ahead(functools.partial(whole.batch, rows=range(at, at + share)), 1, 3) for at in range(0, 8, share)]
    for n in range(1, 3):
        parts = [next(reader) for reader in readers]
        same(whole.batch(n), {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    picked = whole.batch(2, [6, 1, 1])
    same({name: array[[6, 1, 1]] for name, array in whole.batch(2).items()}, picked)


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_in_the_midst_of_an_epoch_needs_no_replay(kind):
    stream = batches(kind, seed=5)
    first = read_ahead(stream.batch, 7)
    for _ in range(3):
        next(first)
    after = [next(first) for _ in range(3)]
    resumed = read_ahead(batches(kind, seed=5).batch, 10, prefetch=0)
    for n, batch in enumerate(after, start=10):
        same(batch, next(resumed))
        same(batch, stream.batch(n))
    first.close()


def test_an_epoch_is_every_example_once_and_the_seed_decides():
    ids = [np.concatenate([batches("pair", 1, seed=seed).global_row_ids(n) for n in range(2 * COUNT)]) for seed in (0, 0, 1)]
    assert ids[0].tolist() == ids[1].tolist() != ids[2].tolist()
    for epoch in ids[0].reshape(2, COUNT):
        assert sorted(epoch) == list(range(COUNT))
    assert ids[0][:COUNT].tolist() != ids[0][COUNT:].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_one_pass_in_order_filled_up_with_nothing(kind):
    stream = batches(kind, shuffle=False)
    read = list(read_ahead(stream.batch, stop=stream.num_batches))
    assert len(read) == stream.num_batches == 6 and stream.num_rows == COUNT
    ids = np.concatenate([batch["ids"] for batch in read])
    assert ids[:COUNT].tolist() == list(range(COUNT)) and (ids[COUNT:] == NO_ROW).all()
    for batch in read:
        filling = batch["ids"] == NO_ROW
        for name, array in batch.items():
            assert name == "ids" or not array[filling].any()
        if kind != "conversation":
            assert batch["weights"][~filling].reshape(-1, T).any(axis=1).all()
    with pytest.raises(IndexError, match="no batch"):
        stream.batch(6)


def test_positions_begin_anew_in_each_segment():
    segments = np.array([[1, 1, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], [0] * 8])
    assert positions(segments).tolist() == [[0, 1, 0, 1, 2, 0, 0, 0], list(range(8)), [0] * 8]


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="kind must be one of"):
        ExampleBatches(columns("pair"), kind="pairs", lengths=[T], batch_size=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_short_examples_has_shorter_rows(kind):
    whole, short = batches(kind, batch_size=2, seed=1), batches(kind, batch_size=2, seed=1, lengths=(8, 10, 6, T))
    seen = set()
    for n in range(2 * COUNT):
        batch, expected = short.batch(n), whole.batch(n)
        width = batch["tokens"].shape[-1]
        longest = int(np.max(np.nonzero(expected["segment_ids"])[-1])) + 1
        assert width == min(length for length in (6, 8, 10, T) if length >= longest)
        assert short.batch(n, [1])["tokens"].shape[-1] == width  # of whichever rows a host reads
        same(batch, {name: x[..., :width] if x.ndim > 1 else x for name, x in expected.items()})
        seen.add(width)
    assert len(seen) > 1


def pairs_of_one_prompt():
    """Pairs whose sides share 0 to 4 tokens and then, in some of them, the beginning of the answers."""
    draw, made = np.random.default_rng(5), {"tokens": [], "trained": [], "ends": [], "margin": np.ones(COUNT, np.float32)}
    for row in range(COUNT):
        prompt, same = draw.integers(300, 400, row % 5), draw.integers(300, 400, row % 2)
        for _ in range(2):
            answer = np.concatenate([same, draw.integers(400, 500, int(draw.integers(2, 6)))])
            made["tokens"] += [*prompt, *answer]
            trained = np.r_[np.zeros(len(prompt), bool), draw.random(len(answer)) < 0.7]
            trained[-1], trained[0] = True, False  # nothing stands before the first token
            made["trained"] += trained.tolist()
            made["ends"].append(len(made["tokens"]))
    return {name: np.asarray(x).reshape(-1, 2) if name == "ends" else np.asarray(x) for name, x in made.items()}


def test_a_joined_pair_holds_both_sequences_and_their_prompt_once():
    made = pairs_of_one_prompt()
    plain, joined = (
        ExampleBatches(made, kind="pair", lengths=[T * (1 + joined)], batch_size=5, shuffle=False, joined=joined)
        for joined in (False, True)
    )
    saved = 0
    for n in range(joined.num_batches):
        batch, expected = joined.batch(n), plain.batch(n)
        same({name: batch[name] for name in ("ids", "margin")}, {name: expected[name] for name in ("ids", "margin")})
        assert batch["tokens"].shape == (5, 2 * T)
        same(joined.batch(n, [3, 1]), {name: x[[3, 1]] for name, x in batch.items()})
        for b in range(5):
            filled, rejected = batch["segment_ids"][b] == 1, batch["rejected"][b] == 1
            assert not batch["weights"][b, ~filled].any() and (batch["ids"][b] != NO_ROW) == filled.any()
            for side in (0, 1):
                whole = {
                    name: x[b, side, : np.sum(expected["segment_ids"][b, side])] for name, x in expected.items() if x.ndim == 3
                }
                own = np.flatnonzero(filled & (rejected == bool(side)))
                if not side:
                    own = own[batch["ends"][b, own] < 2 * T]
                if not len(own):
                    continue
                sees = np.flatnonzero((np.arange(2 * T) <= own[-1]) & (batch["ends"][b] > own[-1]))
                shared = len(sees) - len(own)
                for name in ("tokens", "positions"):
                    assert batch[name][b, sees].tolist() == whole[name].tolist(), name
                for name in ("targets", "weights"):
                    assert batch[name][b, own].tolist() == whole[name][shared:].tolist(), name
                assert not whole["weights"][:shared].any()
                saved += shared * side
    assert saved > COUNT
