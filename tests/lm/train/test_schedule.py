"""Learning rates against values worked out by hand."""

import math

import pytest

from lm.train.update import schedule


def rates(kind, at, **options):
    return [float(schedule(kind, **options)(n)) for n in at]


def test_cosine():
    # 11 steps, 2 of warm-up: the peak at 1 and 2, half way at 6, the final share at the last step and beyond.
    quarter = 3 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    expected = [1.5, 3, 3, quarter, 3 * 0.55, 0.3, 0.3]
    assert rates("cosine", [0, 1, 2, 4, 6, 10, 99], peak=3, steps=11, warmup=2, final=0.1) == pytest.approx(expected)


def test_warmup_stable_decay():
    # 20 steps, the last quarter of them decays linearly.
    at = [0, 1, 3, 4, 14, 15, 17, 19, 99]
    expected = [0.25, 0.5, 1, 1, 1, 0.82, 0.46, 0.1, 0.1]
    assert rates("wsd", at, peak=1, steps=20, warmup=4, final=0.1, decay=0.25) == pytest.approx(expected)


def test_constant():
    assert rates("constant", [0, 1, 3, 4, 9, 99], peak=2, steps=10, warmup=4, final=0.1) == pytest.approx([0.5, 1, 2, 2, 2, 2])


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_the_last_step_has_the_final_share(kind, final):
    for steps, warmup in ((1000, 100), (7, 0), (50, 49)):
        if steps - warmup > 1:
            assert rates(kind, [steps - 1], peak=2, steps=steps, warmup=warmup, final=final) == pytest.approx([2 * final])


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_a_rate_is_positive_finite_and_at_most_the_peak(kind):
    for steps, warmup in ((1, 0), (1, 1), (5, 100), (10, 10), (30, 3)):
        for rate in rates(kind, range(steps), peak=2, steps=steps, warmup=warmup):
            assert 0 < rate <= 2
