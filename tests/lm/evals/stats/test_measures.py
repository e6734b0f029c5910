"""What figures mean: directions, scales, intervals, and what is a metric at all."""

import pytest

from lm.evals.stats import measures


def test_directions():
    for name in (
        "perplexity",
        "word_perplexity",
        "bits_per_byte",
        "ece",
        "hallucination_rate",
        "attack_success",
        "over_refusal",
    ):
        assert measures.badness(name, 0.75) > measures.badness(name, 0.5), name
    for name in ("acc", "acc_norm", "exact_match", "prompt_strict", "supported", "unsafe_refusal", "icat", "pass@1"):
        assert measures.badness(name, 0.75) < measures.badness(name, 0.5), name
    assert measures.badness("pct_stereotype", 0.6) == pytest.approx(measures.badness("pct_stereotype", 0.4))
    assert measures.badness("s_amb", -0.4) > measures.badness("s_amb", 0.1)
    assert measures.badness("abstained", 0.3) is None


def test_scales():
    assert measures.scale("acc", 0.5) == "share" and measures.scale("icat", 61.0) == "percent"
    assert measures.scale("s_amb", 0.5) == measures.scale("acc", -0.1) == "signed"
    assert measures.scale("bits_per_byte", 0.9) == measures.scale("reward", 1e6) == "open"


def test_metrics_are_told_from_counts_and_errors():
    result = {
        "acc": 0.5,
        "acc_stderr": 0.1,
        "acc_low": 0.4,
        "acc_high": 0.6,
        "n": 7,
        "missing": 2,
        "problems": {},
        "icat": None,
        "icat_stderr": None,
        "ece": 0.25,
        "p": 0.5,
        "chance": 0.25,
        "ties": 3,
        "subjects": {},
    }
    assert measures.metrics(result) == ["acc", "icat", "ece"]
    assert measures.main_metric(result) == "acc"
    assert measures.main_metric(result | {"main": "ece"}) == "ece"
    assert measures.main_metric(result | {"acc": None}) == "ece"  # nothing is known of the others
    assert measures.main_metric({"n": 0}) is None
    assert list(measures.tasks({"mmlu": result, "versions": {"jax": "1"}, "seed": 3})) == ["mmlu"]


def test_intervals():
    assert measures.interval({"a": 0.5, "a_low": 0.4, "a_high": 0.7, "a_stderr": 9.0}, "a") == (0.4, 0.7)
    assert measures.interval({"acc": 0.5, "acc_stderr": 0.1, "n": 25}, "acc") == pytest.approx((0.304, 0.696), abs=1e-3)
    assert measures.interval({"acc": 0.95, "acc_stderr": 0.1, "n": 25}, "acc")[1] == 1.0
    low, high = measures.interval({"acc": 1.0, "acc_stderr": 0.0, "n": 10}, "acc")  # Wilson's, since all are right
    assert (low, high) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert measures.interval({"rate": 0.5, "low": 0.2, "high": 0.8}, "rate") == (0.2, 0.8)
    for unknown in ({"acc": None}, {"acc": 0.5}, {"acc": 0.5, "acc_stderr": None}, {}):
        assert measures.interval(unknown, "acc") is None
