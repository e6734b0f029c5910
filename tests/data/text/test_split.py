"""Splits, exact copies and near copies, against plain references."""

import collections
import functools
import random
import tracemalloc

import numpy as np
import pytest
import xxhash

from data.sources.source import Document, Source
from data.text import near_copies, split
from lm.errors import UserError


def words(count: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(count))


def source(texts, name="s", keys=None) -> Source:
    keys = keys or [None] * len(texts)
    documents = [Document(str(i), text, "here", None, key) for i, (text, key) in enumerate(zip(texts, keys))]
    return Source(name, lambda: iter(documents))


def splits(sources, **options) -> tuple[dict[str, str], dict[str, split.SourceStats]]:
    found = split.survey(sources, **{"valid_fraction": 0.2, "seed": 0, **options})
    kept = {document.text: where for source in sources for document, where in found.documents(source)}
    return kept, found.stats


# The slow twin: the same definitions in plain Python.


@functools.cache
def reference_shingles(text: str) -> set[int]:
    data = bytes(b + 32 if 65 <= b <= 90 else b for b in text.encode() if b not in b" \t\n\r\v\f")
    found = set()
    for i in range(len(data) - 31):
        hash = 0
        for byte in data[i : i + 32]:
            hash = (hash * near_copies.MULTIPLIER + byte) % 2**64
        found.add(hash)
    return found if len(data) < near_copies.SHORT_BYTES else {h for h in found if h < near_copies.SAMPLED_BELOW}


def reference_near(text: str, others: list[str], background: list[str], threshold: float) -> bool:
    documents = collections.Counter(h for other in background for h in reference_shingles(other))
    most = max(near_copies.COMMON_DOCUMENTS, int(near_copies.COMMON_FRACTION * len(background)))
    common = {h for h, count in documents.items() if count > most}
    t, t_short = reference_shingles(text) - common, len(near_copies.normalise(text)) < near_copies.SHORT_BYTES
    for other in others:
        v = reference_shingles(other) - common
        if t_short and len(near_copies.normalise(other)) < near_copies.SHORT_BYTES:
            a, b, needed = t, v, 1
        else:
            a, b = ({h for h in s if h < near_copies.SAMPLED_BELOW} for s in (t, v))
            needed = near_copies.MIN_SAMPLED_HITS
        if len(a & b) >= max(needed, threshold * min(len(a), len(b))):
            return True
    return False


def mutations(texts: list[str]) -> list[str]:
    """Texts that share from nothing to everything with some of the given."""
    rng = random.Random(7)
    mixed = []
    for k, text in enumerate(texts):
        for share in (0.05, 0.3, 0.45, 0.55, 0.8, 1.0):
            part = text.split()[: int(share * len(text.split()))]
            mixed.append(" ".join(part + words(rng.choice([0, 5, 40, 150]), seed=1000 + k).split()))
    return mixed


def test_shingles_and_near_copies_equal_the_reference():
    header = words(40, seed=1)
    texts = [words(n, seed=n) for n in (3, 5, 8, 20, 60, 90, 300)]
    texts += [header + words(n, seed=n + 1) for n in (0, 10, 50, 120)] + ["ÄÖ é 汉字 " * 30, "a" * 600, "Ab " * 40]
    found = near_copies.shingles([near_copies.normalise(text) for text in texts])
    for d, text in enumerate(texts):
        assert set(found.hash[found.document == d].tolist()) == reference_shingles(text)
    pairs = list(zip(found.hash.tolist(), found.document.tolist()))
    assert pairs == sorted(set(pairs))

    asked = mutations(texts) + texts + ["", "x", words(100, seed=99)]
    background = [header + words(n % 7 * 20, seed=n) for n in range(12)]
    for behind, threshold in ((background, 0.3), (background, 0.5), ([], 0.5), (background, 0.9)):
        copies = near_copies.NearCopies(*[[near_copies.normalise(t) for t in many] for many in (texts, behind)], threshold)
        expected = [reference_near(text, texts, behind, threshold) for text in asked]
        assert copies.find([near_copies.normalise(text) for text in asked]).tolist() == expected
        assert any(expected) and not all(expected)


def test_batching_changes_nothing():
    texts = [words(n, seed=n) for n in range(2, 60, 3)]
    data = [near_copies.normalise(text) for text in mutations(texts)]
    copies = near_copies.NearCopies([near_copies.normalise(text) for text in texts], [], 0.5)
    one_by_one = np.concatenate([copies.find([d]) for d in data])
    assert copies.find(data).tolist() == one_by_one.tolist()


# Near copies.


@pytest.fixture(scope="module")
def corpus():
    texts = [words(n, seed=n) for n in range(100, 400, 5)]
    kept, _ = splits([source(texts)])
    return texts, [text for text in texts if kept[text] == "valid"]


def edited(text: str, share: float) -> str:
    """Replaces one run of words in every ten, as an editor would."""
    pieces = text.split()
    step = 20
    for at in range(0, len(pieces) - step, step):
        pieces[at : at + int(step * share)] = words(int(step * share), seed=at).split()
    return " ".join(pieces)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: edited(text, 0.1),
        lambda text: text.upper(),
        lambda text: "\n    ".join(text.split()),
        lambda text: text[: len(text) // 2],
        lambda text: words(300, seed=5000) + " " + text + " " + words(300, seed=5001),
    ],
    ids=["edited by 10 %", "other case", "wrapped anew", "subset", "superset"],
)
def test_near_copies_of_validation_stay_out_of_training(corpus, change):
    texts, valid = corpus
    planted = [change(text) for text in valid]
    kept, stats = splits([source(texts), source(planted, "planted", keys=[train_key()] * len(planted))])
    assert [text for text in planted if text in kept] == []
    assert stats["planted"].near_copies == len(planted) > 5
    assert all(text in kept for text in texts)  # the unrelated stay
    assert stats["s"].near_copies == 0


def train_key() -> str:
    """A split key that is for training under the options of `splits`."""
    keys = [str(k) for k in range(50)]
    found = split.survey([source(keys, keys=keys)], valid_fraction=0.2, seed=0)
    return next(d.text for d, where in found.documents(source(keys, keys=keys)) if where == "train")


def test_short_documents_are_compared_in_full():
    texts = [words(12, seed=n) for n in range(200)]
    kept, _ = splits([source(texts)])
    valid = [text for text in texts if kept[text] == "valid"]
    planted = [text + "." for text in valid]
    kept, stats = splits([source(texts), source(planted, "planted", keys=[train_key()] * len(planted))])
    assert stats["planted"].near_copies == len(planted) and stats["s"].near_copies == 0


def test_a_header_that_many_documents_share_costs_none_of_them():
    header = words(120, seed=3)
    headers = source([header, header[:400], header[9:]], "headers", keys=["valid"] * 3)
    rest = source([header + " " + words(n, seed=n) for n in range(30, 230)])
    seed = next(s for s in range(99) if xxhash.xxh3_64_intdigest(b"valid", seed=s) < 0.02 * 2**64)
    kept, stats = splits([headers, rest], seed=seed, valid_fraction=0.02)
    assert stats["headers"].valid_documents == 3
    assert stats["s"].near_copies == 0 and len(kept) == 203


def test_one_shared_line_is_no_near_copy():
    line = "Permission is hereby granted, free of charge."
    texts = [words(200, seed=n) + line + words(200, seed=n + 500) for n in range(20)]
    _, stats = splits([source(texts)])
    assert stats["s"].near_copies == 0


# Exact copies and splits.


def test_exact_copies_are_dropped_across_sources_and_the_first_stays():
    texts = [words(50, seed=n) for n in range(40)]
    first, second = source(texts + texts[:3], "first"), source(texts[5:9] + ["only here"], "second")
    found = split.survey([first, second], valid_fraction=0.2, seed=0)
    assert [d.text for d, _ in found.documents(first)] == texts
    assert [d.text for d, _ in found.documents(second)] == ["only here"]
    assert found.stats["first"].exact_duplicates == 3 and found.stats["second"].exact_duplicates == 4


def test_stats_add_up_and_a_second_reading_is_equal():
    texts = [words(50, seed=n) for n in range(60)] + [words(50, seed=3)] + ["", " \n"]
    one = source(texts)
    found = split.survey([one], valid_fraction=0.3, seed=1)
    read = list(found.documents(one))
    assert list(found.documents(one)) == read
    stats = found.stats["s"]
    assert stats.documents == 61 == stats.train_documents + stats.valid_documents + stats.exact_duplicates
    assert stats.exact_duplicates == 1 and stats.near_copies == 0
    assert stats.bytes == sum(len(text) for text in texts if text.strip())
    assert stats.valid_bytes == sum(len(d.text) for d, where in read if where == "valid") > 0
    assert stats.train_bytes == sum(len(d.text) for d, where in read if where == "train") > 0


def test_a_split_does_not_depend_on_other_documents_but_on_the_seed():
    texts = [words(50, seed=n) for n in range(100)]
    few, _ = splits([source(texts[:50])])
    many, _ = splits([source(texts[::-1])])
    assert {text: many[text] for text in few} == few
    other, _ = splits([source(texts)], seed=1)
    assert other != many
    assert 5 < sum(where == "valid" for where in many.values()) < 40


def test_equal_keys_land_together():
    texts = [words(50, seed=n) for n in range(100)]
    kept, _ = splits([source(texts, keys=[str(n // 2) for n in range(100)])])
    assert all(kept[a] == kept[b] for a, b in zip(texts[::2], texts[1::2]))
    assert set(kept.values()) == {"train", "valid"}


def test_a_cap_keeps_the_lowest_hashes_and_trains_on_the_rest():
    texts = [words(50, seed=n) for n in range(200)]
    all_of, _ = splits([source(texts)], valid_fraction=0.5)
    capped, stats = splits([source(texts)], valid_fraction=0.5, max_valid_bytes=2000)
    backwards, _ = splits([source(texts[::-1])], valid_fraction=0.5, max_valid_bytes=2000)
    assert capped == backwards and len(capped) == 200
    valid = {text for text, where in capped.items() if where == "valid"}
    assert valid < {text for text, where in all_of.items() if where == "valid"}
    assert 1500 < stats["s"].valid_bytes <= 2000
    # Too small for anything, yet one document is validated on.
    _, stats = splits([source(texts)], valid_fraction=0.5, max_valid_bytes=1)
    assert stats["s"].valid_documents == 1


def test_a_fraction_too_small_for_any_document_takes_one():
    kept, _ = splits([source(["one text", "another text"])], valid_fraction=1e-9)
    assert sorted(kept.values()) == ["train", "valid"]


def test_without_validation_all_is_training():
    kept, stats = splits([source(["one text"])], valid_fraction=0)
    assert kept == {"one text": "train"} and stats["s"].train_documents == 1


def test_progress_is_told():
    told = []
    split.survey([source(["ab", "c"])], valid_fraction=0.5, seed=0, progress=lambda *args: told.append(args))
    assert told[-1] == ("s", 3)


# Errors.


@pytest.mark.parametrize(
    ("texts", "fraction", "message"),
    [
        ([], 0.1, "no document with any text"),
        (["", " \n"], 0.0, "no document with any text"),
        (["one"], 0.1, "data.valid_fraction=0"),
        (["one", "one"], 0.1, "data.valid_fraction=0"),
        (["one", "two"], 1.0, r"data.valid_fraction=1.0 is not in \[0, 1\)"),
        (["one", "two"], -0.1, "not in"),
        (["one", "two"], 1 - 1e-9, "leaves no document for training"),
    ],
)
def test_what_cannot_be_split(texts, fraction, message):
    with pytest.raises(UserError, match=message) as error:
        split.survey([source(texts)], valid_fraction=fraction, seed=0)
    assert "\n" not in str(error.value)


def test_sources_need_names_of_their_own():
    with pytest.raises(UserError, match="share a name"):
        split.survey([source(["a"]), source(["b"])], valid_fraction=0, seed=0)


def test_a_source_that_changes_is_noticed():
    texts = ["one", "two", "three"]
    changing = Source("s", lambda: (Document(text, text, "here") for text in texts))
    found = split.survey([changing], valid_fraction=0, seed=0)
    texts[1] = "2"
    with pytest.raises(UserError, match="changed while it was read"):
        list(found.documents(changing))


# The tokenizer's sample, taken in the same pass.


def sampled(sources, **options) -> list[str]:
    return split.survey(sources, **{"valid_fraction": 0.2, "seed": 0, "sample_bytes": 1 << 20, **options}).sample()


def test_the_sample_is_the_training_text_alone():
    texts = [words(60, seed=n) for n in range(100)]
    sources = [source(texts + texts[:5])]
    kept, _ = splits(sources)
    assert sampled(sources) == [text for text in texts if kept[text] == "train"]  # duplicates once
    few = sampled(sources, max_valid_bytes=1)
    assert len(few) == 99 and set(few) < set(texts)


def test_the_sample_holds_nothing_of_a_near_copy_of_validation(corpus):
    texts, valid = corpus
    far = " ".join(words(900, seed=n) for n in (7000, 7001))
    planted = [f"{far}\n{text}\n{far[::-1]}" for text in valid]
    chunks = sampled([source(texts), source(planted, "planted", keys=[train_key()] * len(planted))])
    joined = "".join(chunks)
    assert not [text for text in valid if text[40:400] in joined]


def test_the_sample_is_bounded_and_as_large_as_it_may_be():
    texts = [words(60, seed=n) for n in range(400)]
    kept, _ = splits([source(texts)], valid_fraction=0.5)
    for limit in (5_000, 30_000):
        chunks = sampled([source(texts)], valid_fraction=0.5, sample_bytes=limit)
        size = sum(len(chunk.encode()) for chunk in chunks)
        assert 0.7 * limit < size <= limit and all(kept[chunk] == "train" for chunk in chunks)
        assert chunks == sampled([source(texts)], valid_fraction=0.5, sample_bytes=limit)
        assert chunks != sampled([source(texts)], valid_fraction=0.5, sample_bytes=limit, seed=1)


@pytest.mark.slow
def test_memory_a_document():
    """Many small documents cost at most 60 bytes each, beyond a constant; a set of their digests alone takes over 100."""

    def peak(many):
        tracemalloc.start()
        split.survey([Source("s", lambda: (Document("", str(n), "here") for n in range(many)))], valid_fraction=0, seed=0)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(80_000) - peak(20_000) < 60 * 60_000


# The set of digests.


@pytest.mark.parametrize("batch", [1, 7, 1000, 4096])
def test_a_set_of_digests_is_a_set(batch):
    random = np.random.default_rng(batch)
    every = random.integers(0, 1 << 64, (6000, 2), np.uint64)
    every[:10] = [[0, 0], [0, 1], [1, 0], [1 << 63, 0], [2**64 - 1, 2**64 - 1]] * 2
    stream = every[random.integers(0, len(every), 9000)] if batch > 1 else every[random.integers(0, 300, 900)]
    digests, seen, expected, found = split.Digests(), set(), [], []
    for begin in range(0, len(stream), batch):
        found += digests.add(stream[begin : begin + batch]).tolist()
        for key in map(tuple, stream[begin : begin + batch].tolist()):
            expected.append(key in seen)
            seen.add(key)
    assert found == expected and any(found) and not all(found)
    assert len(digests) == len(seen)


def test_digests_that_begin_alike_are_told_apart():
    alike = np.stack([np.full(500, 2**64 - 1, np.uint64), np.arange(0, 1000, 2, dtype=np.uint64)], axis=1)
    digests = split.Digests()
    assert not digests.add(alike).any() and digests.add(alike[::-1]).all() and len(digests) == 500
    assert not digests.add(alike[:0]).any()


def test_runs_halve_so_that_a_digest_is_merged_seldom():
    random, digests = np.random.default_rng(0), split.Digests()
    for _ in range(60):
        digests.add(random.integers(0, 1 << 64, (5000, 2), np.uint64))
        assert all(len(one) >= 2 * len(other) for one, other in zip(digests._runs, digests._runs[1:]))
    assert len(digests) == 300_000
