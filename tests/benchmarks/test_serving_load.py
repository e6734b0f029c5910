import itertools
import random
import statistics

import pytest

from benchmarks.serving import load
from benchmarks.serving.load import Ask, Outcome


def test_arrivals_are_a_poisson_process_of_the_rate():
    times = load.arrivals(50.0, 200.0, seed=1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times == sorted(times) and times[-1] < 200.0
    assert len(times) == pytest.approx(50 * 200, rel=0.05)
    # Gaps are exponential: their standard deviation is their mean.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)
    assert times == load.arrivals(50.0, 200.0, seed=1) != load.arrivals(50.0, 200.0, seed=2)


def test_prompts_are_ragged_share_prefixes_and_come_again_with_the_seed():
    def some(seed=0, **more):
        wanted = {"length": (10, 200), "answer": (16, 128), "shared": 0.5, "prefixes": 2, "prefix": 50} | more
        return list(itertools.islice(load.prompts(seed, **wanted), 400))

    found = some()
    assert found == some() != some(1)
    heads = [prompt.split("\n\n")[0] for prompt, _ in found if "\n\n" in prompt]
    assert len(set(heads)) == 2 and 150 < len(heads) < 250
    assert all(16 <= most <= 128 for _, most in found) and len({most for _, most in found}) > 50
    lengths = [len(prompt.split()) for prompt, _ in some(shared=0.0)]
    assert min(lengths) < 15 and max(lengths) > 150 and statistics.median(lengths) < 100
    assert all(10 <= length <= 200 for length in lengths)


def test_between_stays_in_its_bounds():
    draw = random.Random(0)
    assert {load.between(draw, 3, 5) for _ in range(200)} == {3, 4, 5}


def test_percentiles_interpolate():
    assert load.percentiles(range(101)) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert load.percentiles([1.0, 2.0]) == {"p50": 1.5, "p90": 1.9, "p99": 1.99}
    assert load.percentiles([]) is None


def outcome(begun, first, ended, status=200, tokens=11, **more):
    found = Outcome(Ask("load", b""), begun, first, first, ended, status, answer_tokens=tokens, **more)
    if status == 200:
        found.finishes, found.texts = {0: "length"}, {0: "x"}
    return found


def test_summary_counts_all_and_measures_what_finished():
    outcomes = [outcome(0.0, 1.0, 3.0, gaps=[0.5, 1.5]), outcome(1.0, 4.0, 5.0), outcome(2.0, 0.0, 2.5, 429, 0, error="full")]
    found = load.summary(outcomes)
    assert found["statuses"] == {"200": 2, "429": 1} and found["finished"] == 2 and found["errors"] == {"full": 1}
    assert found["seconds"] == 5.0 and found["answer_tokens_per_second"] == 4.4
    assert found["first"]["p50"] == 2.0 and found["between"]["p50"] == 1.0
    assert found["token"]["p50"] == pytest.approx(0.15) and found["whole"]["p50"] == 3.5
    assert "2 of 3 requests finished" in load.table(found) and "1 × full" in load.table(found)
    assert load.table(load.summary([])) == "no requests"


def test_an_answer_that_broke_off_is_not_whole():
    assert outcome(0.0, 1.0, 2.0).whole
    assert not outcome(0.0, 1.0, 2.0, error="the stream ended without [DONE]").whole
    part = outcome(0.0, 1.0, 2.0)
    part.finishes = {0: "length", 1: ""}
    assert not part.whole
