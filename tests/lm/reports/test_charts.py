"""Curves as they are drawn: few points, and no spike lost."""

import re

import numpy as np
import pytest

from data.recipe.finish import bins
from lm.reports import curate, curves, run_metrics


def test_thinning_keeps_ends_spikes_and_order():
    x = np.arange(10_000.0)
    y = np.sin(x / 900)
    y[4321], y[8765] = 50, -50
    thin_x, thin_y = run_metrics.thin(x, y)
    assert len(thin_x) <= run_metrics.CURVE_POINTS
    assert thin_x[0] == 0 and thin_x[-1] == 9_999 and (np.diff(thin_x) > 0).all()
    assert thin_y.max() == 50 and thin_y.min() == -50
    np.testing.assert_array_equal(y[thin_x.astype(int)], thin_y)
    np.testing.assert_array_equal(run_metrics.thin(x[:5], y[:5])[1], y[:5])


def test_ticks_that_are_near_one_another_are_told_apart():
    lines = [{"step": 10**6 + n, "loss": 2.5 + n * 1e-6} for n in range(8)]
    names = re.findall(r"<text[^>]*>([^<]*)</text>", curves.curves(lines)[0]["svg"])
    assert len(names) > 8 and len(set(names)) == len(names)


def test_a_legend_lies_below_the_frame_of_its_chart():
    lines = [{"step": n, "reward": 1.0, "reward_std": 3.0, "valid_reward": 0.5} for n in range(1, 9)]
    svg = curves.curves(
        [
            {k: v for k, v in line.items() if k in keys}
            for line in lines
            for keys in (("step", "reward", "reward_std"), ("step", "valid_reward"))
        ]
    )[0]["svg"]
    heights = {name: float(y) for y, name in re.findall(r'<text[^>]*?y="([\d.]+)"[^>]*>([^<]*)</text>', svg)}
    assert {"train", "held out"} <= set(heights) and min(heights["train"], heights["held out"]) > heights["step"]


@pytest.mark.parametrize("values", [[0, 1, 1, 2, 3, 3, 5], [0] * 9, [3000, 70_000, 1], [1] * 5000])
def test_ticks_of_a_histogram_are_whole_and_apart(values):
    edges = bins(share=False)
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges) - 1)
    drawn = curate.drawn({"edges": edges.tolist(), "counts": counts.tolist()}, [2])
    for ticks, room in ((drawn["across"], 25), (drawn["up"], 12)):
        places, names = sorted(float(place) for place, _ in ticks), [name for _, name in ticks]
        assert len(set(names)) == len(names) and (np.diff(places) >= room).all()
        assert all(name.isdecimal() or name[-1] in "kM" for name in names)
