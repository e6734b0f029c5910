"""The curves of a report's charts, as they are drawn: inside their frame, and smoothed without moving."""

import re

import numpy as np
import pytest

from lm.reports import align as align_report
from lm.reports import train as report

N = 400
STEPS = range(1, N + 1)


def drawn(svg: str) -> tuple[tuple[float, float, float, float], list[tuple[str, np.ndarray]]]:
    """The frame (left, right, top, bottom), and (style, points [n, 2]) of every line in it; y grows downwards."""
    frame = re.search(r'<clipPath[^>]*>\s*<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
    x, y, width, height = map(float, frame.groups())
    paths = re.findall(r'<path d="([^"]+)" clip-path="[^"]+" style="([^"]*)"', svg)
    numbers = [(style, np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path), float)) for path, style in paths]
    # Grid lines have the colour of lines, and end at the frame.
    return (x, x + width, y, y + height), [(s, points) for s, points in numbers if "var(--line)" not in s and len(points)]


def aligned(lines: list[dict], title: str) -> str:
    return next(chart["svg"] for chart in align_report.curves(lines) if chart["title"] == title)


def pretrained(train: list[dict], valid: list[dict], title: str) -> str:
    page = report.html({}, train, valid)
    return re.search(rf"<h3>{title}</h3>.*?(<svg.*?</svg>)", page, re.DOTALL)[1]


def raw_and_smoothed(svg: str) -> tuple[np.ndarray, np.ndarray]:
    _, lines = drawn(svg)
    [raw] = [points for style, points in lines if "stroke-opacity: 0.3" in style]
    [smoothed] = [points for style, points in lines if "stroke-opacity" not in style]
    return raw, smoothed


def charts_of_loss(values) -> list[str]:
    lines = [{"step": step, "loss": float(value)} for step, value in zip(STEPS, values, strict=True)]
    return [aligned(lines, "Loss"), pretrained(lines, [], "Loss")]


@pytest.mark.parametrize(
    ("key", "title", "train", "valid"),
    [
        ("reward", "Reward", lambda i: 0.2 + i / N, lambda i: -1.5 + i / N),  # only the held-out one is below 0
        ("reward", "Reward", lambda i: None, lambda i: -1.0 - i / N),  # nothing but the held-out one
        ("reward", "Reward", lambda i: -3.0 if i == 200 else float("nan") if i % 7 == 0 else 1.0, lambda i: None),
        ("rewards/margins", "Margin", lambda i: 0.5, lambda i: -0.1),
        ("grad_norm", "Gradient norm", lambda i: 0.0 if i == 3 else 1.0, lambda i: None),
        ("entropy", "Entropy", lambda i: 1.0, lambda i: 5.0),
    ],
)
def test_every_curve_lies_in_its_frame(key, title, train, valid):
    lines = [{"step": i, key: train(i), "reward_std": 0.5} for i in STEPS]
    lines += [{"step": i, f"valid_{key}": valid(i)} for i in STEPS if i % 50 == 0]
    (left, right, top, bottom), curves = drawn(aligned(lines, title))
    held_out = [len(points) for style, points in curves if "var(--valid)" in style]
    assert held_out == ([] if valid(1) is None else [N // 50])  # a curve far outside is not written at all
    for _, points in curves:
        assert left <= points[:, 0].min() and points[:, 0].max() <= right
        assert top <= points[:, 1].min() and points[:, 1].max() <= bottom


def test_the_band_of_a_reward_stands_where_both_are_known():
    """A mean without its deviation, and a deviation without its mean, are left out."""
    lines = [{"step": i, "reward": None if i == 5 else 1.0, "reward_std": None if i == 9 else 2.0} for i in range(1, 13)]
    chart = aligned(lines, "Reward")
    shape = r'<path id="[^"]+" d="([^"]+)"/>\s*</defs>\s*<g[^>]*>\s*<use [^>]*y="([\d.]+)"[^>]*0.12'
    [(band, height)] = re.findall(shape, chart)
    points = np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", band), float) + (0, float(height))
    (_, _, top, bottom), _ = drawn(chart)
    assert len(set(points[:, 0])) == 10
    assert top <= points[:, 1].min() and points[:, 1].max() <= bottom


@pytest.mark.parametrize("slope", [-0.01, 0.02])
def test_a_straight_line_is_smoothed_to_itself(slope):
    for svg in charts_of_loss(5 + slope * np.arange(N)):
        raw, smoothed = raw_and_smoothed(svg)
        np.testing.assert_allclose(smoothed[[0, -1]], raw[[0, -1]], atol=1e-3)
        (x0, y0), (x1, y1) = raw[[0, -1]]
        np.testing.assert_allclose(smoothed[:, 1], y0 + (y1 - y0) * (smoothed[:, 0] - x0) / (x1 - x0), atol=1e-3)


def test_a_straight_line_with_gaps_is_smoothed_to_itself():
    values = [None if i % 5 == 0 or 100 < i < 130 else 5 - i / 100 for i in STEPS]
    lines = [{"step": i, "loss": value} for i, value in zip(STEPS, values, strict=True)]
    raw, smoothed = raw_and_smoothed(aligned(lines, "Loss"))
    (x0, y0), (x1, y1) = raw[[0, -1]]
    np.testing.assert_allclose(smoothed[:, 1], y0 + (y1 - y0) * (smoothed[:, 0] - x0) / (x1 - x0), atol=1e-3)


def test_a_smoothed_step_stays_where_it_was():
    for svg in charts_of_loss(np.where(np.arange(N) < N // 2, 3.0, 2.0)):
        raw, smoothed = raw_and_smoothed(svg)
        middle = (raw[0, 1] + raw[-1, 1]) / 2
        where = [float(np.interp(middle, points[:, 1], points[:, 0])) for points in (raw, smoothed)]
        a_step = (raw[-1, 0] - raw[0, 0]) / (N - 1)
        assert abs(where[1] - where[0]) < 0.1 * a_step


def test_curves_are_told_apart_without_colours():
    names = [f"reward_{n}" for n in range(6)]
    lines = [{"step": i} | {f"rewards/{name}/mean": n + i / N for n, name in enumerate(names)} for i in STEPS]
    lines += [{"step": N, "valid_rewards/reward_0": 1.0}]
    chart = aligned(lines, "Each reward")
    solid = [style for style, points in drawn(chart)[1] if "stroke-opacity" not in style and len(points) > 1]
    assert len({tuple(re.findall("stroke-dasharray: ([^;]+)", style)) for style in solid}) == len(solid) == 6
    for name in (*names, "reward_0, held out", "reward"):  # the last is the axis
        assert f">{name}</text>" in chart


def test_few_points_have_markers_of_their_curve():
    lines = [{"step": i, "logps/chosen": -i, "logps/rejected": -2 * i} for i in range(1, 9)]
    chart = aligned(lines, "Log-probabilities")
    markers = re.findall(r'<defs>\s*<path id="[^"]+" d="([^"]+)" style="stroke: var\(--(?:train|valid)\)', chart)
    assert len(set(markers)) == 2


def test_a_spike_is_forgotten_where_it_is_over():
    values = np.full(N, 2.0)
    values[100] = 1e30
    for svg in charts_of_loss(values)[:1]:
        _, smoothed = raw_and_smoothed(svg)
        late = smoothed[smoothed[:, 0] > smoothed[:, 0].max() / 2]
        assert np.ptp(late[:, 1]) == 0 and late[-1, 1] == smoothed[0, 1]


def test_a_schedule_is_drawn_as_it_is():
    lines = [{"step": i, "learning_rate": min(i / 20, 1.0) if i < 350 else 0.1} for i in STEPS]
    _, [(style, points)] = drawn(aligned(lines, "Learning rate"))
    assert "stroke-opacity" not in style
    highest, knee = points[:, 1].min(), points[0, 0] + (points[-1, 0] - points[0, 0]) * 19 / (N - 1)
    assert points[points[:, 1] == highest][0, 0] == pytest.approx(knee, abs=0.01)
