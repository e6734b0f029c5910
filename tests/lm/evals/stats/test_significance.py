"""Tests of differences against what they are worked out to by hand, and by SciPy."""

import math
import random

import numpy as np
import pytest
import scipy.stats

from lm.evals.stats.significance import holm, mcnemar, paired, permutation, unpaired


@pytest.mark.parametrize("lost, won", [(0, 0), (0, 1), (0, 6), (3, 9), (40, 41), (120, 70), (3000, 3200)])
def test_mcnemar_is_the_exact_binomial_test(lost, won):
    expected = scipy.stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(won, lost) == mcnemar(lost, won)


def test_permutations_by_hand():
    assert permutation([1, 2, 3]) == 2 / 8  # only +++ and ---
    assert permutation([1, 2, -3]) == 1.0
    assert permutation([0, 0]) == permutation([]) == 1.0
    assert permutation([1, 1, 1, -1]) == 10 / 16  # |sum| >= 2: all but the 6 with two of each


def test_many_permutations_agree_with_scipy_and_do_not_depend_on_the_draw_of_the_day():
    d = np.random.default_rng(1).normal(0.25, 1, 60)
    expected = scipy.stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    ).pvalue
    assert permutation(d) == pytest.approx(expected, abs=0.02)
    assert permutation(d) == permutation(d)
    assert permutation(np.full(100, 0.5)) == 1 / 10_000


def test_pairs():
    row = paired([0, 1, 0, 0], [1, 1, 1, 0])
    assert row["test"] == "mcnemar" and row["p"] == 0.5 and row["n"] == 4
    assert (row["before"], row["after"], row["difference"]) == (0.25, 0.75, 0.5)
    assert row["stderr"] == pytest.approx(math.sqrt(1 / 3 / 4))  # of 1, 0, 1, 0
    assert row["low"] == pytest.approx(0.5 - 1.96 * row["stderr"], abs=1e-4)
    row = paired([0.5, 0.25], [0.25, 0.25])
    assert row["test"] == "permutation" and row["p"] == 1.0 and row["difference"] == -0.125
    assert paired([1], [0])["stderr"] is None
    assert set(paired([], []).values()) == {None, 0}


def test_a_true_null_is_seldom_rejected_and_a_real_difference_found():
    draws, rejected = random.Random(0), 0
    for _ in range(200):
        pairs = [(float(draws.random() < 0.6), float(draws.random() < 0.6)) for _ in range(100)]
        rejected += paired(*zip(*pairs))["p"] < 0.05
    assert rejected <= 18  # 10 expected, at most
    pairs = [(float(draws.random() < 0.4), float(draws.random() < 0.7)) for _ in range(200)]
    assert paired(*zip(*pairs))["p"] < 1e-3


def test_figures_without_items():
    row = unpaired(0.5, 0.6, 0.03, 0.04)
    assert row["stderr"] == pytest.approx(0.05) and row["p"] == pytest.approx(2 * scipy.stats.norm.sf(2.0))
    assert unpaired(0.5, 0.6, 0.0, 0.0)["p"] is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, None]) == [0.03, 0.06, 0.06, None]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
