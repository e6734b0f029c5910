"""Read texts with the automaton of a language model and add up what its n-grams say of the languages.

The plain twin is `LanguageIdentifier.classify` of py3langid.
"""

import numpy as np

from data.filters.compiled import compiled

_TOGETHER = 16  # texts read in turns: the table is larger than a cache, so that waits for memory overlap


@compiled
def read(data, begin_N, end_N, next_state, row, feature, feature_B):
    """Write the n-gram that the automaton emits after each byte, int32, or −1.

    data: uint8, the UTF-8 of all texts;  next_state, row, feature: see `Model` of data/filters/language.py
    """
    states = np.empty(_TOGETHER, np.int64)
    for first in range(0, len(end_N), _TOGETHER):
        texts = min(_TOGETHER, len(end_N) - first)
        longest = 0
        for k in range(texts):
            states[k] = 0
            longest = max(longest, end_N[first + k] - begin_N[first + k])
        for step in range(longest):
            for k in range(texts):
                i = begin_N[first + k] + step
                if i < end_N[first + k]:
                    states[k] = next_state[row[states[k]] + data[i]]
                    feature_B[i] = feature[states[k]]


@compiled
def score(feature_B, begin_N, end_N, likelihood, log_counts, score_NL, found_N):
    """Add Σ_f log(1 + c_f) · log P(f | l) to float32 [N, L], and write how many different n-grams f occur, int64 [N].

    log_counts: float32, log(1 + c) of each count c
    """
    counts, some = np.zeros(len(likelihood), np.int32), np.empty(len(likelihood), np.int32)
    for n in range(len(end_N)):
        found = 0
        for i in range(begin_N[n], end_N[n]):
            f = feature_B[i]
            if f >= 0:
                if counts[f] == 0:
                    some[found] = f
                    found += 1
                counts[f] += 1
        for k in range(found):
            f = some[k]
            weight, counts[f] = log_counts[counts[f]], 0
            for one in range(likelihood.shape[1]):
                score_NL[n, one] += weight * likelihood[f, one]
        found_N[n] = found
