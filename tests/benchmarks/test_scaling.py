"""Scaling: the compute multiplier that was planted is found, at each size."""

import json
import sys

import pytest

from benchmarks import recipe, scaling


def test_a_planted_multiplier_is_found(tmp_path, monkeypatch, capsys):
    """The arm `default` does as well as the base with twice its compute; seeds differ, in both alike."""

    class Runs:
        def __init__(self, options):
            assert options.data == "python"

        def __call__(self, *, arm, size, seed, factor, steps):
            assert factor == 1.0 and steps == round(10 * scaling.weights(size) / 4096)
            worth = 2.0 if arm == "default" else 1.0
            return {"bits_per_byte": (50 + seed) * (worth * scaling.flops(size, 10)) ** -0.1}

    monkeypatch.setattr(recipe, "Runs", Runs)
    monkeypatch.setattr(sys, "argv", ["scaling", f"--out={tmp_path}", "--seeds=2"])
    scaling.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(report) == list(scaling.SIZES) and (tmp_path / "scaling.svg").is_file()
    for of_arms in report.values():
        assert of_arms["adamw"]["multiplier"] == pytest.approx([1, 1, 1], abs=1e-3)
        assert of_arms["default"]["multiplier"] == pytest.approx([2, 2, 2], abs=2e-3)


def test_one_seed_has_no_interval():
    compute = {size: 10.0**n for n, size in enumerate(scaling.SIZES, start=12)}
    scores = {"adamw": {size: [2.0 * C**-0.01] for size, C in compute.items()}}
    assert scaling.summary(scores, compute, "adamw", "adamw", "1M")["multiplier"] == [1.0, 0.0, float("inf")]
