"""Signatures equal their twin and estimate the Jaccard similarity as well as theory says."""

import numpy as np
import pytest

from data.dedup import grams, minhash
from data.dedup.minhash import FINEWEB, MinHash, band_hashes, signatures
from data.filters.word_hashes import randoms
from lm.errors import UserError
from tests.data.dedup.corpus import edited, prose, sources


def shingle_sets(texts, settings):
    hashes, offsets = grams.sets(*minhash.documents_shingles(texts, settings))
    return hashes, offsets, [set(hashes[b:e].tolist()) for b, e in zip(offsets[:-1], offsets[1:])]


def plain_signature(hashes: list[int], settings: MinHash) -> list[int]:
    """Return the signature of one document in Python's integers."""
    scale, shift = randoms(settings.seed, 2 * settings.hashes).reshape(2, -1).tolist()
    return [min((((a | 1) * x + b) % 2**64 >> 32 for x in hashes), default=2**32 - 1) for a, b in zip(scale, shift)]


@pytest.mark.parametrize(
    "settings", [FINEWEB, MinHash(n=3, bands=3, rows=2, seed=7), MinHash(n=9, units="characters", bands=5)]
)
def test_signatures_equal_their_twin_whatever_the_blocks(settings, monkeypatch):
    texts = ["", "one", "two words", "!?", *prose()[:4], *sources(3)]
    hashes, offsets, sets = shingle_sets(texts, settings)
    plain = [plain_signature(sorted(own), settings) for own in sets]
    assert signatures(hashes, offsets, settings).tolist() == plain
    monkeypatch.setattr(minhash, "_BLOCK", 100)
    assert signatures(hashes, offsets, settings).tolist() == plain
    repeated = minhash.documents_shingles(texts, settings)
    assert signatures(*repeated, settings).tolist() == plain


@pytest.mark.parametrize("settings", [FINEWEB, MinHash(), MinHash(n=12, units="characters", bands=16, rows=8)])
def test_estimates_are_within_three_sigma(settings):
    texts = prose()[:300]
    pairs = [(text, edited(text, share, i)) for i, text in enumerate(texts) for share in (0.02, 0.05, 0.15)]
    pairs += list(zip(texts, texts[1:]))
    flat = [text for pair in pairs for text in pair]
    hashes, offsets, sets = shingle_sets(flat, settings)
    true = np.array([len(a & b) / len(a | b) for a, b in zip(sets[::2], sets[1::2])])
    signature = signatures(hashes, offsets, settings)
    error = (signature[::2] == signature[1::2]).mean(axis=-1) - true
    sigma = np.sqrt(true * (1 - true) / settings.hashes)
    varied = (true > 0.05) & (true < 0.95)  # elsewhere the binomial distribution is far from normal
    assert varied.sum() > 500
    z = error[varied] / sigma[varied]
    assert (np.abs(z) <= 3).mean() >= 0.99 and np.abs(z).max() < 4.5  # a normal distribution has 99.7 % within three
    assert 0.85 < z.std() < 1.15 and abs(z.mean()) < 0.15
    assert (np.abs(error) <= 3 * np.maximum(sigma, 1 / settings.hashes)).mean() >= 0.99


def chance_to_meet(jaccard: float) -> float:
    """Return the probability that two documents of this similarity share a bucket."""
    return 1 - (1 - jaccard**FINEWEB.rows) ** FINEWEB.bands


def test_bands_meet_as_often_as_the_formula_says():
    texts = prose()
    both = [text for i, text in enumerate(texts) for text in (text, edited(text, 0.05, i))]
    hashes, offsets, sets = shingle_sets(both, FINEWEB)
    bands = band_hashes(signatures(hashes, offsets, FINEWEB), FINEWEB)
    met = (bands[::2] == bands[1::2]).any(axis=1)
    chance = np.array([chance_to_meet(len(a & b) / len(a | b)) for a, b in zip(sets[::2], sets[1::2])])
    assert abs(met.sum() - chance.sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())
    assert round(chance_to_meet(0.8), 3) == 0.924 and round(chance_to_meet(0.5), 3) == 0.053


def test_equal_rows_in_other_bands_are_other_buckets():
    bands = band_hashes(np.full((2, FINEWEB.hashes), 5, np.uint32), FINEWEB)
    assert len(set(bands[0].tolist())) == FINEWEB.bands and (bands[0] == bands[1]).all()


@pytest.mark.parametrize("wrong", [{"units": "bytes"}, {"bands": 0}, {"rows": -1}, {"n": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        MinHash(**wrong)
