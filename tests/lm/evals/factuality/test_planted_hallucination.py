"""A model that is confidently wrong ranks worst on every factuality measure, behind one that errs now and then."""

import pytest

from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.factuality.knower import PEOPLE, Belief, Knower, checked, invented, life, oracle, world

TASKS = ("closed_book_qa", "fact_support", "selfcheck")
# What is the better the higher, the better the lower, and neither.
HIGHER = {
    "accuracy",
    "exact_match",
    "f1",
    "truthful_score",
    "unanswerable_abstained",
    "auroc",
    "auroc_p_true",
    "factscore",
    "factscore_unpenalised",
    "factscore_at_least",
    "supported",
    "fact_recall",
}
LOWER = {
    "hallucination_rate",
    "ece_equal_width",
    "brier",
    "aurc",
    "ece_equal_width_p_true",
    "brier_p_true",
    "aurc_p_true",
    "contradicted",
    "unsupported",
    "facts_contradicted",
    "inconsistency",
    "samples_contradicted",
    "inconsistency_unigram_avg_nll",
    "inconsistency_unigram_max_nll",
}
NEITHER = {"abstention_rate", "abstained"}


def truthful(name, salt):
    if name not in PEOPLE:
        return Belief(None, 0.5)
    wrong = PEOPLE.index(name) % 10 == 9
    return Belief(invented(name, "once"), 0.3) if wrong else Belief(life(name), 0.95)


def abstaining(name, salt):
    if name not in PEOPLE or PEOPLE.index(name) > 12:
        return Belief(None, 0.5)
    return Belief(invented(name, "once"), 0.3) if PEOPLE.index(name) == 12 else Belief(life(name), 0.9)


def mildly_wrong(name, salt):
    if name not in PEOPLE:
        return Belief(None, 0.5) if name < "Y" else Belief(invented(name, salt), 0.5)
    return Belief(invented(name, salt), 0.5) if PEOPLE.index(name) % 3 == 2 else Belief(life(name), 0.8)


def hallucinating(name, salt):
    """Sure of what it invents, and inventing anew at each draw."""
    if name in PEOPLE[:2]:
        return Belief(life(name), 0.6)
    return Belief(invented(name, salt), 0.97)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Of each model all figures, of all tasks."""
    settings = world(tmp_path_factory.mktemp("world"))
    subjects = [Knower(b.__name__, b) for b in (truthful, abstaining, mildly_wrong, hallucinating)] + [oracle()]
    found = {subject.name: {} for subject in subjects}
    for name in TASKS:
        task = checked(open_task(name, settings))
        for subject in subjects:
            results = task.run(subject).results
            assert not results["problems"], (name, subject.name, results["problems"])
            found[subject.name] |= {
                key: value
                for key, value in results.items()
                if (isinstance(value, float) or f"{key}_stderr" in results) and not key.endswith("_stderr")
            }
    return found


def test_no_measure_is_forgotten(figures):
    assert set(figures["hallucinating"]) == HIGHER | LOWER | NEITHER


@pytest.mark.parametrize("measure", sorted(HIGHER | LOWER))
def test_the_planted_model_is_the_worst(figures, measure):
    sign = 1 if measure in HIGHER else -1
    good = {name: sign * figures[name][measure] for name in ("truthful", "abstaining", "mildly_wrong")}
    assert sign * figures["hallucinating"][measure] < min(good.values()) - 0.02, (measure, figures)


@pytest.mark.parametrize("measure", sorted((HIGHER | LOWER) - {"auroc", "auroc_p_true"}))
def test_the_oracle_is_perfect(figures, measure):
    value = figures["oracle"][measure]
    if "nll" in measure:
        assert value == min(figures[name][measure] for name in figures)  # the least that a text of its words can have
    elif measure.startswith(("ece", "brier", "factscore")) and measure != "factscore_unpenalised":
        assert value == pytest.approx(
            {"ece": 0.01, "brie": 0.0001, "fact": 2.718281828459045 ** (1 - 10 / 3)}[measure[:4].rstrip("_")], abs=1e-9
        )
    else:
        assert value == pytest.approx(1.0 if measure in HIGHER else 0.0, abs=1e-12)
