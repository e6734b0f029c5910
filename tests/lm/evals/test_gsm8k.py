"""GSM8K: both ways in which lm-evaluation-harness finds the number."""

import pytest

from lm.evals.score import gsm8k as score

ITEMS = [
    {"question": "Janet's ducks …", "answer": "16 - 3 - 4 = <<16-3-4=9>>9\n#### 18"},
    {"question": "A house …", "answer": "80,000*1.5=<<80000*1.5=120000>>120,000\n#### 2,125"},
]


@pytest.mark.parametrize(
    "response, strict, flexible",
    [
        ("9 * 2 = 18\n#### 18", True, True),
        ("#### 18.", True, True),
        ("The answer is 18.", False, True),
        ("The answer is $18", False, True),
        ("It is 17. No, 18", False, True),
        ("#### 17\nNo: #### 18", False, True),  # strict takes the first
        ("#### 18\nQuestion: what is 2 + 2?", True, False),  # flexible takes the last
        ("####18", False, True),
        ("#### $18", False, True),
        ("#### 18.00", False, False),
        ("eighteen", False, False),
        ("-18", False, False),
        ("118", False, False),
        ("", False, False),
    ],
)
def test_exact_matches(response, strict, flexible):
    results, samples = score(ITEMS[:1], [{"id": 0, "response": response}])
    assert (samples[0]["strict_correct"], samples[0]["flexible_correct"]) == (strict, flexible)
    assert (results["exact_match_strict"], results["exact_match_flexible"]) == (strict, flexible)
    assert results["n"] == 1 and ("responses_without_number" in results["problems"]) == (response in ("eighteen", ""))


def test_thousands_are_one_number_with_or_without_a_comma():
    results, _ = score(ITEMS, [{"id": 1, "response": "#### 2125"}, {"id": "0", "response": "so #### 18"}])
    assert results["exact_match_strict"] == 1 and results["exact_match_strict_stderr"] == 0


def test_the_last_mark_of_a_solution_counts():
    results, _ = score([{"question": "…", "answer": "#### 17\n#### 18"}], [{"id": 0, "response": "#### 18"}])
    assert results["exact_match_strict"] == 1


def test_stderr_is_the_sample_deviation_over_the_root_of_n():
    results, _ = score(ITEMS * 2, [{"id": i, "response": "#### 18"} for i in range(4)])
    assert results["exact_match_strict"] == 0.5
    assert results["exact_match_strict_stderr"] == pytest.approx((4 * 0.25 / 3 / 4) ** 0.5)
    one, _ = score(ITEMS, [{"id": 0, "response": "#### 18"}])
    assert one["exact_match_strict_stderr"] is None and one["missing"] == 1


def test_an_item_without_a_number_is_malformed():
    results, _ = score([{"question": "…", "answer": "18"}, ITEMS[0]], [{"id": 1, "response": "#### 18"}])
    assert results["n"] == 1 and results["exact_match_strict"] == 1
    assert results["problems"]["malformed_items"] == {"n": 1, "examples": ["row 0: 'answer' has no number after '#### '"]}
