"""Near duplicates: against brute force, on planted ones, over parts and batches in any order."""

import itertools
import random

import numpy as np
import pytest

from configs.curate import default, fineweb
from data.dedup import grams, minhash, near, tables
from data.dedup.minhash import FINEWEB, MinHash
from lm.errors import UserError
from tests.data.dedup.corpus import edited, plain_components, prose, sources


def deduplicated(folder, texts, settings=FINEWEB, threshold=0.8, scores=None, numbers=None, parts=1, batch=50, **more):
    """Return (counts, columns) of texts that are spread over parts."""
    numbers = np.arange(len(texts)) if numbers is None else numbers
    scores = np.zeros(len(texts)) if scores is None else np.asarray(scores, float)
    for part in range(parts):
        own = np.arange(part, len(texts), parts)
        with near.new_part(folder / f"part{part}", settings) as writer:
            for at in range(0, len(own), batch):
                some = own[at : at + batch]
                writer.add([texts[i] for i in some], numbers[some], scores[some])
    counts = near.find([folder / f"part{part}" for part in range(parts)], folder / "clusters", threshold=threshold, **more)
    return counts, near.columns(numbers, folder / "clusters")


def brute(texts, settings, threshold) -> set[tuple[int, int]]:
    """Return all pairs (higher, lower) whose sets of shingles have this Jaccard similarity."""
    hashes, offsets = minhash.documents_shingles(texts, settings)
    sets = [set(hashes[b:e].tolist()) for b, e in zip(offsets[:-1], offsets[1:])]
    return {
        (j, i)
        for i, j in itertools.combinations(range(len(texts)), 2)
        if sets[i] and sets[j] and len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])
    }


def test_pairs_are_those_of_brute_force(tmp_path):
    texts = [text[:3000] for text in sources(60)] + prose()[:50]
    texts += [edited(text, share, i) for i, text in enumerate(texts) for share in (0.01, 0.02)]
    true = brute(texts, FINEWEB, 0.8)
    counts, columns = deduplicated(tmp_path, texts, pairs=tmp_path / "pairs")
    found = set(map(tuple, tables.read(tmp_path / "pairs", 2).tolist()))
    assert found <= true and len(true) > 100  # precision 1
    assert len(found) / len(true) >= 0.95
    assert counts["verified"] == len(found) and counts["documents"] == len(texts)
    low = plain_components(found)
    assert columns["near_duplicate_cluster"].tolist() == [low.get(i, i) for i in range(len(texts))]
    assert columns["near_duplicate_keep"].tolist() == [low.get(i, i) == i for i in range(len(texts))]
    assert (columns["near_duplicate_of"] == columns["near_duplicate_cluster"]).all()  # equal scores: the first stays


def test_jaccard_of_pairs_equals_sets(tmp_path, monkeypatch):
    texts = [edited(prose()[0], share / 50, share) for share in range(20)]
    hashes, offsets = grams.sets(*minhash.documents_shingles(texts, FINEWEB))
    numbers = np.arange(20, dtype=np.uint64)
    documents = np.stack([numbers, offsets[:-1], np.diff(offsets), numbers, 0 * numbers], axis=1).astype(np.uint64)
    pairs = np.array(list(itertools.combinations(range(20), 2)), np.uint64)
    sets = [set(hashes[b:e].tolist()) for b, e in zip(offsets[:-1], offsets[1:])]
    true = [len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in pairs.tolist()]
    for block in (1, 3000, 1 << 20):
        monkeypatch.setattr(near, "_PAIR_SHINGLES", block)
        assert near.jaccard(pairs, documents, [hashes]).tolist() == true


def of_recipe(config) -> tuple[MinHash, float]:
    """Return the settings and the threshold of a recipe's stage."""
    options = config.near_duplicates.to_dict()
    return MinHash(**{name: options[name] for name in ("n", "bands", "rows", "units", "seed")}), options["threshold"]


def test_recipes_without_settings_of_their_own_have_those_of_the_library():
    assert of_recipe(default.get_config()) == (MinHash(), near.THRESHOLD)
    assert of_recipe(fineweb.get_config()) == (FINEWEB, 0)  # as datatrove: no pair is verified


def test_with_a_threshold_of_0_all_that_share_a_bucket_are_duplicates(tmp_path):
    texts = prose()[:40] + [edited(text, 0.05, i) for i, text in enumerate(prose()[:40])]
    bands = minhash.band_hashes(minhash.signatures(*minhash.documents_shingles(texts, FINEWEB), FINEWEB), FINEWEB)
    met = {(j, i) for i, j in itertools.combinations(range(len(texts)), 2) if (bands[i] == bands[j]).any()}
    deduplicated(tmp_path, texts, threshold=0, pairs=tmp_path / "pairs")
    assert set(map(tuple, tables.read(tmp_path / "pairs", 2).tolist())) == met
    assert len(met - brute(texts, FINEWEB, 0.7)) > 5


def test_planted_duplicates_go_and_nothing_else(tmp_path):
    settings, threshold = of_recipe(default.get_config())
    texts = prose()
    unlike = {i for pair in brute(texts, settings, threshold) for i in pair}
    texts = [text for i, text in enumerate(texts) if i not in unlike]
    exact = [text.upper().replace(" ", "  ") for text in texts[:100]]
    changed = [edited(text, 0.05, i) for i, text in enumerate(texts)]
    _, columns = deduplicated(tmp_path, texts + exact + changed, settings, threshold)
    keep, of = columns["near_duplicate_keep"], columns["near_duplicate_of"]
    assert keep[: len(texts)].all() and len(texts) > 200  # no false removal
    assert (of[len(texts) : len(texts) + 100] == np.arange(100)).all()
    near_found = of[len(texts) + 100 :] == np.arange(len(texts))
    assert near_found.mean() >= 0.95 and (near_found | keep[len(texts) + 100 :]).all()


def test_the_best_of_a_cluster_stays_and_ties_go_to_the_lowest_number(tmp_path):
    texts = [prose()[0]] * 3 + [prose()[1]] * 3 + [prose()[2]] * 2 + ["", "", "   "]
    scores = [0, 2.5, 2, -1, float("nan"), -0.5, 0.0, -0.0, 1, 1, 1]
    counts, columns = deduplicated(tmp_path, texts, scores=scores)
    assert columns["near_duplicate_of"].tolist() == [1, 1, 1, 5, 5, 5, 6, 6, 8, 9, 10]
    assert columns["near_duplicate_cluster"].tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 8, 9, 10]
    assert (counts["clustered"], counts["removed"]) == (8, 5)


def test_batches_parts_and_memory_change_nothing(tmp_path, monkeypatch):
    texts = [text[:2000] for text in sources(60)]
    texts += [edited(text, 0.02, i) for i, text in enumerate(texts)]
    draws = random.Random(1)
    scores = [draws.randrange(3) for _ in texts]
    results = []
    for parts, batch, small in ((1, 200, False), (1, 7, True), (4, 3, True), (5, 50, False)):
        with monkeypatch.context() as patch:
            if small:
                patch.setattr(tables, "BUFFER_ROWS", 200)
                patch.setattr(tables, "BLOCK_ROWS", 16)
                patch.setattr(near, "_PAIR_SHINGLES", 500)
            folder = tmp_path / f"{parts}-{batch}"
            order = draws.sample(range(len(texts)), len(texts)) if parts > 1 else list(range(len(texts)))
            given = [texts[i] for i in order], [scores[i] for i in order]
            counts, _ = deduplicated(folder, given[0], scores=given[1], numbers=np.array(order) * 3, parts=parts, batch=batch)
            results.append((counts, tables.read(folder / "clusters", 3).tolist()))
        assert not [path for path in folder.rglob("*") if path.name.startswith(".") or path.name.endswith(".new")]
    assert results[0][0]["removed"] > 20 and all(result == results[0] for result in results)


def test_a_bucket_of_any_size_gives_linear_pairs(monkeypatch):
    monkeypatch.setattr(near, "NEIGHBOURS", 4)
    count = 50
    bands = np.stack([np.zeros(count), np.arange(count), np.arange(count)], axis=1).astype(np.uint64)
    for size in (1, 3, 7, 100):
        pairs = np.concatenate(list(near._bucket_pairs([bands[at : at + size] for at in range(0, count, size)])))
        found = sorted(set(map(tuple, pairs.tolist())))
        assert found == sorted({(i, j) for i in range(count) for j in {0, *range(i - 4, i)} if 0 <= j < i})


def test_what_users_do_wrong(tmp_path):
    with near.new_part(tmp_path / "a") as part:
        part.add(["some words here", "more words there"], [1, 2])
        with pytest.raises(UserError, match="one number each"):
            part.add(["x"], [1, 2])
        with pytest.raises(UserError, match="one number each"):
            part.add(["x"], [-1])
        with pytest.raises(UserError, match="scores"):
            part.add(["x"], [5], [1.0, 2.0])
    with near.new_part(tmp_path / "b", FINEWEB) as part:
        part.add(["some words here"], [3])
    with pytest.raises(UserError, match="different settings of near"):
        near.find([tmp_path / "a", tmp_path / "b"], tmp_path / "t")
    with near.new_part(tmp_path / "c") as part:
        part.add(["entirely unlike that"], [2])
    with pytest.raises(UserError, match="number 2"):
        near.find([tmp_path / "a", tmp_path / "c"], tmp_path / "t")
    with pytest.raises(UserError, match="threshold"):
        near.find([tmp_path / "a"], tmp_path / "t", threshold=1.1)
    with pytest.raises(ZeroDivisionError), near.new_part(tmp_path / "a") as part:
        part.add(["half"], [1])
        raise ZeroDivisionError
    with pytest.raises(UserError, match="no complete part"):
        near.find([tmp_path / "a"], tmp_path / "t")


def test_a_corpus_without_documents(tmp_path):
    counts, columns = deduplicated(tmp_path, [])
    assert set(counts.values()) == {0} and len(columns["near_duplicate_keep"]) == 0
    assert near.columns([4], tmp_path / "clusters")["near_duplicate_of"].tolist() == [4]
