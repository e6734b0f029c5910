"""Find the words of a lexicon in texts, and count them near each other. data/filters/bias.py has the plain twin.

Axes: N documents, W words, V words of the lexicon, G groups, T topics, E terms of groups.
"""

from typing import NamedTuple

import numpy as np

from data.filters.compiled import compiled

CODES = 0x40000  # code points; those above are no parts of words

_HYPHEN, _APOSTROPHE, _CURLY, _PLUS = map(ord, "-'’+")
_PRIME, _OFFSET = np.uint64(0x100000001B3), np.uint64(0xCBF29CE484222325)  # of FNV-1a (Fowler, Noll and Vo) with 64 bits
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd


class Table(NamedTuple):
    """A lexicon. Lists of lists are one list, with int32 [… + 1] of where each begins.

    is_word: bool [CODES], whether a character is one of words
    codes, codes_at: uint32, the code points of the words, one after another;  slots: int32 [a power of two], a hash table of V
    sentiment: int8 [V], 1, −1 or 0;  topics, topics_at: int32, the topics of each word
    terms_at: int32, the terms that begin with each word, in the order in which they are tried
    group: int32 [E], of a term;  rest, rest_at: int32, the other words of each term
    """

    is_word: np.ndarray
    codes: np.ndarray
    codes_at: np.ndarray
    slots: np.ndarray
    sentiment: np.ndarray
    topics: np.ndarray
    topics_at: np.ndarray
    terms_at: np.ndarray
    group: np.ndarray
    rest: np.ndarray
    rest_at: np.ndarray


@compiled
def fill(codes, codes_at, slots):
    """Put the numbers of the words into the slots, which are all −1; there are more slots, and a power of two."""
    for word in range(len(codes_at) - 1):
        slot = _hash(codes, codes_at[word], codes_at[word + 1]) & (len(slots) - 1)
        while slots[slot] >= 0:
            slot = (slot + 1) & (len(slots) - 1)
        slots[slot] = word


@compiled
def find(codes, begin_N, table, words_N, word_W):
    """Write the number of each word of the texts, or −1 if it is not in the lexicon, and the words of each document.

    A word is what the regular expression "\\\\w+(?:[-'’]\\\\w+)*\\\\+?" finds. As many entries [W] as half of the code points
    are enough. Returns how many words there are.

    codes: uint32, in lower case; document n is codes[begin_N[n] : begin_N[n + 1] − 1].
    """
    w = 0
    for n in range(len(words_N)):
        i, stop, first = begin_N[n], begin_N[n + 1] - 1, w
        while i < stop:
            if not _is_word(codes, i, table.is_word):
                i += 1
                continue
            start = i
            while i < stop:
                if not _is_word(codes, i, table.is_word) and not (
                    (codes[i] == _HYPHEN or codes[i] == _APOSTROPHE or codes[i] == _CURLY)
                    and i + 1 < stop
                    and _is_word(codes, i + 1, table.is_word)
                ):
                    break
                i += 1
            if i < stop and codes[i] == _PLUS:
                i += 1
            word_W[w] = _number(codes, start, i, table)
            w += 1
        words_N[n] = w - first
    return w


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


@compiled
def _is_word(codes, i, is_word):
    return codes[i] < CODES and is_word[codes[i]]


@compiled
def _hash(codes, begin, end):
    hash = _OFFSET
    for i in range(begin, end):
        hash = (hash ^ np.uint64(codes[i])) * _PRIME
    return np.int64((hash ^ (hash >> np.uint64(32))) * _GOLDEN >> np.uint64(32))


@compiled
def _number(codes, begin, end, table):
    slot = _hash(codes, begin, end) & (len(table.slots) - 1)
    while table.slots[slot] >= 0:
        word = table.slots[slot]
        at, same = table.codes_at[word], table.codes_at[word + 1] - table.codes_at[word] == end - begin
        for k in range(end - begin):
            same = same and table.codes[at + k] == codes[begin + k]
        if same:
            return word
        slot = (slot + 1) & (len(table.slots) - 1)
    return -1
