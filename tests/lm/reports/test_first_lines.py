"""The first lines of the pages of curation and safety: the result in a sentence, and the data."""

import pytest

from lm.reports import curate, safety

FUNNEL = {"web": {"en": {"kept": [6, 60], "language": [1, 5]}, "fr": {"language": [3, 35]}}, "books": {"en": {"kept": [2, 20]}}}
RULES = [{"name": "language", "rules": [{"column": "language", "told": "language in en"}]}]
CORPUS = {"config": {"input": "web=a/*.gz,books=b"}, "recipe": RULES, "figures": {"funnel": FUNNEL}}


def test_a_corpus_says_what_was_kept_and_which_rule_dropped_most():
    assert curate.verdict(curate.totals(FUNNEL), curate.steps(CORPUS)) == (
        "8 of 12 documents were kept (66.7 %), with 66.7 % of the bytes. The stage language dropped most, 4: a document stays "
        "if language in en."
    )
    assert curate.verdict({"all": [0, 0], "kept": [0, 0]}, []) == "0 of 0 documents were kept (0 %), with 0 % of the bytes."


def test_a_corpus_counts_each_source_over_its_languages():
    assert curate.sources(CORPUS) == [
        {"source": "books", "files": "b", "all": [2, 20], "kept": [2, 20]},
        {"source": "web", "files": "a/*.gz", "all": [10, 100], "kept": [6, 60]},
    ]
    assert curate.tokens(None) is None
    assert curate.tokens({"sources": {"a": {"train": {"tokens_packed": 5}, "valid": {"tokens_packed": 2}}}}) == 7


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_safety_loop_says_what_it_trained_on(rounds):
    found = {"rounds": [{"learn": 600, "pairs": 500}] * rounds, "failing": 40}
    notes = safety.data_notes({"config": {"safety": {"prompts": "harm.jsonl"}}, "safety": found})
    examples = {
        1: "600 answers and 500 pairs to train on, in 1 round.",
        2: "1,200 answers and 1,000 pairs to train on, in 2 rounds.",
    }
    left = "Of the attacks on these requests, 40 still succeed (failing.jsonl)."
    assert notes == ["Requests from harm.jsonl.", examples[rounds], left]
