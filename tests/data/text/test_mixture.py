"""Any position of a mixture is the one that a replay from the start reaches, and Grain's in one stage."""

import itertools

import grain
import pytest

from data.text.batches import constant
from data.text.weights import Mixture, Stage, counts

RANGES = {"a": range(7), "b": range(7, 40), "c": range(40, 42)}
STAGES = [Stage(0, {"a": 0.7, "b": 0.2, "c": 0.1}), Stage(13, {"b": 1.0}), Stage(20, {"c": 0.3, "a": 0.7})]


def streams():
    return {name: grain.MapDataset.range(ids.start, ids.stop).repeat() for name, ids in RANGES.items()}


@pytest.mark.parametrize("shares", [(1, 1, 1), (3, 2, 1), (0.1, 0.3, 1e-3), (5, 1, 99)])
def test_one_stage_is_as_grain_mixes_it(shares):
    parts = [round(100 * share / min(shares)) for share in shares]
    grains = grain.MapDataset.mix(list(streams().values()), weights=parts)
    ours = Mixture(streams(), [Stage(0, dict(zip(RANGES, shares)))], constant(4).start)
    for position in (*range(300), *range(10**9, 10**9 + 50)):
        assert ours[position] == grains[position]


def test_any_position_is_that_of_a_replay():
    """The slow twin: a source for each position, and the next row of this source."""
    mixture, replayed = Mixture(streams(), STAGES, constant(4).start), []
    rows = {name: map(stream.__getitem__, itertools.count()) for name, stream in streams().items()}
    spent = dict.fromkeys(RANGES, 0)
    for stage, end in zip(STAGES, [13, 20, 50]):
        names = [name for name in RANGES if name in stage.shares]
        parts = [round(100 * stage.shares[name] / min(stage.shares.values())) for name in names]
        for k in range(4 * (end - stage.begin)):
            assert mixture.rows(len(replayed)) == spent
            given = [after - before for before, after in zip(counts(k, parts), counts(k + 1, parts))]
            name = names[given.index(1)]
            spent[name] += 1
            replayed.append(next(rows[name]))
    assert [mixture[position] for position in range(200)] == replayed


def test_every_prefix_has_each_source_close_to_its_share():
    parts = [700, 200, 100]
    for k in range(2000):
        found = counts(k, parts)
        assert sum(found) == k
        assert all(abs(n - k * part / 1000) < 3 for n, part in zip(found, parts))


@pytest.mark.parametrize("begins", [(1,), (0, 0), (0, 5, 3)])
def test_stages_begin_at_0_and_ascend(begins):
    with pytest.raises(ValueError, match="ascend"):
        Mixture(streams(), [Stage(begin, {"a": 1.0}) for begin in begins], constant(4).start)
