"""CrowS-Pairs: shares worked by hand, ties, chance, and what is wrong with the files."""

import json
import math

import pytest

from lm.evals.stats.intervals import wilson
from lm.evals.task import TaskSettings
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.bias.bias_subjects import Planted, crows_rows, write_lines

LOGPS = ((-10.0, -12.0), (-10.0, -11.0), (-9.0, -6.0), (-5.0, -5.0))  # of the more and of the less stereotypical sentence


def run(tmp_path, rows, subject, **settings):
    write_lines(tmp_path / "crows_pairs" / "pairs.jsonl", rows)
    return open_task("crows_pairs", TaskSettings(data_dir=tmp_path, **settings)).run(subject)


def worked():
    rows = crows_rows(4)
    logps = {row[key]: logp for row, both in zip(rows, LOGPS) for key, logp in zip(("sent_more", "sent_less"), both)}
    return rows, Planted(lambda request: logps.get(request.continuation, math.nan), noise=0)


def test_values_equal_those_worked_by_hand(tmp_path):
    outcome = run(tmp_path, *worked())
    results = outcome.results
    # Two of four with the stereotype, one against it, one tie: 2½/4. Differences 2, 1, 3, 0.
    assert results["pct_stereotype"] == 0.625 and results["n"] == 4 and results["n_ties"] == 1
    assert (results["pct_stereotype_low"], results["pct_stereotype_high"]) == pytest.approx(wilson(2.5, 4))
    assert results["likelihood_diff"] == 1.5 and results["likelihood_diff_stderr"] == pytest.approx((5 / 3 / 4) ** 0.5)
    assert results["p"] == 1.0  # two of three
    types = results["bias_types"]
    assert types["gender"]["pct_stereotype"] == 0.75 and types["gender"]["n"] == 2  # rows 0 and 3
    assert types["religion"]["pct_stereotype"] == 0 and types["religion"]["likelihood_diff"] == 3
    assert set(results["directions"]) == {"stereo"} and results["problems"] == {}
    sample = outcome.samples[2]
    assert sample["prompt"] == "" and sample["choices"] == ["Pair 2 is stereo.", "Pair 2 is contra."]
    assert sample["loglikelihoods"] == [-9.0, -6.0] and sample["metrics"] == {"pct_stereotype": 0.0, "likelihood_diff": 3.0}
    assert not sample["failed"] and outcome.samples[0]["failed"]
    json.dumps(outcome.results), json.dumps(outcome.samples)


def test_the_sign_test_is_exact_and_two_sided(tmp_path):
    rows = crows_rows(10)
    results = run(tmp_path, rows, Planted(lambda request: float("stereo" in request.continuation), noise=0)).results
    assert results["pct_stereotype"] == 1 and results["p"] == pytest.approx(2 / 2**10)
    one = rows[0]["sent_less"]
    score = Planted(lambda request: float("stereo" in request.continuation) + 2 * (request.continuation == one), noise=0)
    assert run(tmp_path, rows, score).results["p"] == pytest.approx(2 * (1 + 10) / 2**10)


def test_a_random_model_is_at_chance(tmp_path):
    subject = Planted()
    results = run(tmp_path, crows_rows(400), subject).results
    assert abs(results["pct_stereotype"] - 0.5) < 3 * 0.5 / math.sqrt(400)
    assert results["pct_stereotype_low"] < 0.5 < results["pct_stereotype_high"] and results["p"] > 0.01
    assert results["likelihood_diff_low"] < results["likelihood_diff"] < results["likelihood_diff_high"]
    assert subject.calls == [800]  # all at once
    assert set(results["directions"]) == {"antistereo", "stereo"} and results["directions"]["antistereo"]["n"] == 80
    same = run(tmp_path, crows_rows(400), Planted(noise=0)).results
    assert same["pct_stereotype"] == 0.5 and same["n_ties"] == 400 and same["p"] == 1


def test_the_same_figures_as_lm_eval(tmp_path):
    theirs = pytest.importorskip("lm_eval.tasks.crows_pairs.utils")
    rows = crows_rows(50)
    outcome = run(tmp_path, rows, Planted())
    parts = [theirs.process_results(None, [(ll, False) for ll in sample["loglikelihoods"]]) for sample in outcome.samples]
    for metric in ("pct_stereotype", "likelihood_diff"):
        assert outcome.results[metric] == pytest.approx(sum(part[metric] for part in parts) / len(parts))
    assert [sample["choices"] for sample in outcome.samples] == [theirs.doc_to_choice(row) for row in rows]


def test_the_published_columns_are_read(tmp_path):
    folder = tmp_path / "crows_pairs"
    folder.mkdir()
    (folder / "crows_pairs_anonymized.csv").write_text(
        ",id,sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators\n"
        "0,1,\"They said, 'no'; it was stereo.\",\"They said, 'no'; it was contra.\",stereo,race-color,[],a0,\"['a7']\"\n"
        "1,2,All stereo.,All contra.,antistereo,age,[[]],a1,['a8']\n"
    )
    outcome = open_task("crows_pairs", TaskSettings(data_dir=tmp_path, chat=True)).run(Planted())
    assert outcome.results["n"] == 2 and set(outcome.results["bias_types"]) == {"race-color", "age"}
    assert outcome.samples[0]["choices"][0] == "They said, 'no'; it was stereo." and outcome.samples[0]["prompt"] == ""


def test_what_is_wrong_is_named_and_not_scored(tmp_path):
    rows, subject = worked()
    more = crows_rows(12)
    rows += [
        more[4] | {"sent_less": more[4]["sent_more"]},
        more[5] | {"bias_type": None},
        more[6] | {"stereo_antistereo": "both"},
        more[7] | {"sent_more": " "},
        more[8],
        more[8],
        more[9],
    ]
    results = run(tmp_path, rows, subject).results
    assert {kind: problem["n"] for kind, problem in results["problems"].items()} == {
        "malformed_items": 4,
        "duplicate_items": 1,
        "likelihoods_not_finite": 1,
    }
    assert results["problems"]["malformed_items"]["examples"] == [
        "row 4: 'sent_more' and 'sent_less' are the same",
        "row 5: no 'bias_type'",
        "row 6: 'stereo_antistereo' is 'both', not stereo or antistereo",
        "row 7: a sentence is empty",
    ]
    assert results["problems"]["duplicate_items"]["examples"] == ["9: rows 8, 9"]
    assert results["problems"]["likelihoods_not_finite"]["examples"] == ["row 10: nan"]
    assert results["pct_stereotype"] == 0.625 and results["n"] == 4
    nothing = run(tmp_path, [], subject).results
    assert nothing["pct_stereotype"] is None and nothing["p"] is None and nothing["problems"]["empty_files"]["n"] == 1
