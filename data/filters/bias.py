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
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.filters.compiled import terms
from data.filters.word_hashes import plain_words, words
from lm.errors import UserError

WINDOW = 10  # words on each side
MIN_TOPIC_WORDS = 3  # fewer say nothing of a topic
OTHER = "other"  # the topic of a document with fewer
Z = 1.959963984540054  # 97.5 % point of the normal distribution, for intervals of 95 %

_COUNTS = ("mentions", "positive_words", "negative_words", "documents", "documents_positive", "documents_negative")


class Lexicon(NamedTuple):
    """Terms of groups, and words of sentiment and of topics."""

    groups: tuple[str, ...]  # "axis/group"
    terms: dict[str, tuple[tuple[tuple[str, ...], int], ...]]  # first word: the words after it and the group, longest first
    sentiment: dict[str, int]  # 1 or −1
    topics: dict[str, frozenset[str]]
    hash_V: np.ndarray  # uint64, of all words, ascending
    table: terms.Table  # the same for compiled loops, with words by their places in hash_V


@functools.cache
def load_lexicon() -> Lexicon:
    """Return the lexicon of bias_words.yaml beside this file. Words of sentiment and of topics must be single ones."""
    import yaml

    lists = yaml.safe_load((Path(__file__).parent / "bias_words.yaml").read_text(encoding="utf-8"))
    identity = [(f"{axis}/{group}", own) for axis, groups in lists["identity"].items() for group, own in groups.items()]
    terms: dict[str, list] = {}
    for number, (_, own) in enumerate(identity):
        for term in own:
            first, *rest = _words(term)
            terms.setdefault(first, []).append((tuple(rest), number))
    sentiment = {word: sign for name, sign in (("positive", 1), ("negative", -1)) for word in lists["sentiment"][name]}
    topics = {name: frozenset(own) for name, own in lists["topics"].items()}
    ordered = {first: tuple(sorted(own, key=lambda one: (-len(one[0]), one))) for first, own in terms.items()}
    return Lexicon(tuple(name for name, _ in identity), ordered, sentiment, topics, *_table(ordered, sentiment, topics))


class Audited(NamedTuple):
    """Counts of a batch of documents.

    counts: int32 [documents, groups, 3]: mentions of the group's terms, positive and negative words near one. The longest term
        counts, so "asian american" is no mention of "american". A word that is near two mentions counts twice.
    hits: int32 [documents, topics], how many words of the topic occur, repetitions included; topics in the order of their names
    """

    counts: np.ndarray
    hits: np.ndarray


def audited(texts: Sequence[str], window: int = WINDOW) -> Audited:
    """Return the counts of all that the audit looks at, in one pass over the texts. `plain_audited` is the plain twin."""
    lexicon, split = load_lexicon(), words(texts)
    place_W = np.minimum(np.searchsorted(lexicon.hash_V, split.hash), len(lexicon.hash_V) - 1)
    word_W = np.where(lexicon.hash_V[place_W] == split.hash, place_W, -1).astype(np.int32)
    counts = np.zeros((len(texts), len(lexicon.groups), 3), np.int32)
    hits = np.zeros((len(texts), len(lexicon.topics)), np.int32)
    terms.count(word_W, np.diff(split.offsets), lexicon.table, window, counts, hits)
    return Audited(counts, hits)


def plain_audited(text: str, window: int = WINDOW) -> Audited:
    """Return the counts of one document, int32 [1, groups, 3] and [1, topics]: the twin of `audited`."""
    lexicon, words = load_lexicon(), _words(text)
    counts = np.zeros((1, len(lexicon.groups), 3), np.int32)
    for place, group in _mentions(words, lexicon):
        near = [lexicon.sentiment.get(word) for word in words[max(place - window, 0) : place + window + 1]]
        counts[0, group] += (1, near.count(1), near.count(-1))
    hits = [sum(word in lexicon.topics[name] for word in words) for name in sorted(lexicon.topics)]
    return Audited(counts, np.array([hits], np.int32))


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


def topics_of(hits: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns topic, str [documents], and topic_words, int32: how many of its words occur, repetitions included.

    hits: of `Audited`. A document's topic is the one with most occurrences of its words, the first by name of several, "other"
    below three.
    """
    names = np.array([*sorted(load_lexicon().topics), OTHER])
    best = hits.argmax(axis=1)
    most = np.take_along_axis(hits, best[:, None], axis=1)[:, 0]
    return {"topic": names[np.where(most >= MIN_TOPIC_WORDS, best, len(names) - 1)], "topic_words": most}


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


def _mentions(words: Sequence[str], lexicon: Lexicon) -> Iterator[tuple[int, int]]:
    """Yield where a term begins, and its group. A word belongs to one term, the longest and first one."""
    reached = 0
    for place, word in enumerate(words):
        for rest, group in lexicon.terms.get(word, ()) if place >= reached else ():
            if tuple(words[place + 1 : place + 1 + len(rest)]) == rest:
                yield place, group
                reached = place + 1 + len(rest)
                break


def _words(text: str) -> list[str]:
    return [word for word, _, _ in plain_words(text)]


def _table(
    ordered: Mapping[str, tuple], sentiment: Mapping[str, int], topics: Mapping[str, frozenset[str]]
) -> tuple[np.ndarray, terms.Table]:
    """Return the hashes of a lexicon's words, and the lexicon for the compiled loop."""
    rests = {word for own in ordered.values() for rest, _ in own for word in rest}
    every = sorted({*ordered, *rests, *sentiment, *chain.from_iterable(topics.values())})
    hash_V = words(every).hash
    known = [every[k] for k in np.argsort(hash_V)]
    number = {word: k for k, word in enumerate(known)}
    own = [ordered.get(word, ()) for word in known]
    table = terms.Table(
        np.array([sentiment.get(word, 0) for word in known], np.int8),
        *_flat([[k for k, name in enumerate(sorted(topics)) if word in topics[name]] for word in known]),
        _flat([[0] * len(some) for some in own])[1],
        np.array([group for some in own for _, group in some], np.int32),
        *_flat([[number[word] for word in rest] for some in own for rest, _ in some]),
    )
    return np.sort(hash_V), table


def _flat(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the concatenation of lists, and int32 [lists + 1], where each begins."""
    at = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    return np.fromiter(chain.from_iterable(lists), np.int32, int(at[-1])), at
