"""Batches that grow: positions by replay, rows that are neither repeated nor skipped, and text that cannot be read."""

import pytest

from data.text.batches import Batches
from data.text.mixture import Mixture, Stage
from data.text.sizes import Sizes, constant, parse_sizes
from lm.errors import UserError

GROWTH = parse_sizes("3: 2; 5: 4", 6)


def test_positions_are_those_of_a_replay():
    assert GROWTH == Sizes((3, 5), (2, 4, 6)) and [GROWTH.of(n) for n in range(8)] == [2, 2, 2, 4, 4, 6, 6, 6]
    assert [GROWTH.start(n) for n in range(8)] == [0, 2, 4, 6, 10, 14, 20, 26]
    for rows in range(40):
        assert GROWTH.batches(rows) == next(n for n in range(20) if GROWTH.start(n) >= rows)
    assert parse_sizes("", 6) == parse_sizes(None, 6) == constant(6)
    assert (constant(6).start(4), constant(6).batches(13)) == (24, 3)


def test_no_row_is_repeated_or_skipped():
    batches = Batches(range(10**6), 10**6, 6, True, GROWTH)
    read = [row for n in range(8) for row in batches.global_row_ids(n).tolist()]
    assert read == list(range(32))
    assert batches.global_row_ids(4, [1, 3]).tolist() == [11, 13]


def test_stages_of_a_mixture_begin_with_their_batch():
    streams = {"a": range(1000), "b": range(1000, 2000)}
    mixture = Mixture(streams, [Stage(0, {"a": 1.0}), Stage(4, {"b": 1.0})], GROWTH)
    batches = Batches(mixture, 2000, 6, True, GROWTH)
    assert batches.global_row_ids(3).tolist() == [6, 7, 8, 9] and batches.global_row_ids(4).tolist() == [1000, 1001, 1002, 1003]


@pytest.mark.parametrize("text", ["half", "5: 4; 3: 2", "3: 4; 5: 2", "3: 6", "0: 2", "3: 0", "0.1: 2"])
def test_text_that_cannot_be_read(text):
    with pytest.raises(UserError, match="batch_warmup: "):
        parse_sizes(text, 6)
