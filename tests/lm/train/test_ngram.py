"""The n-gram baselines: proper distributions, equal to a slow twin, right on a source whose entropy is known."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from lm.errors import UserError
from lm.train import ngram

TEXTS = [
    b"the cat sat on the mat, and the dog sat on the cat; the end",
    b"",
    b"a man, a plan, a canal: panama",
    bytes(range(250, 256)) + b"\x00\x00\x01",
    b"then the other cat sat there, and that was that",
] * 3 + [b"x"]


def fit(texts, order):
    return ngram.estimate(ngram.count(texts, order))


def bits_per_byte(model, texts):
    return ngram.bits_per_byte(model, ngram.count(texts, len(model)))


def window(context, byte, order):
    """The key of a byte after a context, which is padded at its start."""
    symbols = ([ngram.PAD] * order + list(context))[len(context) + 1 :]
    return sum(symbol << ngram.BITS * i for i, symbol in enumerate([byte, *symbols[::-1]]))


def twin(texts, order):
    """Modified Kneser-Ney over dictionaries of tuples: the equations of `ngram.estimate`, read aloud."""
    tables = {order: Counter()}
    for text in texts:
        symbols = (ngram.PAD,) * (order - 1) + tuple(text)
        tables[order].update(symbols[i : i + order] for i in range(len(text)))
    for n in range(order - 1, 0, -1):
        tables[n] = Counter(window[1:] for window in tables[n + 1])
    followers = {n: defaultdict(list) for n in tables}
    discount = {}
    for n, table in tables.items():
        for window, c in table.items():
            followers[n][window[:-1]].append(c)
        n1, n2, n3, n4 = (sum(c == i for c in table.values()) for i in (1, 2, 3, 4))
        discount[n] = [0, 0.5, 1, 1.5]
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            d = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            if all(0 < d[i] <= i for i in (1, 2, 3)):
                discount[n] = d

    def p(context, byte):
        n = len(context) + 1
        shorter = p(context[1:], byte) if context else 1 / 256
        seen = followers[n].get(context)
        if not seen:
            return shorter
        d, c = discount[n], tables[n][(*context, byte)]
        backoff = sum(d[min(x, 3)] for x in seen) / sum(seen)
        return (c - d[min(c, 3)]) / sum(seen) + backoff * shorter

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
def test_equals_the_dictionary_twin_and_sums_to_one(order):
    model, p = fit(TEXTS, order), twin(TEXTS, order)
    for context in [b"", b"t", b"the c", b"sat on t", b"\xff\x00", b"never seen", b"panama"]:
        keys = np.array([window(context, byte, order) for byte in range(256)], np.uint64)
        ours = ngram.probabilities(model, keys)
        padded = ((ngram.PAD,) * order + tuple(context))[len(context) + 1 :]
        theirs = [p(padded, byte) for byte in range(256)]
        assert ours.sum() == pytest.approx(1, abs=1e-12)
        assert (ours > 0).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_bits_per_byte_equals_the_twin():
    held_out = [b"the cat and the man sat", b"canal \xfe"]
    p, bits = twin(TEXTS, 3), 0
    for text in held_out:
        symbols = (ngram.PAD, ngram.PAD, *text)
        bits -= sum(math.log2(p(symbols[i : i + 2], byte)) for i, byte in enumerate(text))
    expected = bits / sum(map(len, held_out))
    assert bits_per_byte(fit(TEXTS, 3), held_out) == pytest.approx(expected, rel=1e-12)


def test_the_discounts_are_those_of_the_formula():
    # n1 … n4 = 8, 4, 2, 1: Y = 8/16, so D = 1 - 2·½·4/8, 2 - 3·½·2/4, 3 - 4·½·1/2.
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 5])
    np.testing.assert_allclose(ngram.discounts(counts), [0, 0.5, 1.25, 2])
    np.testing.assert_allclose(ngram.discounts(np.array([7, 9])), [0, 0.5, 1, 1.5])


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_do_not_change_the_counts(chunk):
    whole, merged = ngram.count(TEXTS, 5), ngram.count(TEXTS, 5, chunk=chunk)
    np.testing.assert_array_equal(whole.keys_U, merged.keys_U)
    np.testing.assert_array_equal(whole.counts_U, merged.counts_U)
    assert whole.counts_U.sum() == sum(map(len, TEXTS))


@pytest.mark.parametrize("order", [1, 3, 4])
def test_long_windows_give_the_counts_of_short_ones(order):
    direct, shortened = ngram.count(TEXTS, order), ngram.shorten(ngram.count(TEXTS, 5), order)
    np.testing.assert_array_equal(direct.keys_U, shortened.keys_U)
    np.testing.assert_array_equal(direct.counts_U, shortened.counts_U)


def test_a_markov_source_is_learnt_down_to_its_entropy():
    rng = np.random.default_rng(0)
    step = np.array([[0.7, 0.1, 0.1, 0.1], [0.05, 0.05, 0.45, 0.45], [0.25] * 4, [0.9, 0.1, 0, 0]])
    stationary = np.linalg.matrix_power(step, 200)[0]
    logs = np.log2(step, out=np.zeros_like(step), where=step > 0)
    rate = -stationary @ (step * logs).sum(1)
    marginal = -stationary @ np.log2(stationary)

    def sample(length):
        state, states = 0, []
        for u in rng.random(length):
            state = min(int(np.searchsorted(step[state].cumsum(), u, side="right")), 3)
            states.append(state)
        return bytes(b"acgt"[s] for s in states)

    results = ngram.baselines([sample(150_000)], [sample(50_000)], orders=(1, 2, 4))
    assert list(results) == ["unigram", "2-gram", "4-gram"]
    assert results["unigram"] == pytest.approx(marginal, abs=0.02)
    assert results["2-gram"] == pytest.approx(rate, abs=0.02)
    assert results["4-gram"] == pytest.approx(rate, abs=0.02)


def test_baselines_read_once_report_progress_and_equal_separate_fits():
    seen = []
    results = ngram.baselines(iter(TEXTS), iter(TEXTS[:3]), progress=seen.append)
    assert sum(seen) == sum(map(len, TEXTS)) + sum(map(len, TEXTS[:3]))
    assert results == {
        name: pytest.approx(bits_per_byte(fit(TEXTS, order), TEXTS[:3]))
        for name, order in [("unigram", 1), ("3-gram", 3), ("5-gram", 5)]
    }


def test_a_document_starts_from_an_empty_context():
    model = fit([b"ab"] * 50, 3)
    assert bits_per_byte(model, [b"ab", b"ab"]) == pytest.approx(bits_per_byte(model, [b"ab"]))
    assert bits_per_byte(model, [b"ab", b"ab"]) < bits_per_byte(model, [b"abab"])


def test_nothing_to_count_is_an_error_of_the_user():
    with pytest.raises(UserError, match="no bytes"):
        fit([b"", b""], 3)
