"""Count the words of a lexicon near each other. data/filters/bias.py has the plain twin.

Axes: N documents, W words, V words of the lexicon, G groups, T topics, E terms of groups.
"""

from typing import NamedTuple

import numpy as np

from data.filters.compiled import compiled


class Table(NamedTuple):
    """A lexicon. Lists of lists are one list, with int32 [… + 1] of where each begins.

    sentiment: int8 [V], 1, −1 or 0;  topics, topics_at: int32, the topics of each word
    terms_at: int32, the terms that begin with each word, in the order in which they are tried
    group: int32 [E], of a term;  rest, rest_at: int32, the other words of each term
    """

    sentiment: np.ndarray
    topics: np.ndarray
    topics_at: np.ndarray
    terms_at: np.ndarray
    group: np.ndarray
    rest: np.ndarray
    rest_at: np.ndarray


@compiled
def count(word_W, words_N, table, window, counts_NG, hits_NT):
    """Add up int32 [N, G, 3]: mentions of groups, positive and negative words near them; and [N, T]: words of topics."""
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
