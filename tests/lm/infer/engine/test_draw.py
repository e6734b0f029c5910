"""Drawing tokens: distributions against plain NumPy, and the fast search for the last token against the slow one."""

import jax
import numpy as np
import pytest

from lm.infer.engine import step
from lm.infer.engine.draw import GREEDY, PLAIN, TRUNCATED, Adjust, Settings, draw, inverse, kept, least_of_all, least_of_few

S, V = 6000, 300


def settings(rows: int = S, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, divisor=1.0) -> Settings:
    def full(x, dtype):
        return np.full(rows, x, dtype)

    places = np.arange(rows)
    return Settings(
        full(temperature, np.float32),
        full(top_p, np.float32),
        full(top_k, np.int32),
        full(min_p, np.float32),
        places.astype(np.uint32),
        (places % 7).astype(np.int32),
        full(divisor, np.float32),
    )


def expected(logits_V, temperature, top_p, top_k, min_p) -> np.ndarray:
    """Return the probabilities by sorting, one rule after the other."""
    p = np.exp((logits_V - logits_V.max()) / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
    sums = np.cumsum(p[order]) / p.sum()
    if top_p < 1:
        p[order[np.searchsorted(sums, top_p) + 1 :]] = 0
    p[p < min_p] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "min_p"),
    [(1, 1, 0, 0), (0.7, 0.9, 0, 0), (1.3, 1, 5, 0), (2.0, 0.95, 200, 0), (1, 1, 0, 0.2), (5.0, 0.99, 0, 0), (1, 1e-6, 0, 0)],
)
def test_tokens_have_the_distribution_of_the_settings(temperature, top_p, top_k, min_p):
    logits_V = (2 * np.random.default_rng(0).normal(size=V)).astype(np.float32)
    how = PLAIN if (top_p, top_k, min_p) == (1, 0, 0) else TRUNCATED
    rows = settings(S, temperature, top_p, top_k, min_p)
    found = draw(how, 0, np.tile(logits_V, (S, 1)), np.int32(V), rows, None, np.full(S, -1, np.int32))
    p = expected(logits_V.astype(np.float64), temperature, top_p, top_k, min_p)
    counts = np.bincount(np.asarray(found.token_S), minlength=V)
    assert counts[p == 0].sum() == 0
    # Chi-square over the tokens that are expected at least five times; its mean is its degrees of freedom k, its variance 2k.
    often = p * S >= 5
    groups = np.append(counts[often], counts[~often].sum()), np.append(p[often], p[~often].sum()) * S
    terms = [(o - e) ** 2 / e for o, e in zip(*groups) if e > 0]
    assert sum(terms) <= len(terms) + 4 * np.sqrt(2 * len(terms))


def test_the_fast_search_finds_what_the_slow_one_does():
    rng = np.random.default_rng(1)
    logits = (3 * rng.normal(size=(400, V))).round(1).astype(np.float32)  # with many equal ones
    rows = settings(400)._replace(
        top_p_S=rng.choice([1.0, 0.5, 0.9, 0.99], 400).astype(np.float32),
        top_k_S=rng.choice([0, 1, 3, 50, 128, 200], 400).astype(np.int32),
    )
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    few = -np.sort(-logits, axis=1)[:, :128]
    fast, found = (np.asarray(x) for x in least_of_few(few, p.sum(axis=1), rows))
    slow = np.asarray(least_of_all(logits, p, rows))
    limits = (rows.top_k_S > 0) | (rows.top_p_S < 1)
    assert found.mean() > 0.6
    np.testing.assert_array_equal(fast[found & limits], slow[found & limits])
    by_rows = np.asarray(kept(logits, p, rows))
    np.testing.assert_array_equal(by_rows[limits], (logits >= slow[:, None])[limits])
    assert by_rows[~limits].all()


def test_a_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(2)
    logits = (3 * rng.normal(size=(8, V))).astype(np.float32)
    rows = settings(8, top_p=0.9)._replace(top_k_S=np.asarray([0, 5, 0, 200, 1, 0, 300, 7], np.int32))
    nothing = np.full(8, -1, np.int32)
    together = np.asarray(draw(TRUNCATED, 0, logits, np.int32(V), rows, None, nothing).token_S)
    for n in range(8):
        own = jax.tree.map(lambda x, n=n: x[n : n + 1], rows)
        assert draw(TRUNCATED, 0, logits[n : n + 1], np.int32(V), own, None, nothing[:1]).token_S[0] == together[n]


def test_adjustments_reports_and_what_is_lost():
    logits = np.asarray([[1.0, 3.0, -2.0, 2.0], [0.0, np.nan, 0.0, 0.0], [1.0, 3.0, -2.0, 9.0]], np.float32)
    bias, seen = np.zeros((3, 4), np.float32), np.zeros((3, 4), bool)
    seen[0, :3], bias[0, 3] = True, -np.inf
    adjust = Adjust(bias, seen, np.asarray([4.0, 1.0, 1.0], np.float32))
    found = draw(GREEDY, 1, logits, np.int32(3), settings(3, temperature=0.0), adjust, np.asarray([-1, -1, 2], np.int32))
    assert found.token_S[0] == 1 and found.token_S[2] == 2  # 3/4 against 1/4; the last one is forced
    assert found.lost_S.tolist() == [False, True, False]
    logp = logits[0] - np.log(np.exp(logits[0]).sum())
    np.testing.assert_allclose(found.logp_S[0], logp[1], rtol=1e-5)
    np.testing.assert_allclose(found.top[0][0, 0], logp[1], rtol=1e-5)
    assert found.top[1][:, 0].tolist()[0] == 1


def test_inversion_never_takes_what_has_no_probability():
    p = np.zeros((3, 50), np.float32)
    p[0, 7], p[1, [3, 49]], p[2, [0, 30]] = 1, 0.5, 0.5
    assert inverse(p, np.float32([0.999999, 0.999999, 0.0])).tolist() == [7, 49, 0]
    assert inverse(p, np.float32([0.0, 0.49, 0.51])).tolist() == [7, 3, 30]


@pytest.mark.parametrize("rows", [1, 3, 13, 32])
def test_groups_of_rows_draw_what_all_rows_together_draw(rows):
    logits = np.random.default_rng(2).normal(size=(rows, V)).astype(np.float32)
    adjust = Adjust(logits[::-1].copy(), logits > 1, np.full(rows, 1.1, np.float32))
    arguments = settings(rows, 0.9, 0.8), adjust, np.full(rows, -1, np.int32)
    together = draw(TRUNCATED, 2, logits, np.int32(V), *arguments)
    grouped = step.drawn(jax.numpy.asarray(logits), V, step.Drawing(TRUNCATED, 2, *arguments))
    assert np.array_equal(grouped.token_S, together.token_S)
    for a, b in zip(jax.tree.leaves(grouped), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # sums of other shapes may round otherwise
