"""The Bloom filter errs as often as it says, and paragraphs are removed as with a plain set."""

import numpy as np
import pytest

from data.dedup import bloom
from data.dedup.bloom import BloomFilter, best_load, cut_seen, false_positive_rate
from data.dedup.word_hashes import plain_words, randoms
from lm.errors import UserError
from tests.data.dedup.corpus import edited, prose, sources


@pytest.mark.parametrize("rate", [0.1, 0.01, 0.001])
def test_false_positives_are_as_many_as_asked_for(rate):
    items = 100_000
    filter = BloomFilter(items, rate)
    inside, outside = np.split(randoms(5, 3 * items), [items])
    filter.put(*filter.places(inside))
    assert filter.has(*filter.places(inside)).all()
    found = filter.has(*filter.places(outside)).sum()
    expected = rate * len(outside)
    assert abs(found - expected) < 5 * np.sqrt(expected) + 0.05 * expected


def test_the_size_follows_from_items_and_rate():
    assert BloomFilter(10**6).nbytes * 8 / 10**6 < 10.5  # 9.6 without blocks
    assert BloomFilter(10**6, 1e-4).nbytes > BloomFilter(10**6).nbytes > BloomFilter(10**5).nbytes
    for rate in (0.3, 0.01, 1e-5):
        hashes, load = best_load(rate)
        assert false_positive_rate(load, hashes) <= rate * 1.0001 and false_positive_rate(load * 1.01, hashes) > rate
    for wrong in ((0, 0.01), (5, 0.0), (5, 1.0)):
        with pytest.raises(UserError, match="Bloom"):
            BloomFilter(*wrong)
    with pytest.raises(UserError, match="GiB"):
        BloomFilter(10**13)


def test_hashes_are_added_one_after_another():
    stream = randoms(1, 3000)[np.random.default_rng(0).integers(0, 3000, 5000)]
    one, plain = BloomFilter(300, 0.2), []  # far too small, so that false positives are many
    for hash in stream[:, None]:
        plain.append(bool(one.has(*one.places(hash))[0]))
        one.put(*one.places(hash))
    assert 0 < sum(plain) < len(plain)
    for batch in (1, 7, 500, 5000):
        small = BloomFilter(300, 0.2)
        found = np.concatenate([small.add(stream[at : at + batch]) for at in range(0, len(stream), batch)])
        assert found.tolist() == plain, batch


def plainly(texts, n, overlap, learn, separator):
    """Return the texts as a set of n-grams leaves them, one paragraph after another."""
    seen, result = set(), []
    for text in texts:
        stays, cut = [], False
        for part in [text] if separator is None else text.split(separator):
            own = [word for word, *_ in plain_words(part)]
            grams = [tuple(own[i : i + n]) for i in range(len(own) - n + 1)] or ([tuple(own)] if own else [])
            if grams and sum(gram in seen for gram in grams) > overlap * len(grams):
                cut = True
                continue
            if learn:
                seen.update(grams)
            stays.append(part)
        result.append((separator or "").join(stays).strip() if cut else text)
    return result


@pytest.mark.parametrize("n, overlap, separator", [(13, 0.8, "\n"), (3, 0.5, "\n"), (13, 0.8, None), (5, 0.0, "\n\n")])
def test_paragraphs_go_as_with_a_plain_set(monkeypatch, n, overlap, separator):
    texts = ["", *sources(8), *prose()[:25]]
    texts += [edited(text, 0.02, i) for i, text in enumerate(texts)] + ["a b c\na b c\na b c d", "\n\n x"]
    expected = plainly(texts, n, overlap, True, separator)
    assert expected != texts
    results = []
    for batch, characters in ((len(texts), 1 << 18), (5, 1 << 18), (len(texts), 1000)):
        monkeypatch.setattr(bloom, "_BLOCK_CHARACTERS", characters)
        seen, left, columns = BloomFilter(2_000_000, 1e-7), [], []
        for at in range(0, len(texts), batch):
            some, found = cut_seen(texts[at : at + batch], seen, n=n, overlap=overlap, separator=separator)
            left += some
            columns.append(found)
        assert left == expected
        results.append({name: np.concatenate([found[name] for found in columns]).tolist() for name in columns[0]})
    assert results[1:] == results[:1] * 2
    for count, new, old in zip(results[0]["bloom_paragraphs"], left, texts):
        assert (count > 0) == (new != old)


def test_a_filter_that_only_looks(tmp_path):
    seen = BloomFilter(10_000)
    cut_seen(prose()[:5], seen, separator=None)
    seen.save(tmp_path / "filter.npz")
    again = BloomFilter.load(tmp_path / "filter.npz")
    assert cut_seen(prose()[4:6], again, separator=None, learn=False)[0] == ["", prose()[5]]
    assert cut_seen([prose()[6]] * 2, again, learn=False)[0] == [prose()[6]] * 2
    assert cut_seen([], again)[0] == []
    with pytest.raises(UserError, match="no Bloom filter"):
        BloomFilter.load(tmp_path / "nowhere")
