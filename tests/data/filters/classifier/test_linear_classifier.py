"""Features and scores of linear classifiers against plain twins, and their files."""

import dataclasses
import json
from pydoc_data.topics import topics

import numpy as np
import pytest
import xxhash

from data.filters.classifier import figures
from data.filters.classifier.fit import Examples, Options, class_weights, fit, log_loss
from data.filters.classifier.linear import GOLDEN, Features, Model, Settings, classifier, features, load, logits, save, scores
from data.filters.classifier.train import distinct, split
from data.filters.words import Words
from lm.errors import UserError
from tests.data.filters.plain_splitting import split as split_chunk

TEXTS = ["", "one", "one one one", "a b a b", " \n ", "naïve 東京 don't\n\nI\u00a0do", *list(topics.values())[:20]]
SETTINGS = [Settings(), Settings(1, 0, 12), Settings(3, 0, 20), Settings(0, 4, 16), Settings(2, 5, 26)]


def model_of(settings: Settings, seed: int = 0) -> Model:
    weights = np.random.default_rng(seed).normal(size=1 << settings.bits).astype(np.float32)
    return Model(settings, weights, 0.25, {"told": "é"})


def plain_features(text: str, settings: Settings) -> list[int]:
    """Return the buckets of one document in Python's integers."""
    hashes = [xxhash.xxh3_64_intdigest(word.encode()) for chunk in text.split() for word in split_chunk(chunk)]
    kinds = [(hashes, n) for n in range(1, settings.ngrams + 1)]
    if settings.characters:
        kinds.append(([ord(c) for c in " ".join(text.split())], -settings.characters))
    found = set()
    for values, n in kinds:
        for k in range(len(values) - abs(n) + 1):
            key = n
            for value in values[k : k + abs(n)]:
                key = key * GOLDEN + value
            found.add(key * GOLDEN % (1 << 64) >> (64 - settings.bits))
    return sorted(found)


@pytest.mark.parametrize("settings", SETTINGS)
def test_features_are_those_of_the_plain_twin(settings):
    found = features(Words(TEXTS), settings)
    plain = [plain_features(text, settings) for text in TEXTS]
    assert found.count_N.tolist() == [len(some) for some in plain]
    assert found.bucket_F.tolist() == [bucket for some in plain for bucket in some]


def test_many_documents_need_wide_keys():
    texts = [f"word{k % 50} and more" for k in range(70)]
    found = features(Words(texts), Settings(bits=26))
    assert found.bucket_F.tolist() == [bucket for text in texts for bucket in plain_features(text, Settings(bits=26))]


def test_an_empty_batch():
    assert scores(Words([]), model_of(Settings())).shape == (0,)


@pytest.mark.parametrize("settings", SETTINGS[:4])
def test_scores_are_the_equation_and_do_not_depend_on_the_batch(settings):
    model, together = model_of(settings), scores(Words(TEXTS), model_of(settings))
    for text, score in zip(TEXTS, together):
        some = plain_features(text, settings)
        logit = model.bias + sum(float(model.weights[b]) for b in some) / max(1, len(some)) ** 0.5
        assert score == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-6)
        assert scores(Words([text]), model)[0] == score
    assert together.dtype == np.float32


def test_n_grams_fall_into_all_buckets_evenly():
    words = [f"{a}{b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in range(160)]
    found = features(Words(words), Settings(1, 0, 12)).bucket_F  # as many words as buckets
    assert len(np.unique(found)) / 4096 == pytest.approx(1 - np.exp(-len(words) / 4096), abs=0.02)
    codes = ["".join(map(chr, some)) for some in np.random.default_rng(0).integers(97, 123, (4096, 5))]
    found = features(Words(codes), Settings(0, 5, 12)).bucket_F
    assert len(np.unique(found)) / 4096 == pytest.approx(1 - np.exp(-1), abs=0.02)


@pytest.mark.parametrize("wrong", [{"ngrams": -1}, {"bits": 40}, {"characters": 99}, {"ngrams": 0}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Settings(**wrong)


def test_a_saved_model_scores_the_same(tmp_path):
    model = model_of(SETTINGS[1])
    save(tmp_path / "m", model)
    again = load(tmp_path / "m")
    assert (again.settings, again.bias, again.about) == (model.settings, model.bias, model.about)
    assert np.array_equal(scores(Words(TEXTS), again), scores(Words(TEXTS), model))
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    save(tmp_path / "m", model)
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before


def test_damaged_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="no classifier"):
        load(tmp_path)
    save(tmp_path, model_of(SETTINGS[1]))
    weights = np.load(tmp_path / "weights.npy")
    weights[7] += 1
    np.save(tmp_path / "weights.npy", weights)
    with pytest.raises(UserError, match="fingerprint"):
        load(tmp_path)
    (tmp_path / "weights.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="no classifier"):
        load(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps({"bias": 1}))
    with pytest.raises(UserError, match="no classifier"):
        load(tmp_path)


def test_a_model_saved_again_is_read_again(tmp_path):
    save(tmp_path, model_of(SETTINGS[1]))
    first = classifier(Words(TEXTS), str(tmp_path), "x")["classifier_x"]
    save(tmp_path, model_of(SETTINGS[1], seed=1))
    assert not np.array_equal(classifier(Words(TEXTS), str(tmp_path), "x")["classifier_x"], first)


def test_several_models_have_columns_of_their_own(tmp_path):
    for k, settings in enumerate((SETTINGS[1], SETTINGS[1], SETTINGS[3])):
        save(tmp_path / str(k), model_of(settings, k))
    found = classifier(Words(TEXTS), f"a={tmp_path}/0, b={tmp_path}/1,{tmp_path}/2", "c")
    assert list(found) == ["classifier_a", "classifier_b", "classifier_c"]
    for k, column in enumerate(found.values()):
        assert np.array_equal(column, scores(Words(TEXTS), load(tmp_path / str(k))))
    with pytest.raises(UserError, match="same name"):
        classifier(Words(TEXTS), f"a={tmp_path}/0,a={tmp_path}/1", "c")
    with pytest.raises(UserError, match="classifier.model"):
        classifier(Words(TEXTS), "", "c")


def examples(count: int, seed: int) -> tuple[list[str], Examples]:
    """Good texts hold "sun shines", bad ones "moon shines"; the other words are the same."""
    rng = np.random.default_rng(seed)
    good_N = np.arange(count) % 4 > 0
    texts = [
        " ".join([*(f"w{k}" for k in rng.integers(0, 40, 30)), "sun" if good else "moon", "shines"]) for good in good_N.tolist()
    ]
    return texts, Examples(features(Words(texts), Settings(bits=16)), good_N)


def test_fit_finds_what_tells_the_classes_apart():
    (texts, train), (_, valid) = examples(200, 0), examples(100, 1)
    options = Options(steps=100)
    model = fit(train, valid, Settings(bits=16), options)
    assert figures.auc(logits(valid.features, model.weights, model.bias), valid.good_N)[0] == 1
    again = fit(train, valid, Settings(bits=16), options)
    assert again.weights.tobytes() == model.weights.tobytes() and again.bias == model.bias
    best = figures.telling([texts[:90], texts[90:]], model.weights, train.features, train.good_N, Settings(bits=16))
    assert {one["ngram"] for one in best["good"][:2]} == {"sun", "sun shines"}
    assert {one["ngram"] for one in best["bad"][:2]} == {"moon", "moon shines"}
    assert (best["bad"][0]["good"], best["bad"][0]["bad"]) == (0, 50)
    assert model.about["valid_loss"] == pytest.approx(log_loss(logits(valid.features, model.weights, model.bias), valid.good_N))


def test_fit_minimises_the_balanced_loss():
    """All 30 good documents and 10 of 20 bad ones have a feature. Classes weigh the same: good is twice as likely there."""
    some = Examples(Features(np.repeat([0, 1], [40, 10]), np.ones(50, np.int64)), np.arange(50) < 30)
    model = fit(some, some, Settings(1, 0, 8), Options(steps=300))
    assert logits(some.features, model.weights, model.bias)[:40] == pytest.approx(np.log(2), abs=1e-2)
    assert class_weights(some.good_N)[[0, 49]] == pytest.approx([5 / 6, 5 / 4])


def test_rare_buckets_get_no_weight():
    _, train = examples(60, 0)
    counts = np.bincount(train.features.bucket_F, minlength=1 << 16)
    model = fit(train, train, Settings(bits=16), Options(steps=20, min_documents=4))
    assert np.array_equal(model.weights != 0, counts >= 4)


def test_names_of_n_grams_are_the_most_frequent_ones_of_their_buckets():
    texts, settings = ["a b a b", "b  a\nc"], Settings(2, 3, 26)
    grams = {plain_features(g, Settings(2, 0, 26))[0] for g in "abc"}
    assert sorted(figures.named([texts], grams, settings).values()) == ["a", "b", "c"]
    [bucket] = plain_features("b a", Settings(0, 3, 26))
    assert figures.named([[texts[0]], [texts[1]]], {bucket, 0}, settings) == {bucket: "b a"}
    tiny = Settings(1, 0, 8)
    [bucket] = plain_features("often", tiny)
    other = next(f"x{k}" for k in range(10_000) if plain_features(f"x{k}", tiny) == [bucket])
    assert figures.named([[other, "often often"]], {bucket}, tiny) == {bucket: "often"}


def test_equal_texts_are_on_one_side_of_the_split():
    good = distinct([f"good {k}" for k in range(300)] + ["both  sides", "good\n7"], 1000, seed=1)
    bad = distinct([f"bad {k}" for k in range(100)] + ["both sides"], 1000, seed=1)
    assert len(good) == 301
    parts, both = split(good, bad, (0.2, 0.3))
    assert both == 1 and sum(len(part.texts) for part in parts.values()) == 400
    assert [len(parts[name].texts) / 400 for name in ("train", "valid", "test")] == pytest.approx([0.5, 0.2, 0.3], abs=0.08)
    assert all(text.startswith("good") == good for part in parts.values() for text, good in zip(part.texts, part.good_N))
    with pytest.raises(UserError, match="fraction"):
        split(good, bad, (0.5, 0.5))


@pytest.mark.parametrize("wrong", [{"min_documents": 1000}, {"l2": float("nan")}])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_fit_that_finds_no_weights_is_an_error(wrong):
    texts, good_N = [*["one two"] * 4, *["three four"] * 4], np.arange(8) < 4
    examples = Examples(features(Words(texts), Settings(1, 0, 12)), good_N)
    with pytest.raises(UserError, match=next(iter(wrong))):
        fit(examples, examples, Settings(1, 0, 12), Options(**wrong))


def test_the_choice_among_many_texts_does_not_depend_on_their_order():
    texts = [f"text {k}" for k in range(200)]
    some = distinct(texts, 20, seed=0)
    assert len(some) == 20 and distinct(texts[::-1] * 2, 20, seed=0) == some
    assert distinct(texts, 20, seed=1) != some


def test_figures_on_held_out_documents():
    rng = np.random.default_rng(0)
    good_N = rng.random(300) < 0.3
    score_N = np.round(np.clip(0.2 + 0.4 * good_N + rng.normal(0, 0.25, 300), 0, 1), 2)
    pairs = score_N[good_N][:, None] - score_N[~good_N][None]
    found = figures.measure(score_N, good_N)
    assert found["auc"] == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert 0.01 < found["auc_error"] < 0.05
    half = next(row for row in found["thresholds"] if row["threshold"] == 0.5)
    stay = score_N >= 0.5
    assert half["good_kept"] == pytest.approx((stay & good_N).sum() / good_N.sum())
    assert half["bad_kept"] == pytest.approx((stay & ~good_N).sum() / (~good_N).sum())
    assert half["precision"] == pytest.approx((stay & good_N).sum() / stay.sum())
    assert figures.at(score_N, good_N, 1.5)["precision"] is None


def test_fingerprints_tell_settings_and_weights_apart():
    model = model_of(SETTINGS[1])
    others = [
        dataclasses.replace(model, bias=0.5),
        dataclasses.replace(model, settings=Settings(2, 0, 12)),
        model_of(SETTINGS[1], 1),
    ]
    assert len({one.fingerprint for one in [model, *others]}) == 4
    assert dataclasses.replace(model, about={}).fingerprint == model.fingerprint
