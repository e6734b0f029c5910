"""The loop of data/filters/word_hashes.py that numba compiles; `plain_words` and `plain_hash` there are its plain twins.

Numba keeps compiled code and makes it anew after a change of this file, so constants of others are arguments.
"""

import numpy as np

from data.filters.compiled import compiled


@compiled
def words(codes, begin_N, kinds, values, base, separator, letter, deleted, hash_W, start_W, end_W, offset_N):
    """Write the words of documents: Σ_i values[c_i]·base^i mod 2^64 of each, its begin and end, and [N + 1] where each begins.

    codes: uint32; document n is codes[begin_N[n] : begin_N[n + 1] − 1].  kinds: uint8, values: uint64, of code points; the last
    entry is that of all higher ones.  separator, letter, deleted: the kinds; another one is a word by itself
    """
    word, most = 0, len(kinds) - 1
    for n in range(len(begin_N) - 1):
        offset_N[n] = word
        first, inside, power = begin_N[n], False, base
        for i in range(first, begin_N[n + 1] - 1):
            code = min(np.int64(codes[i]), most)
            kind = kinds[code]
            if kind == deleted:
                continue
            if kind == letter and inside:
                hash_W[word - 1] += values[code] * power
                power *= base
                end_W[word - 1] = i + 1 - first
            elif kind != separator:
                hash_W[word], start_W[word], end_W[word] = values[code], i - first, i + 1 - first
                power = base
                word += 1
            inside = kind == letter
    offset_N[len(begin_N) - 1] = word
