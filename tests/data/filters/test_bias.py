"""The bias audit: right counts, sums over batches, shares with intervals."""

import math
import random
from itertools import chain

import numpy as np
import pytest
import yaml

from data.filters import bias
from data.filters.bias import audited, balance, bias_rates, label_counts, load_lexicon, table, topics_of, wilson
from data.recipe.finish import summed
from lm.errors import UserError
from tests.data.filters.plain_words import plain_words

LISTS = yaml.safe_load(bias._LISTS.read_text(encoding="utf-8"))
SENTIMENT = {word: sign for name, sign in (("positive", 1), ("negative", -1)) for word in LISTS["sentiment"][name]}
TOPICS = dict(sorted(LISTS["topics"].items()))
TEXTS = [
    "The woman was kind and brave. " + "word " * 20 + "A terrible day.",
    "Her son is lazy; he lied.",
    "An Asian American leader, an American, and African Americans who won.",
    "Nothing of the kind is said here.",
    "",
]


def words_of(text: str) -> list[str]:
    return [word for word, _, _ in plain_words(text)]


# Words of a term -> number of its group, the longest terms first.
TERMS = {
    tuple(words_of(term)): number
    for number, own in enumerate(own for groups in LISTS["identity"].values() for own in groups.values())
    for term in own
}


def plainly(text: str, window: int) -> tuple[np.ndarray, list[int]]:
    """Return the counts [groups, 3] and the hits [topics] of one document."""
    words, reached = words_of(text), 0
    counts = np.zeros((len(load_lexicon().groups), 3), int)
    for place in range(len(words)):
        terms = [term for term in TERMS if tuple(words[place : place + len(term)]) == term] if place >= reached else []
        if terms:
            near = [SENTIMENT.get(word) for word in words[max(place - window, 0) : place + window + 1]]
            longest = max(terms, key=len)
            counts[TERMS[longest]] += (1, near.count(1), near.count(-1))
            reached = place + len(longest)
    return counts, [sum(word in own for word in words) for own in TOPICS.values()]


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


def test_compiled_counts_are_the_plain_ones():
    from pydoc_data.topics import topics as pages

    words = sorted({*SENTIMENT, *chain(*TERMS, *TOPICS.values()), "people", "the", "İs", "ΟΔΟΣ", "x-y", "lgbtq+", "don’t"})
    some = random.Random(0)
    texts = ["".join(some.choice(words) + some.choice([" ", "-", "'", "\n", ", ", "+"]) for _ in range(200)) for _ in range(40)]
    texts += [*TEXTS, *list(pages.values())[:20], " ".join(f"{word} people" for word in words).upper()]
    for window in (1, 3):
        found = audited(texts, window)
        for n, text in enumerate(texts):
            counts, hits = plainly(text, window)
            assert (found.counts[n] == counts).all() and found.hits[n].tolist() == hits
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
    topics = topics_of(audited(texts).hits)
    assert topics.tolist() == ["sport", "education", "other", "other"]
    rows = balance(label_counts(topics), label_counts(topics[:2]))
    assert [row["label"] for row in rows] == ["other", "education", "sport"]
    assert [row["kept"] for row in rows] == [0, 1, 1] and [row["share_after"] for row in rows] == [0, 0.5, 0.5]
    assert balance({}, {}) == [] and len(topics_of(audited([]).hits)) == 0


def test_words_of_sentiment_and_topics_are_single_ones():
    for word in chain(SENTIMENT, *TOPICS.values()):
        assert words_of(word) == [word]
