"""Audit a corpus for bias: what is said near identity terms, and how curation shifts groups and topics.

A word within `WINDOW` words of an identity term co-occurs with it (Bordia and Bowman 2019, "Identifying and Reducing Gender
Bias in Word-Level Language Models", use windows of words, too). For each group, documents are counted that mention it, and
those where positive and where negative words co-occur with a mention.

Counts are tables that add up: over batches, shards and workers. The tables of the corpus before and after curation become
shares with Wilson intervals. The unit is the document, since the mentions inside one are not independent.

Lists of words miss irony, negation and context. They are the same for all groups, and before and after, so read differences,
not levels.
"""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.filters.compiled import compiled
from data.filters.word_hashes import words
from lm.errors import UserError

WINDOW = 10  # words on each side
MIN_TOPIC_WORDS = 3  # fewer say nothing of a topic
OTHER = "other"  # the topic of a document with fewer
Z = 1.959963984540054  # 97.5 % point of the normal distribution, for intervals of 95 %

_LISTS = Path(__file__).parent / "bias_words.yaml"
_COUNTS = ("mentions", "positive_words", "negative_words", "documents", "documents_positive", "documents_negative")


class Table(NamedTuple):
    """A lexicon of V words, E terms of groups. Lists of lists are one list, with int32 [… + 1] of where each begins.

    sentiment: int8 [V], 1, −1 or 0;  topics, topics_at: int32, the topics of each word
    terms_at: int32, the terms that begin with each word, the longest first
    group: int32 [E], of a term;  rest, rest_at: int32, the other words of each term
    """

    sentiment: np.ndarray
    topics: np.ndarray
    topics_at: np.ndarray
    terms_at: np.ndarray
    group: np.ndarray
    rest: np.ndarray
    rest_at: np.ndarray


class Lexicon(NamedTuple):
    """Terms of groups, and words of sentiment and of topics."""

    groups: list[str]  # "axis/group"
    topics: list[str]  # sorted
    hash_V: np.ndarray  # uint64, of all words, ascending; the table has words by their places here
    table: Table


@functools.cache
def load_lexicon() -> Lexicon:
    """Return the lexicon of bias_words.yaml beside this file. Words of sentiment and of topics must be single ones."""
    import yaml

    lists = yaml.safe_load(_LISTS.read_text(encoding="utf-8"))
    groups = {f"{axis}/{group}": own for axis, groups in lists["identity"].items() for group, own in groups.items()}
    topics, signs = dict(sorted(lists["topics"].items())), {"positive": 1, "negative": -1}
    every = sorted({*chain(*groups.values(), *topics.values(), *(lists["sentiment"][name] for name in signs))})
    split = words(every)
    hash_V, place_W = np.unique(split.hash, return_inverse=True)
    places = dict(zip(every, map(np.ndarray.tolist, np.split(place_W, split.offsets[1:-1]))))
    terms = sorted(
        (places[term][0], -len(places[term]), places[term], k) for k, own in enumerate(groups.values()) for term in own
    )
    own_topics: list[list[int]] = [[] for _ in hash_V]
    for number, own in enumerate(topics.values()):
        for word in set(own):
            own_topics[places[word][0]].append(number)
    sentiment = np.zeros(len(hash_V), np.int8)
    for name, sign in signs.items():
        sentiment[[places[word][0] for word in lists["sentiment"][name]]] = sign
    table = Table(
        sentiment,
        *_flat(own_topics),
        np.searchsorted([first for first, *_ in terms], np.arange(len(hash_V) + 1)).astype(np.int32),
        np.array([group for *_, group in terms], np.int32),
        *_flat([whole[1:] for _, _, whole, _ in terms]),
    )
    return Lexicon(list(groups), list(topics), hash_V, table)


def _flat(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the concatenation of lists, and int32 [lists + 1], where each begins."""
    return np.array([*chain.from_iterable(lists)], np.int32), np.cumsum([0, *map(len, lists)], dtype=np.int32)


class Audited(NamedTuple):
    """Counts of a batch of documents.

    counts: int32 [documents, groups, 3]: mentions of the group's terms, positive and negative words near one. The longest term
        counts, so "asian american" is no mention of "american". A word that is near two mentions counts twice.
    hits: int32 [documents, topics], how many words of the topic occur, repetitions included; topics in the order of their names
    """

    counts: np.ndarray
    hits: np.ndarray


def audited(texts: Sequence[str], window: int = WINDOW) -> Audited:
    """Return the counts of all that the audit looks at, in one pass over the texts."""
    lexicon, split = load_lexicon(), words(texts)
    place_W = np.minimum(np.searchsorted(lexicon.hash_V, split.hash), len(lexicon.hash_V) - 1)
    word_W = np.where(lexicon.hash_V[place_W] == split.hash, place_W, -1).astype(np.int32)
    counts = np.zeros((len(texts), len(lexicon.groups), 3), np.int32)
    hits = np.zeros((len(texts), len(lexicon.topics)), np.int32)
    _count(word_W, np.diff(split.offsets), lexicon.table, window, counts, hits)
    return Audited(counts, hits)


@compiled
def _count(word_W, words_N, table, window, counts_NG, hits_NT):
    """Add up int32 [documents, groups, 3]: mentions, positive and negative words near them; [documents, topics]."""
    longest, start = 0, 0
    for n in range(len(words_N)):
        longest = max(longest, words_N[n])
    positive, negative = np.zeros(longest + 1, np.int32), np.zeros(longest + 1, np.int32)  # before each word
    for n in range(len(words_N)):
        words, reached = words_N[n], 0
        for w in range(words):
            word = word_W[start + w]
            positive[w + 1], negative[w + 1] = positive[w], negative[w]
            if word >= 0:
                positive[w + 1] += table.sentiment[word] > 0
                negative[w + 1] += table.sentiment[word] < 0
                for k in range(table.topics_at[word], table.topics_at[word + 1]):
                    hits_NT[n, table.topics[k]] += 1
        for w in range(words):
            word = word_W[start + w]
            if word < 0 or w < reached:
                continue
            for term in range(table.terms_at[word], table.terms_at[word + 1]):
                size = table.rest_at[term + 1] - table.rest_at[term]
                same = w + size < words
                for k in range(size):
                    same = same and word_W[start + w + 1 + k] == table.rest[table.rest_at[term] + k]
                if same:
                    begin, end, group = max(w - window, 0), min(w + window + 1, words), table.group[term]
                    counts_NG[n, group, 0] += 1
                    counts_NG[n, group, 1] += positive[end] - positive[begin]
                    counts_NG[n, group, 2] += negative[end] - negative[begin]
                    reached = w + 1 + size
                    break
        start += words


def table(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the additive table of documents: int64 [groups] for each name, in the order of `Lexicon.groups`.

    counts: of `Audited`.
    Returns:
        mentions, positive_words, negative_words: sums of the counts.
        documents, documents_positive, documents_negative: with a mention; with such a word near one.
    """
    sums, documents = counts.sum(axis=0, dtype=np.int64), (counts > 0).sum(axis=0, dtype=np.int64)
    return dict(zip(_COUNTS, np.concatenate([sums.T, documents.T])))


def bias_rates(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a row for each group that occurs, from its tables before and after curation, which only drops documents.

    Returns:
        group ("axis/group"); documents_before, documents_after; kept, the share of its documents that was kept;
        positive_before, positive_after, negative_before, negative_after: shares of its documents with such a word near a
        mention. Each share has its interval of 95 % in …_low and …_high; it is None without documents.
    """
    rows = []
    for number, group in enumerate(load_lexicon().groups):
        old, new = ({name: int(table[name][number]) for name in _COUNTS} for table in (before, after))
        if not old["documents"] and not new["documents"]:
            continue
        row = {"group": group, "documents_before": old["documents"], "documents_after": new["documents"]}
        row |= _share("kept", new["documents"], old["documents"])
        for sign in ("positive", "negative"):
            for name, counts in (("before", old), ("after", new)):
                row |= _share(f"{sign}_{name}", counts[f"documents_{sign}"], counts["documents"])
        rows.append(row)
    return rows


def topics_of(hits: np.ndarray) -> np.ndarray:
    """Return the topic of each document, str: the one with most occurrences of its words, the first by name of several.

    hits: of `Audited`. Below three the topic is "other".
    """
    best = np.where(hits.max(axis=1) >= MIN_TOPIC_WORDS, hits.argmax(axis=1), -1)
    return np.array([*load_lexicon().topics, OTHER])[best]


def label_counts(labels: Sequence[str]) -> dict[str, int]:
    """Return the additive table {label: documents} of a batch. Labels are topics, domains, languages or any other grouping."""
    return dict(sorted(Counter(map(str, labels)).items()))


def balance(before: Mapping[str, int], after: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row for each label, the most frequent before first.

    Returns:
        label; documents_before, documents_after; share_before and share_after of all documents; kept, the share of the label's
        documents that was kept. Each share has its interval of 95 % in …_low and …_high; it is None without documents.
    """
    all_before, all_after = sum(before.values()), sum(after.values())
    rows = []
    for label in sorted(before.keys() | after.keys(), key=lambda label: (-before.get(label, 0), label)):
        old, new = before.get(label, 0), after.get(label, 0)
        row = {"label": label, "documents_before": old, "documents_after": new}
        row |= _share("share_before", old, all_before) | _share("share_after", new, all_after) | _share("kept", new, old)
        rows.append(row)
    return rows


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the score interval of 95 % of a share (Wilson 1927): all p with |hits/n − p| ≤ z·√(p(1−p)/n)."""
    share, scale = hits / n, 1 + Z * Z / n
    centre = (share + Z * Z / (2 * n)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def _share(name: str, hits: int, n: int) -> dict[str, float | None]:
    if not n:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    if hits > n:
        raise UserError(f"{name}: {hits} documents of {n}: the tables are not of one corpus before and after curation")
    low, high = wilson(hits, n)
    return {name: hits / n, f"{name}_low": low, f"{name}_high": high}
