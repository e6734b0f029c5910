"""Lines become arrays, the same by Arrow and line by line; arrays become curves of bounded size that keep their extremes."""

import json

import numpy as np
import pytest

from lm.dashboard import lines, series
from lm.dashboard.lines import columns, slow
from lm.dashboard.series import MOST, Series, rounded
from tests.lm.reports.made_runs import lines as rows_of


def encoded(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def same(one, other) -> None:
    assert one.curves.keys() == other.curves.keys()
    for key, curve in one.curves.items():
        np.testing.assert_array_equal(curve, other.curves[key])
    for name in ("damaged", "not_finite", "null", "trained", "last"):
        assert getattr(one, name) == getattr(other, name), name


def test_arrow_reads_what_a_loop_reads():
    data = encoded(rows_of(200))
    fast = lines._fast(data, ())
    assert fast is not None and fast.trained == 200
    same(fast, slow(data, ()))
    same(lines._fast(data, ("loss", "tokens")), slow(data, ("loss", "tokens")))


ODD = {
    "null": b'{"step": 1, "loss": null, "grad_norm": 2}\n',
    "NaN": b'{"step": 1, "loss": NaN, "grad_norm": 2}\n',
    "infinity": b'{"step": 1, "loss": 1e999, "a": Infinity}\n',
    "broken": b'{"step": 1, "loss"\n',
    "no object": b"7\n",
    "no step": b'{"loss": 1}\n',
    "a text as step": b'{"step": "x", "loss": 1}\n',
    "texts, flags, lists": b'{"step": 1, "loss": 2, "b": "x", "c": true, "d": [1], "e": {"f": 1}}\n',
    "deep": b'{"step": 1, "loss": ' + b"[" * 100_000 + b"\n",
    "a huge number": b'{"step": 1, "loss": 1' + b"0" * 400 + b"}\n",
    "no text": b"\xff\xfe\x00\n",
    "blank": b"\n",
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_line_changes_nothing_else(name):
    usual = encoded(rows_of(100))
    found = columns(usual + ODD[name] + encoded([{"step": 101, "loss": 5.0, "grad_norm": 1.0}]), ())
    same(found, slow(usual + ODD[name] + encoded([{"step": 101, "loss": 5.0, "grad_norm": 1.0}]), ()))
    assert found.curves["loss"][0][-1] == 101 and found.null == 0
    assert found.damaged == (name in ("broken", "no object", "no step", "a text as step", "deep", "no text"))
    assert found.not_finite == ([1] if name in ("null", "NaN", "infinity", "a huge number") else [])
    assert set(found.curves) <= {
        "loss",
        "grad_norm",
        "learning_rate",
        "skipped",
        "tokens",
        "valid_loss",
        "valid_bits_per_byte",
        "a",
    }


def test_a_hostile_file_cannot_ask_for_many_columns():
    data = b"".join(json.dumps({"step": n, **{f"k{n}_{i}": 1 for i in range(50)}}).encode() + b"\n" for n in range(50))
    assert len(columns(data, ()).curves) == lines.MOST_KEYS
    assert columns(data, [f"old{n}" for n in range(lines.MOST_KEYS)]).curves == {}
    many = b'{"step": 1}\n' * 20_000
    assert lines._fast(many, [f"old{n}" for n in range(300)]) is None


@pytest.mark.parametrize("parts", [1, 7, 400])
def test_a_curve_keeps_its_extremes_however_long_it_is(parts):
    n = 20 * MOST + 77
    steps, values = np.arange(1.0, n + 1), np.random.default_rng(0).normal(size=n)
    values[12_345], values[23_456], values[100:110] = 1e6, -1e6, np.nan
    found = Series()
    for some in np.array_split(np.arange(n), parts):
        found.extend(steps[some], values[some])
    assert len(found.stretches) <= MOST and found.stretches[:, series.ROWS].sum() == n
    for points in (MOST, 300, 2):
        curve = found.curve(points)
        assert len(curve["x"]) <= points
        assert np.nanmax(curve["high"]) == 1e6 and np.nanmin(curve["low"]) == -1e6
        assert curve["x"][-1] == n and (np.diff(curve["x"]) > 0).all()
    total = (found.stretches[:, series.SUM].sum(), found.stretches[:, series.COUNT].sum())
    assert total == (pytest.approx(np.nansum(values)), n - 10)


def test_a_short_curve_is_exact_and_a_gap_stays():
    found = Series()
    found.extend(np.array([1.0, 2.0, 3.0]), np.array([5.0, np.nan, 7.0]))
    curve = found.curve(400)
    assert curve["x"].tolist() == [1, 2, 3] and rounded(curve["y"]) == [5, None, 7]
    found.extend(np.array([2.0, 3.0]), np.array([6.0, 8.0]))  # a resumed run logs steps again
    assert found.curve(400)["y"][-1] == 8 and found.curve(400)["x"].tolist() == [1, 2, 2, 3]


def test_a_part_of_a_curve_has_its_neighbours_on_either_side():
    found = Series()
    found.extend(np.arange(1000.0), np.arange(1000.0))
    assert found.curve(400, 100, 110)["x"].tolist() == list(range(99, 112))
    assert found.curve(400)["x"].size <= 400


def test_numbers_are_short_and_never_not_finite():
    values = np.array([1.23456789, 123456789.0, 1234.56789, 1.23456789e-12, 1e300, 0.0, np.nan, np.inf, -2.0, 5e-324])
    assert rounded(values)[:9] == [1.2346, 123456789, 1234.6, 1.2346e-12, 1e300, 0, None, None, -2]
    assert json.dumps(rounded(values), allow_nan=False)
