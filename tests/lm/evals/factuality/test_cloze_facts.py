"""Cloze facts: rank of the true object, ties, candidates, consistency of paraphrases."""

import math
import random
import zlib

import pytest

from lm.evals.factuality.cloze import ranked
from lm.evals.task import Likelihood, TaskSettings
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.factuality.knower import oracle, world, write


class Scores:
    """score(context, continuation): the log-likelihood."""

    name = "scores"

    def __init__(self, score):
        self.score, self.asked = score, []

    def likelihoods(self, requests):
        self.asked += requests
        return [Likelihood(self.score(*request), False, (len(request.continuation),), (0,)) for request in requests]


def run(folder, rows, score, **settings):
    write(folder, "cloze_facts", rows)
    return open_task("cloze_facts", TaskSettings(data_dir=folder, **settings)).run(Scores(score))


def fact(subject, object, **more):
    return {"subject": subject, "object": object, "relation": "born", "template": "[X] was born in [Y]."} | more


def test_ranks_by_hand():
    assert ranked([-1.0, -2.0, -3.0], 0) == (1.0, 1.0) and ranked([-1.0, -2.0, -3.0], 2) == (0.0, 3.0)
    assert ranked([-1.0, -1.0, -3.0], 0) == (0.5, 1.5) and ranked([-1.0] * 4, 2) == (0.25, 2.5)


def test_figures_by_hand(tmp_path):
    scores = {" Ulm.": -1.0, " Graz.": -3.0, " Linz.": -2.0}
    outcome = run(tmp_path, [fact("A", "Ulm"), fact("B", "Graz"), fact("C", "Linz")], lambda c, text: scores[text])
    assert outcome.results["precision_at_1"] == pytest.approx(1 / 3) and outcome.results["chance"] == pytest.approx(1 / 3)
    assert outcome.results["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert outcome.results["margin"] == pytest.approx((1 - 2 - 1) / 3)
    assert outcome.results["precision_at_1_bytes"] == pytest.approx(1 / 3)  # −1/5, −3/6, −2/6
    assert outcome.results["consistency"] is None
    sample = outcome.samples[1]
    assert sample["prompt"] == "B was born in" and sample["choices"] == [" Graz.", " Linz.", " Ulm."]
    assert sample["loglikelihoods"] == [-3.0, -2.0, -1.0] and sample["target"] == 0 and sample["reference"] == "Graz."
    assert sample["failed"] and sample["answer"] == "Ulm" and sample["tokens"][0] == [[0], [6]]
    assert outcome.results["relations"]["born"]["n"] == 3


def test_consistency_of_paraphrases(tmp_path):
    rows = [
        fact("A", "Ulm", paraphrases=["The birthplace of [X] is [Y].", "[X] comes from [Y]."], distractors=["Graz"]),
        fact("B", "Ulm", distractors=["Graz"]),
    ]
    steady = run(tmp_path, rows, lambda context, text: -1.0 if "Ulm" in text else -2.0)
    assert steady.results["consistency"] == 1 and steady.results["consistently_right"] == 1
    torn = run(tmp_path, rows, lambda context, text: -1.0 if ("Ulm" in text) != ("comes" in context) else -2.0)
    assert torn.results["consistency"] == pytest.approx(1 / 3) and torn.results["consistently_right"] == 0
    assert torn.samples[0]["answers"] == ["Ulm", "Ulm", "Graz"] and torn.results["precision_at_1"] == 1
    assert torn.samples[1]["metrics"]["consistency"] is None


def test_chance(tmp_path):
    settings = world(tmp_path)
    task = open_task("cloze_facts", settings)

    def noise(seed):
        return Scores(lambda context, text: -random.Random(zlib.crc32(f"{seed}{context}{text}".encode())).random())

    samples = [s for seed in range(15) for s in task.run(noise(seed)).samples]
    hits, n = sum(s["metrics"]["precision_at_1"] for s in samples), len(samples)
    assert n == 300 and abs(hits / n - 0.1) < 3 * math.sqrt(0.1 * 0.9 / n)
    ranks = [1 / k for k in range(1, 11)]
    mrr = sum(ranks) / 10
    deviation = math.sqrt(sum((r - mrr) ** 2 for r in ranks) / 10)
    assert abs(sum(s["metrics"]["mrr"] for s in samples) / n - mrr) < 3 * deviation / math.sqrt(n)
    blank = task.run(Scores(lambda context, text: -1.0)).results
    assert blank["precision_at_1"] == pytest.approx(0.1) and blank["margin"] == 0 and blank["chance"] == pytest.approx(0.1)
    assert task.run(oracle()).results["precision_at_1"] == 1


def test_other_true_objects_are_no_candidates(tmp_path):
    rows = [fact("A", "Ulm"), fact("A", "Graz"), fact("B", "Linz")]
    outcome = run(tmp_path, rows, lambda context, text: -1.0)
    assert [s["choices"] for s in outcome.samples] == [[" Linz.", " Ulm."], [" Graz.", " Linz."], [" Graz.", " Linz.", " Ulm."]]


@pytest.mark.parametrize(
    "row, prompt, choice",
    [
        (fact("A", "Ulm", template="[X] was born in [MASK] ."), "A was born in", " Ulm ."),
        (fact("A", "Ulm", template="[Y] is where [X] was born."), "", "Ulm is where A was born."),
        ({"subject": "A", "object": "Ulm", "prompt": "A was born in", "distractors": ["x"]}, "A was born in", " Ulm"),
        ({"subject": "A", "object": "Ulm", "prompt": "Ort: ", "distractors": ["x"]}, "Ort:", " Ulm"),
        (fact("A", "Ulm", template=None), "The home of A is", " Ulm."),  # from the task file
    ],
)
def test_forms_of_sentences(tmp_path, row, prompt, choice):
    options = {"cloze": {"templates": {"born": ["The home of [X] is [Y].", "[X] is of [Y]."]}}}
    outcome = run(tmp_path, [row, fact("B", "Graz")], lambda context, text: -1.0, options=options)
    sample = outcome.samples[0]
    assert sample["prompt"] == prompt and sample["choices"][sample["target"]] == choice


def test_what_is_wrong_is_named(tmp_path):
    rows = [
        fact("A", "Ulm"),
        fact("A", "Ulm"),
        fact("B", ""),
        fact("C", "Graz", template="[Y] and [Y]"),
        fact("D", "Linz"),
        fact("E", "Rome", relation="lone"),
        fact("F", "Bonn"),
        {"subject": "G", "object": "x"},
    ]
    outcome = run(tmp_path, rows, lambda context, text: math.nan if context.startswith("F") else -1.0)
    problems = {kind: problem["n"] for kind, problem in outcome.results["problems"].items()}
    assert problems == {"duplicate_items": 1, "malformed_items": 4, "likelihoods_not_finite": 1}
    assert [s["doc_id"] for s in outcome.samples] == [4] and outcome.results["n"] == 1
