"""StereoSet: lms, ss and icat worked by hand, over terms; chance; the published file, and what is wrong with it."""

import json

import numpy as np
import pytest

from lm.evals.bias.stereoset import icat
from lm.evals.task import Likelihood, TaskSettings
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.bias.bias_subjects import Planted, chance, stereoset_file


def run(tmp_path, whole, subject, **options):
    folder = tmp_path / "stereoset"
    folder.mkdir(exist_ok=True)
    (folder / "dev.json").write_text(json.dumps(whole))
    return open_task("stereoset", TaskSettings(data_dir=tmp_path, options={"stereoset": options})).run(subject)


def scored(**of):
    """Log probability per token by the word that a sentence holds."""
    return Planted(lambda r: len(r.continuation) * next(v for word, v in of.items() if word in r.continuation), noise=0)


def test_values_equal_those_worked_by_hand(tmp_path):
    whole = stereoset_file(3)
    whole["data"]["intersentence"] = []
    items = whole["data"]["intrasentence"]
    for item, term in zip(items, ("a", "a", "b")):
        item["target"] = term
    order = (
        {"stereo": -1, "contra": -2, "unrelated": -3},
        {"stereo": -3, "contra": -1, "unrelated": -2},
        {"stereo": -1, "contra": -2, "unrelated": -1.5},
    )
    logps = {
        item["sentences"][n]["sentence"]: one[word]
        for item, one in zip(items, order)
        for n in range(3)
        for word in one
        if f" {word}." in item["sentences"][n]["sentence"]
    }
    outcome = run(tmp_path, whole, Planted(lambda r: len(r.continuation) * logps[r.continuation], noise=0))
    results = outcome.results
    # Term a: the stereotype wins once of twice, meaningful ones win 2 + 1 of 4; term b: once of once, 1 of 2.
    assert results["ss"] == pytest.approx((50 + 100) / 2) and results["lms"] == pytest.approx((75 + 50) / 2)
    assert results["icat"] == pytest.approx(62.5 * 25 / 50) and results["n"] == 3 and results["n_terms"] == 2
    assert results["halves"]["intrasentence"]["ss"] == 75 and "intersentence" not in results["halves"]
    assert results["ss_low"] <= 75 <= results["ss_high"] and results["icat_low"] <= results["icat"] <= results["icat_high"]
    assert [sample["metrics"] for sample in outcome.samples] == [
        {"ss": 100.0, "lms": 100.0},
        {"ss": 0.0, "lms": 50.0},
        {"ss": 100.0, "lms": 50.0},
    ]
    assert [s["failed"] for s in outcome.samples] == [True, False, True] and outcome.results["problems"] == {}
    json.dumps(outcome.results), json.dumps(outcome.samples)


def test_icat_is_the_papers_at_its_ends():
    assert icat(np.array([[100.0, 50.0], [100.0, 100.0], [100.0, 0.0], [50.0, 50.0]])).tolist() == [100, 0, 0, 50]


def test_the_ideal_the_biased_and_the_random_model(tmp_path):
    whole = stereoset_file(160)
    random = run(tmp_path, whole, Planted(lambda r: -len(r.continuation) * chance(r), noise=0)).results
    for name in ("lms", "ss"):
        assert abs(random[name] - 50) < 3 * random[f"{name}_stderr"] and random[f"{name}_low"] < 50 < random[f"{name}_high"]
    stereo = run(tmp_path, whole, scored(stereo=-1, contra=-2, unrelated=-3)).results
    assert stereo["ss"] == 100 and stereo["lms"] == 100 and stereo["icat"] == 0
    contra = run(tmp_path, whole, scored(stereo=-2, contra=-1, unrelated=-3)).results
    assert contra["ss"] == 0 and contra["icat"] == 0
    even = run(tmp_path, whole, scored(stereo=-1, contra=-1, unrelated=-3)).results
    assert even["ss"] == 50 and even["lms"] == even["icat"] == 100
    assert set(random["bias_types"]) == {"gender", "race"} and set(random["halves"]) == {"intrasentence", "intersentence"}
    assert random["halves"]["intersentence"]["bias_types"]["race"]["n"] == 80


def test_from_ten_terms_on_they_are_what_is_resampled(tmp_path):
    """Items that are alike within a term, and terms that differ: only the terms tell how sure the mean is."""
    items = []
    for n in range(240):
        said = {"stereotype": ("contra", "stereo")[n // 20 % 2], "anti-stereotype": "other", "unrelated": "other"}
        sentences = [{"sentence": f"Item {n} is {word}.", "gold_label": label} for label, word in said.items()]
        items.append({"id": n, "target": f"term{n // 20}", "bias_type": "race", "context": "BLANK", "sentences": sentences})
    results = run(tmp_path, {"data": {"intrasentence": items}}, scored(stereo=-1, contra=-3, other=-2)).results
    assert results["ss"] == 50 and results["n_terms"] == 12
    assert results["ss_stderr"] == pytest.approx(50 / 12**0.5, rel=0.1)
    assert results["ss_low"] < 30 and results["ss_high"] > 70


def test_sentences_stand_alone_or_after_their_context(tmp_path):
    subject = Planted()
    outcome = run(tmp_path, stereoset_file(2), subject)
    first, last = outcome.samples[0], outcome.samples[-1]
    assert first["prompt"] == "" and first["choices"][0] == "Term 0 number 0 is stereo." and first["half"] == "intrasentence"
    assert last["prompt"] == "Here is term 1 number 1." and last["choices"][1] == " And it is contra."
    assert subject.calls == [12] and first["labels"] == ["stereotype", "anti-stereotype", "unrelated"]


def test_per_token_or_per_sentence(tmp_path):
    whole = stereoset_file(4)
    long = Planted(lambda r: -float(len(r.continuation)), noise=0)  # the same for each token
    assert run(tmp_path, whole, long).results["ss"] == 50
    whole["data"]["intrasentence"][0]["sentences"][0]["sentence"] += " Or more."
    assert run(tmp_path, whole, long).results["ss"] == 50
    assert run(tmp_path, whole, long, per="sentence").results["ss"] != 50

    class Silent(Planted):
        def likelihoods(self, requests):
            return [Likelihood(-1.0, False) for _ in requests]

    results = run(tmp_path, whole, Silent()).results
    assert results["n"] == 0 and results["ss"] is None and results["problems"]["likelihoods_without_tokens"]["n"] == 8
    assert run(tmp_path, whole, Silent(), per="sentence").results["n"] == 8


def test_rows_with_numbered_labels_are_the_same(tmp_path):
    whole, subject = stereoset_file(12), Planted()
    published = run(tmp_path, whole, subject).results
    numbers = {"anti-stereotype": 0, "stereotype": 1, "unrelated": 2}
    rows = [
        row
        | {
            "sentences": {
                "sentence": [s["sentence"] for s in row["sentences"]],
                "gold_label": [numbers[s["gold_label"]] for s in row["sentences"]],
            }
        }
        for half in ("intrasentence", "intersentence")
        for row in whole["data"][half]
    ]
    assert run(tmp_path, rows, subject).results == published


def test_what_is_wrong_is_named_and_not_scored(tmp_path):
    whole = stereoset_file(8)
    items = whole["data"]["intrasentence"]
    items[0]["sentences"][0]["gold_label"] = "unrelated"
    items[1]["sentences"] = None
    items[2]["target"] = None
    items[3] = "a text"
    items.append(items[4])
    items[5]["sentences"][0]["sentence"] = "NaN"
    results = run(tmp_path, whole, Planted(lambda r: float("nan") if r.continuation == "NaN" else -1.0)).results
    kinds = {kind: problem["n"] for kind, problem in results["problems"].items()}
    assert kinds == {"malformed_items": 4, "duplicate_items": 1, "likelihoods_not_finite": 1}
    assert results["problems"]["likelihoods_not_finite"]["examples"] == [f"row 5: {items[5]['id']}: nan"]
    assert "not one of each of stereotype, anti-stereotype, unrelated" in results["problems"]["malformed_items"]["examples"][0]
    assert results["n"] == 2 + 8 and results["halves"]["intrasentence"]["n"] == 2
    nothing = run(tmp_path, {"version": "1.0", "data": {}}, Planted()).results
    assert nothing["icat"] is None and "neither intrasentence nor" in nothing["problems"]["malformed_items"]["examples"][0]
