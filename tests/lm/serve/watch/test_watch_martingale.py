import json

import numpy as np
import pytest

from lm.serve.watch import martingale
from lm.serve.watch.martingale import Detector, factors, restored, weight

ALPHA = 0.001


def run(values, reference, seed=0):
    """Return after how many values the capital reaches 1/ALPHA, or None, and the detector."""
    detector = Detector(reference, seed)
    for count, value in enumerate(values, 1):
        if detector.add(value) >= 1 / ALPHA:
            return count, detector
    return None, detector


def test_every_bet_is_fair():
    p = (np.arange(20_000) + 0.5) / 20_000
    assert np.mean([factors(x) for x in p], axis=0) == pytest.approx(np.ones(martingale.BETS), abs=0.01)


def test_weights_sum_to_one_at_most():
    total = sum(weight(t) for t in range(1, 100_000))
    assert 0.9 < total < 1


def test_capital_is_a_martingale():
    """The mean capital of many short null runs is 1, whatever the distribution; and few runs reach 20."""
    last, peaks = [], []
    for seed in range(400):
        draw = np.random.default_rng(seed)
        values = draw.random(30) ** 3 if seed % 2 else (draw.random(30) < 0.1).astype(float)
        detector = Detector(values[:20], seed)
        capital = [detector.add(value) for value in values[20:]]
        last, peaks = [*last, capital[-1]], [*peaks, max(capital)]
    assert np.mean(last) == pytest.approx(1, abs=4 * np.std(last) / 20)
    assert np.mean(np.array(peaks) >= 20) <= 1 / 20  # Ville's inequality


@pytest.mark.parametrize("kind", ["normal", "rare", "constant"])
def test_no_alarm_without_a_change(kind):
    for seed in range(7):
        draw = np.random.default_rng(seed)
        values = {
            "normal": np.clip(draw.normal(0.5, 0.1, 2000), 0, 1),
            "rare": (draw.random(2000) < 0.02).astype(float),
            "constant": np.zeros(2000),
        }[kind]
        assert run(values[500:], values[:500], seed)[0] is None


@pytest.mark.parametrize("before", [0, 1000])
@pytest.mark.parametrize("kind, most", [("shift", 150), ("spread", 100), ("narrow", 100), ("rate", 200), ("new", 150)])
def test_a_change_is_found_soon(kind, before, most):
    """shift: by one standard deviation. rate: 2 % -> 20 %. new: what never was is 15 %."""
    for seed in range(3):
        draw = np.random.default_rng(seed)

        def null(n, draw=draw):
            if kind in ("rate", "new"):
                return (draw.random(n) < (0.02 if kind == "rate" else 0)).astype(float)
            return np.clip(draw.normal(0.5, 0.1, n), 0, 1)

        changed = {
            "shift": np.clip(draw.normal(0.6, 0.1, most), 0, 1),
            "spread": np.clip(draw.normal(0.5, 0.25, most), 0, 1),
            "narrow": draw.normal(0.5, 0.02, most),
            "rate": (draw.random(most) < 0.2).astype(float),
            "new": (draw.random(most) < 0.15).astype(float),
        }[kind]
        found, _ = run(np.concatenate([null(before), changed]), null(600), seed)
        assert found is not None and found > before


def test_a_restored_detector_goes_on_as_if_it_had_not_stopped():
    values = np.random.default_rng(0).random(200)
    _, whole = run(values[100:], values[:100])
    _, half = run(values[100:150], values[:100])
    half = restored(json.loads(json.dumps(half.state())))
    for value in values[150:]:
        half.add(value)
    assert half.state() == whole.state()


def test_the_rank_equals_its_definition():
    """Against a plain sorted list: the bag of counts gives the same p-values, so the same capital."""
    values = np.random.default_rng(1).integers(0, 8, 60) / 8
    detector, past = Detector(values[:20], 5), list(values[:20])
    accounts, cash = np.zeros(martingale.BETS), 1.0
    for n, value in enumerate(values[20:], 1):
        theta = martingale.xxhash.xxh3_64_intdigest(f"5 {n}".encode()) / 2**64
        p = (sum(v > value for v in past) + theta * (sum(v == value for v in past) + 1)) / (len(past) + 1)
        past.append(value)
        cash -= weight(n)
        accounts = (accounts + weight(n)) * factors(p)
        assert detector.add(value) == pytest.approx(cash + accounts.mean())
