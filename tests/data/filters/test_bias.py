"""The bias audit: right counts, sums over batches, shares with intervals."""

import math
import random
from itertools import chain

import numpy as np
import pytest

from data.filters.bias import audited, balance, bias_rates, label_counts, load_lexicon, plain_audited, table, topics_of, wilson
from data.filters.word_hashes import plain_words
from data.recipe.finish import summed
from lm.errors import UserError

TEXTS = [
    "The woman was kind and brave. " + "word " * 20 + "A terrible day.",
    "Her son is lazy; he lied.",
    "An Asian American leader, an American, and African Americans who won.",
    "Nothing of the kind is said here.",
    "",
]


def bias_counts(texts: list[str], *options, **named) -> dict[str, np.ndarray]:
    return table(audited(texts, *options, **named).counts)


def group(name: str) -> int:
    return load_lexicon().groups.index(name)


def test_words_near_a_mention_are_counted():
    counts = bias_counts(TEXTS)
    women, men = group("gender/women"), group("gender/men")
    assert (counts["mentions"][women], counts["positive_words"][women], counts["negative_words"][women]) == (2, 2, 2)
    assert (counts["documents"][women], counts["documents_positive"][women], counts["documents_negative"][women]) == (2, 1, 1)
    assert (counts["mentions"][men], counts["positive_words"][men], counts["negative_words"][men]) == (2, 0, 4)
    assert all(values.dtype == np.int64 for values in counts.values())


def test_the_longest_term_counts():
    counts = bias_counts(TEXTS)
    names = {name: int(counts["mentions"][group(f"origin/{name}")]) for name in ("asian", "american", "black", "african")}
    assert names == {"asian": 1, "american": 1, "black": 1, "african": 0}


def test_a_narrow_window_sees_less():
    near = bias_counts(TEXTS, window=2)
    women = group("gender/women")
    assert near["positive_words"][women] == 1 and bias_counts(TEXTS, window=50)["negative_words"][women] == 3


def test_windows_agree_with_a_plain_count():
    lexicon = load_lexicon()
    words = "he was good and bad , she a good good hero ; the poor man did a bad thing to his good mother".split()
    for window in (1, 3, 7):
        counts = bias_counts([" ".join(words)], window)
        only = [word for word in words if word.isalpha()]
        for name, sign in (("positive", 1), ("negative", -1)):
            expected = np.zeros(len(lexicon.groups), int)
            for place, word in enumerate(only):
                if word in lexicon.terms:
                    near = only[max(0, place - window) : place + window + 1]
                    expected[lexicon.terms[word][-1][1]] += sum(lexicon.sentiment.get(other) == sign for other in near)
            assert counts[f"{name}_words"].tolist() == expected.tolist()


def test_compiled_counts_are_the_plain_ones():
    from pydoc_data.topics import topics as pages

    lexicon = load_lexicon()
    words = sorted(
        {
            *lexicon.sentiment,
            *lexicon.terms,
            *chain(*lexicon.topics.values()),
            "american",
            "people",
            "the",
            "İs",
            "ΟΔΟΣ",
            "x-y",
            "lgbtq+",
            "don’t",
        }
    )
    some = random.Random(0)
    texts = ["".join(some.choice(words) + some.choice([" ", "-", "'", "\n", ", ", "+"]) for _ in range(200)) for _ in range(40)]
    texts += [*TEXTS, *pages.values(), " ".join(f"{word} people" for word in words).upper()]
    found = audited(texts, window=3)
    for n, text in enumerate(texts):
        plain = plain_audited(text, window=3)
        assert (found.counts[n] == plain.counts[0]).all() and (found.hits[n] == plain.hits[0]).all()
    assert (found.counts.sum(axis=0) > 0).any(axis=1).sum() > 20 and (found.hits.sum(axis=0) > 0).all()


def test_tables_add_up_over_batches():
    whole, parts = bias_counts(TEXTS), summed([bias_counts(TEXTS[:1]), bias_counts(TEXTS[1:4]), bias_counts(TEXTS[4:])])
    assert list(whole) == list(parts) and all((whole[name] == parts[name]).all() for name in whole)
    labels = ["a", "b", "a", "c"]
    assert summed([label_counts(labels[:2]), label_counts(labels[2:])]) == label_counts(labels) == {"a": 2, "b": 1, "c": 1}
    assert not any(values.any() for values in bias_counts([]).values())


def test_rates_compare_before_and_after():
    rows = {row["group"]: row for row in bias_rates(bias_counts(TEXTS), bias_counts(TEXTS[:1]))}
    women = rows["gender/women"]
    assert (women["documents_before"], women["documents_after"], women["kept"]) == (2, 1, 0.5)
    assert (women["positive_before"], women["positive_after"], women["negative_before"], women["negative_after"]) == (
        0.5,
        1,
        0.5,
        0,
    )
    assert women["kept_low"] < 0.5 < women["kept_high"]
    assert rows["gender/men"]["kept"] == 0 and rows["gender/men"]["positive_after"] is None
    assert "religion/muslim" not in rows
    with pytest.raises(UserError, match="not of one corpus"):
        bias_rates(bias_counts(TEXTS[:1]), bias_counts(TEXTS))


def test_wilson_is_the_solution_of_its_equation():
    for hits, n in ((0, 5), (1, 5), (5, 5), (40, 100)):
        low, high = wilson(hits, n)
        for end in (low, high):
            if 0 < end < 1:
                assert abs(hits / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5)
        assert 0 <= low <= hits / n <= high <= 1


def test_topics_and_their_balance():
    texts = [
        "The team won the match; the coach praised every player of the league.",
        "Students of the university sat an exam after the lecture.",
        "The team has a coach.",
        "",
    ]
    columns = topics_of(audited(texts).hits)
    assert columns["topic"].tolist() == ["sport", "education", "other", "other"]
    assert columns["topic_words"].tolist() == [5, 4, 2, 0]
    rows = balance(label_counts(columns["topic"]), label_counts(columns["topic"][:2]))
    assert [row["label"] for row in rows] == ["other", "education", "sport"]
    assert [row["kept"] for row in rows] == [0, 1, 1] and [row["share_after"] for row in rows] == [0, 0.5, 0.5]
    assert balance({}, {}) == [] and len(topics_of(audited([]).hits)["topic"]) == 0


def test_words_of_sentiment_and_topics_are_single_ones():
    lexicon = load_lexicon()
    for word in chain(lexicon.sentiment, *lexicon.topics.values()):
        assert [one for one, _, _ in plain_words(word)] == [word]
