"""Words, characters and n-grams of a batch equal those of one text at a time, and the plain twins."""

import numpy as np
import pytest

from data.dedup import grams
from data.filters import word_hashes
from data.filters.word_hashes import characters
from tests.data.dedup.corpus import prose, sources
from tests.data.filters.plain_words import plain_hash, plain_words

ODD = [
    "",
    " ",
    "a",
    "  Don't stop — NAÏVE café, 10km x_y x-y (z). ",
    "ends with a word",
    "...",
    "İstanbul ΣΑΣ straße ﬁ ᾼ",
    "中文没有空格 and ひらがな ภาษาไทย 한국어 단어 हिन्दी में",
    "\ud800lone\udfff surrogates",
    "\U000e0041\U0010ffffx",
    "n\u0303 combining",
    "-- - 'quoted' --dash",
]


@pytest.mark.parametrize("keep_symbols", [False, True])
def test_words_equal_their_twin(keep_symbols):
    texts = [*ODD, *prose()[:5], *ODD[::-1]]
    found = word_hashes.words(texts, keep_symbols=keep_symbols)
    for i, text in enumerate(texts):
        part = slice(found.offsets[i], found.offsets[i + 1])
        plain = plain_words(text, keep_symbols=keep_symbols)
        assert list(zip(found.start[part].tolist(), found.end[part].tolist())) == [(start, end) for _, start, end in plain]
        assert found.hash[part].tolist() == [plain_hash(word) for word, *_ in plain]


def test_which_words():
    assert [w for w, *_ in plain_words(ODD[3])] == ["don", "t", "stop", "naïve", "café", "10km", "x", "y", "x", "y", "z"]
    assert [w for w, *_ in plain_words(ODD[3], keep_symbols=True)] == "dont stop — naïve café 10km xy xy z".split()
    assert [w for w, *_ in plain_words("中文 ok")] == ["中", "文", "ok"]
    assert [w for w, *_ in plain_words("हिन्दी में")] == ["हिन्दी", "में"]


def test_a_batch_does_not_change_its_documents():
    texts = [*ODD, *sources(20)]
    for split in (word_hashes.words, characters):
        whole, alone = split(texts), [split([text]) for text in texts]
        for name in ("hash", "start", "end"):
            assert (getattr(whole, name) == np.concatenate([getattr(one, name) for one in alone])).all()
        assert np.diff(whole.offsets).tolist() == [len(one.hash) for one in alone]


def test_no_words_at_all():
    assert word_hashes.words([]).offsets.tolist() == [0] and characters(["", " "]).offsets.tolist() == [0, 0, 0]


def test_characters_equal_their_twin():
    space = int(word_hashes.mix(np.array([word_hashes.GOLDEN], np.uint64))[0])
    texts = [*ODD, *prose()[:3]]
    found = characters(texts)
    for i, text in enumerate(texts):
        plain: list[tuple[int, int]] = []  # (hash, start)
        for _, start, end in plain_words(text):
            if plain and plain[-1][1] + 1 < start:
                plain.append((space, plain[-1][1] + 1))
            plain += [(plain_hash(c.lower() if len(c.lower()) == 1 else c), start + k) for k, c in enumerate(text[start:end])]
        part = slice(found.offsets[i], found.offsets[i + 1])
        assert list(zip(found.hash[part].tolist(), found.start[part].tolist())) == plain
        assert (found.end[part] == found.start[part] + 1).all()


def test_characters_have_one_space_between_words():
    texts = ["  Ab, c!", "ab c", "AB\n\nC", "abc", "", "ab  c  "]
    found = characters(texts)
    one = [found.hash[found.offsets[i] : found.offsets[i + 1]].tolist() for i in range(len(texts))]
    assert one[0] == one[1] == one[2] == one[5] and len(one[0]) == 4 and one[3] == one[0][:2] + one[0][3:] and one[4] == []


def test_shingles_are_the_runs_of_n_words():
    texts = [*ODD, *prose()[:3]]
    found = word_hashes.words(texts)
    for n in (1, 2, 5, 13):
        hashes, offsets = grams.shingles(found, n)
        by_words: dict[int, tuple] = {}
        for i, text in enumerate(texts):
            own = [word for word, *_ in plain_words(text)]
            expected = [tuple(own[j : j + n]) for j in range(len(own) - n + 1)] or ([tuple(own)] if own else [])
            got = hashes[offsets[i] : offsets[i + 1]].tolist()
            assert len(got) == len(expected)
            for hash, gram in zip(got, expected):
                assert by_words.setdefault(hash, gram) == gram
        assert len(by_words) == len(set(by_words.values()))  # one hash a gram, wherever it stands
        unique, begins = grams.sets(hashes, offsets)
        for i in range(len(texts)):
            assert unique[begins[i] : begins[i + 1]].tolist() == sorted(set(hashes[offsets[i] : offsets[i + 1]].tolist()))
