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
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import UserError

WINDOW = 10  # words on each side
LEAST_TOPIC_WORDS = 3  # fewer say nothing of a topic
OTHER = "other"  # the topic of a document with fewer
Z = 1.959963984540054  # 97.5 % point of the normal distribution, for intervals of 95 %

_WORD = re.compile(r"\w+(?:[-'’]\w+)*\+?")
_OWN = Path(__file__).parent / "bias_words.yaml"
_COUNTS = ("mentions", "positive_words", "negative_words", "documents", "documents_positive", "documents_negative")


class Lexicon(NamedTuple):
    """Terms of groups, and words of sentiment and of topics."""

    groups: tuple[str, ...]  # "axis/group"
    terms: dict[str, tuple[tuple[tuple[str, ...], int], ...]]  # first word: the words after it and the group, longest first
    sentiment: dict[str, int]  # 1 or −1
    topics: dict[str, frozenset[str]]


@functools.cache
def load_lexicon(path: str | Path = _OWN) -> Lexicon:
    """Load a lexicon, a YAML file as bias_words.yaml beside this one. Raises: UserError."""
    import yaml

    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        identity = [(f"{axis}/{group}", terms) for axis, groups in said["identity"].items() for group, terms in groups.items()]
        terms: dict[str, list] = {}
        for number, (_, own) in enumerate(identity):
            for term in own:
                first, *rest = _WORD.findall(term.lower())
                terms.setdefault(first, []).append((tuple(rest), number))
        sentiment = {word: sign for name, sign in (("positive", 1), ("negative", -1)) for word in said["sentiment"][name]}
        topics = {name: frozenset(words) for name, words in said["topics"].items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        cure = "give a YAML file with identity (axis: group: terms), sentiment (positive, negative) and topics (name: words)"
        raise UserError(f"{path}: cannot read this lexicon ({error!r}); {cure}") from error
    ordered = {first: tuple(sorted(own, key=lambda one: (-len(one[0]), one))) for first, own in terms.items()}
    return Lexicon(tuple(name for name, _ in identity), ordered, sentiment, topics)


def bias_counts(texts: Sequence[str], lexicon: Lexicon | None = None, window: int = WINDOW) -> dict[str, np.ndarray]:
    """Return the additive table of a batch: int64 [groups] for each name, in the order of `lexicon.groups`.

    Returns:
        mentions: of the group's terms; the longest term counts, so "asian american" is no mention of "american".
        positive_words, negative_words: words near a mention. One that is near two mentions counts twice.
        documents, documents_positive, documents_negative: with a mention; with such a word near one.
    """
    lexicon = lexicon or load_lexicon()
    table = {name: np.zeros(len(lexicon.groups), np.int64) for name in _COUNTS}
    for text in texts:
        words = _WORD.findall(text.lower())
        at, group = _mentions(words, lexicon)
        if not len(at):
            continue
        sentiment = np.array([lexicon.sentiment.get(word, 0) for word in words])
        begin, end = np.maximum(at - window, 0), np.minimum(at + window + 1, len(words))
        here = {"mentions": np.ones(len(at), np.int64)}
        for name, sign in (("positive", 1), ("negative", -1)):
            until = np.concatenate(([0], np.cumsum(sentiment == sign)))
            here[f"{name}_words"] = until[end] - until[begin]
        sums = {name: np.bincount(group, values, len(lexicon.groups)).astype(np.int64) for name, values in here.items()}
        for name, values in sums.items():
            table[name] += values
        table["documents"] += sums["mentions"] > 0
        table["documents_positive"] += sums["positive_words"] > 0
        table["documents_negative"] += sums["negative_words"] > 0
    return table


def added(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sum of tables, name by name; a name that one of them lacks counts as 0 there."""
    total: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            total[name] = total[name] + value if name in total else value
    return dict(sorted(total.items()))


def bias_rates(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], lexicon: Lexicon | None = None
) -> list[dict[str, Any]]:
    """Return a row for each group that occurs, from its tables before and after curation, which only drops documents.

    Returns:
        group ("axis/group"); documents_before, documents_after; kept, the share of its documents that was kept;
        positive_before, positive_after, negative_before, negative_after: shares of its documents with such a word near a
        mention. Each share has its interval of 95 % in …_low and …_high; it is None without documents.
    """
    rows = []
    for number, group in enumerate((lexicon or load_lexicon()).groups):
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


def topics(texts: Sequence[str], lexicon: Lexicon | None = None) -> dict[str, np.ndarray]:
    """Return the columns topic, str [documents], and topic_words, int32: how many of its words occur, repetitions included.

    A document's topic is the one with most occurrences of its words, the first by name of several, "other" below three.
    """
    lexicon = lexicon or load_lexicon()
    names = sorted(lexicon.topics)
    of_word: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        for word in lexicon.topics[name]:
            of_word.setdefault(word, []).append(number)
    found, counts = [], np.zeros(len(texts), np.int32)
    for number, text in enumerate(texts):
        words = Counter(_WORD.findall(text.lower()))
        hits = np.zeros(len(names), np.int64)
        for word in words.keys() & of_word.keys():
            hits[of_word[word]] += words[word]
        best = int(hits.argmax())
        counts[number] = hits[best]
        found.append(names[best] if hits[best] >= LEAST_TOPIC_WORDS else OTHER)
    return {"topic": np.array(found, dtype=np.str_) if found else np.zeros(0, np.str_), "topic_words": counts}


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


def _mentions(words: Sequence[str], lexicon: Lexicon) -> tuple[np.ndarray, np.ndarray]:
    """Return where terms begin, int64 [mentions], and their groups. A word belongs to one term, the longest and first one."""
    at, group, reached = [], [], 0
    for place in [place for place, word in enumerate(words) if word in lexicon.terms]:
        if place < reached:
            continue
        for rest, number in lexicon.terms[words[place]]:
            if tuple(words[place + 1 : place + 1 + len(rest)]) == rest:
                at.append(place)
                group.append(number)
                reached = place + 1 + len(rest)
                break
    return np.array(at, np.int64), np.array(group, np.int64)
