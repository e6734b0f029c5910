"""TextBatches are a pure function of (seed, step), whoever reads them and from wherever."""

import functools
import itertools

import numpy as np
import pytest

from data.text.batches import NO_ROW, Batches, Rows, Sizes, TextBatches, constant, parse_sizes, prepared, read_ahead
from data.text.dataset import prepare
from data.text.sentencepiece_tokenizer import train
from data.text.weights import Mixture, Stage, Weights, parse_weights
from lm.errors import UserError
from tests.data.text.test_dataset import Survey, T, source, texts

COUNTS = {"code": 160, "docs": 50, "web": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("batches")
    tokenizer = train(texts("code", 200), path / "t", vocab_size=400, sample_bytes=1 << 20, seed=0, threads=1)
    prepare(path / "set", [source(*item) for item in COUNTS.items()], tokenizer, sequence_length=T, survey=Survey())
    return path / "set"


def reader(batches, rows, *span):
    return read_ahead(functools.partial(batches.batch, rows=rows), *span)


def stream(batches, count):
    return np.concatenate([batches.global_row_ids(n) for n in range(count)])


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_is_its_rows_shifted(folder):
    batches = TextBatches(folder, batch_size=8, seed=3)
    batch = batches.batch(5)
    assert {name: array.dtype for name, array in batch.items()} == {
        "tokens": np.int32,
        "targets": np.int32,
        "segment_ids": np.int32,
        "positions": np.int32,
        "weights": np.float32,
        "ids": np.int64,
    }
    for at, id_ in enumerate(batch["ids"]):
        name = next(name for name, ids in batches.ranges.items() if id_ in ids)
        row = Rows(folder, name, "train").read([int(id_ - batches.ranges[name].start)])
        row = {name: values[0] for name, values in row.items()}
        assert batch["tokens"][at].tolist() == row["tokens"][:-1].tolist()
        assert batch["targets"][at].tolist() == row["tokens"][1:].tolist()
        assert batch["segment_ids"][at].tolist() == row["segment_ids"][:-1].tolist()
        assert batch["positions"][at].tolist() == row["positions"][:-1].tolist()
        for t in range(T):  # the slow twin of the weights
            here, following = int(row["segment_ids"][t]), int(row["segment_ids"][t + 1])
            assert batch["weights"][at, t] == (here == following and here != 0)


def test_weights_count_every_target_once(folder):
    for split in ("train", "valid"):
        batches = TextBatches(folder, split, batch_size=8, shuffle=False)
        total = sum(batches.batch(n)["weights"].sum() for n in range(batches.num_batches))
        assert total == sum(counts[split]["tokens_in"] for counts in prepared(folder)["sources"].values())


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_any_number_of_hosts_reads_the_same_batches(folder, hosts):
    whole = TextBatches(folder, batch_size=8, seed=1)
    share = 8 // hosts
    readers = [reader(TextBatches(folder, batch_size=8, seed=1), range(at, at + share), 2, 6) for at in range(0, 8, share)]
    for n in range(2, 6):
        parts = [next(reader) for reader in readers]
        same(whole.batch(n), {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    assert all(next(reader, None) is None for reader in readers)


def test_rows_may_be_any_of_the_batch(folder):
    batches = TextBatches(folder, batch_size=8)
    whole, part = batches.batch(3), batches.batch(3, [6, 1, 1])
    same({name: array[[6, 1, 1]] for name, array in whole.items()}, part)


STAGED = parse_weights("0: code=1,docs=2; 0.5: temperature=4; 0.9: web=5,docs=1")


@pytest.mark.parametrize("weights", [None, parse_weights("code=1,docs=2"), STAGED])
def test_resuming_needs_no_replay(folder, weights):
    batches = TextBatches(folder, batch_size=4, seed=5, weights=Weights(weights, 20))
    far = 10_000  # many epochs on
    same(next(read_ahead(batches.batch, far)), batches.batch(far))
    first = read_ahead(batches.batch, 7)
    for _ in range(3):
        next(first)
    expected = [next(first) for _ in range(3)]
    resumed = read_ahead(TextBatches(folder, batch_size=4, seed=5, weights=Weights(weights, 20)).batch, 10, prefetch=0)
    for batch in expected:
        same(batch, next(resumed))
    first.close()


def test_an_epoch_is_every_row_once_and_the_next_is_in_another_order(folder):
    batches = TextBatches(folder, batch_size=1, seed=2)
    rows = batches.num_rows
    epochs = stream(batches, 3 * rows).reshape(3, rows)
    for epoch in epochs:
        assert sorted(epoch) == list(range(rows))
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
    assert (epochs[0] != np.arange(rows)).any()


def test_the_seed_decides(folder):
    ids = [stream(TextBatches(folder, batch_size=16, seed=seed), 4).tolist() for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_a_mixture_keeps_its_proportions_and_each_source_its_epochs(folder):
    batches = TextBatches(folder, batch_size=10, weights=Weights(parse_weights("code=.1,docs=.3,web=0")))
    ids = stream(batches, 400)
    docs, code = batches.ranges["docs"], batches.ranges["code"]
    of_docs = [i for i in ids if i in docs]
    assert len(of_docs) == 3000 and len(ids) - len(of_docs) == 1000 == sum(i in code for i in ids)
    for epoch in range(3000 // len(docs)):
        assert sorted(of_docs[epoch * len(docs) : (epoch + 1) * len(docs)]) == list(docs)
    assert all(sum(i in docs for i in ids[at : at + 40]) == 30 for at in range(0, 4000, 40))


def test_validation_is_one_pass_in_order_filled_up_with_nothing(folder):
    batches = TextBatches(folder, "valid", batch_size=4, shuffle=False)
    read = list(read_ahead(batches.batch, stop=batches.num_batches))
    assert len(read) == batches.num_batches == -(-batches.num_rows // 4)
    ids = np.concatenate([batch["ids"] for batch in read])
    assert ids[: batches.num_rows].tolist() == list(range(batches.num_rows))
    assert (ids[batches.num_rows :] == NO_ROW).all()
    for batch in read:
        empty = batch["ids"] == NO_ROW
        assert not batch["weights"][empty].any() and not batch["segment_ids"][empty].any()
        assert batch["weights"][~empty].any(axis=1).all()
    with pytest.raises(IndexError, match="no batch"):
        batches.batch(batches.num_batches)


def test_validation_of_one_source(folder):
    batches = TextBatches(folder, "valid", batch_size=3, shuffle=False, weights=Weights(parse_weights("docs=1")))
    ids = np.concatenate([batch["ids"] for batch in read_ahead(batches.batch, stop=batches.num_batches)])
    assert ids[ids != NO_ROW].tolist() == list(batches.ranges["docs"])


def test_iteration_by_threads_keeps_the_order(folder):
    batches = TextBatches(folder, batch_size=2, seed=9)
    iterator = read_ahead(batches.batch, prefetch=16, threads=4)
    for n, batch in enumerate(itertools.islice(iterator, 60)):
        np.testing.assert_array_equal(batch["ids"], batches.global_row_ids(n))
    iterator.close()


def test_an_unknown_source_in_the_weights(folder):
    with pytest.raises(UserError, match="data.weights.cod: .*nearest is 'code'"):
        TextBatches(folder, batch_size=2, weights=Weights(parse_weights("cod=1")))


def test_shares_change_in_stages_and_no_row_comes_twice_before_its_source_is_exhausted(folder):
    batches = TextBatches(folder, batch_size=4, seed=1, weights=Weights(STAGED, 100))
    assert [stage.begin for stage in batches.stages] == [0, 50, 90]
    owners = {name: [i for i in stream(batches, 100) if i in ids] for name, ids in batches.ranges.items()}
    for name, ids in batches.ranges.items():
        for begin in range(0, len(owners[name]), len(ids)):
            epoch = owners[name][begin : begin + len(ids)]
            assert len(set(epoch)) == len(epoch)
    assert max(len(owners[name]) / len(ids) for name, ids in batches.ranges.items()) > 2
    last = np.concatenate([batches.global_row_ids(n) for n in range(90, 100)])
    assert [sum(i in batches.ranges[name] for i in last) for name in ("code", "docs", "web")] == [0, 7, 33]
    for count in (0, 1, 50, 77, 100):
        read = [i for n in range(count) for i in batches.global_row_ids(n)]
        assert batches.rows_read(count) == {name: sum(i in ids for i in read) for name, ids in batches.ranges.items()}


@pytest.mark.parametrize("hosts", [1, 4])
def test_stages_are_the_same_for_any_number_of_hosts(folder, hosts):
    def batches():
        return TextBatches(folder, batch_size=8, seed=1, weights=Weights(STAGED, 10))

    readers = [reader(batches(), range(at, at + 8 // hosts), 3, 8) for at in range(0, 8, 8 // hosts)]
    for n in range(3, 8):
        parts = [next(reader) for reader in readers]
        same(batches().batch(n), {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def test_epochs_without_weights_are_equal(folder):
    batches = TextBatches(folder, batch_size=8)
    assert batches.epochs(batches.num_rows) == dict.fromkeys(batches.ranges, pytest.approx(8.0))


def test_no_dataset_and_no_rows_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no finished dataset"):
        TextBatches(tmp_path, batch_size=2)
    tokenizer = train(["some words"], tmp_path / "t", vocab_size=300, sample_bytes=1000, seed=0, threads=1)
    prepare(tmp_path / "set", [source("code", 3)], tokenizer, sequence_length=T, survey=Survey(every=0))
    with pytest.raises(UserError, match="no rows in split 'valid'"):
        TextBatches(tmp_path / "set", "valid", batch_size=2)


GROWTH = parse_sizes("3: 2; 5: 4", 6)


def test_growing_batches_begin_where_a_replay_says():
    assert GROWTH == Sizes((3, 5), (2, 4, 6)) and [GROWTH.of(n) for n in range(8)] == [2, 2, 2, 4, 4, 6, 6, 6]
    assert [GROWTH.start(n) for n in range(8)] == [0, 2, 4, 6, 10, 14, 20, 26]
    for rows in range(40):
        assert GROWTH.batches(rows) == next(n for n in range(20) if GROWTH.start(n) >= rows)
    assert parse_sizes("", 6) == parse_sizes(None, 6) == constant(6)
    assert (constant(6).start(4), constant(6).batches(13)) == (24, 3)


def test_growing_batches_repeat_and_skip_no_row():
    batches = Batches(range(10**6), 10**6, 6, True, GROWTH)
    read = [row for n in range(8) for row in batches.global_row_ids(n).tolist()]
    assert read == list(range(32))
    assert batches.global_row_ids(4, [1, 3]).tolist() == [11, 13]


def test_stages_of_a_mixture_begin_with_their_batch():
    streams = {"a": range(1000), "b": range(1000, 2000)}
    mixture = Mixture(streams, [Stage(0, {"a": 1.0}), Stage(4, {"b": 1.0})], GROWTH.start)
    batches = Batches(mixture, 2000, 6, True, GROWTH)
    assert batches.global_row_ids(3).tolist() == [6, 7, 8, 9] and batches.global_row_ids(4).tolist() == [1000, 1001, 1002, 1003]


@pytest.mark.parametrize("text", ["half", "5: 4; 3: 2", "3: 4; 5: 2", "3: 6", "0: 2", "3: 0", "0.1: 2"])
def test_sizes_that_cannot_be_read(text):
    with pytest.raises(UserError, match="batch_warmup: "):
        parse_sizes(text, 6)
