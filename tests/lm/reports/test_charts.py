"""Curves as they are drawn: few points, and no spike lost."""

import numpy as np

from lm.reports import run_metrics


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
