"""SelfCheckGPT: unigrams by hand, judgements of sentences by samples, chance, and what it cannot see."""

import math

import pytest

from lm.errors import UserError
from lm.evals.factuality.selfcheck import unigram
from lm.evals.judges.endpoint import Reply
from lm.evals.task import Generated, TaskSettings
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.factuality.knower import Belief, Knower, checked, guesser, invented, oracle, world, write


def test_unigrams_by_hand():
    found = unigram(["a b", "a c"], ["a b a b", "d"])
    # Counts: a 4, b 3, c 1, d 1 of 9.
    a, b, c = (-math.log(n / 9) for n in (4, 3, 1))
    assert found["inconsistency_unigram_avg_nll"] == pytest.approx((2 * a + b + c) / 4)
    assert found["inconsistency_unigram_max_nll"] == pytest.approx((b + c) / 2)


class Draws:
    """Says the first text greedily, and of the others the one of the seed."""

    name = "draws"

    def __init__(self, *texts):
        self.texts, self.prompts = texts, []

    def generate(self, prompts):
        self.prompts += prompts
        return [Generated(self.texts[p.seed % len(self.texts) if p.temperature else 0]) for p in prompts]


def one(folder, subject, **options):
    write(folder, "selfcheck", [{"prompt": "Who was Ada?", "reference": "Ada was born in Ulm."}])
    task = open_task("selfcheck", TaskSettings(data_dir=folder, seed=0, options={"selfcheck": options}))
    return checked(task).run(subject)


def test_sentences_against_samples(tmp_path):
    greedy = "Ada was born in Ulm. Ada died in 1950."
    subject = Draws(greedy, "Ada was born in Ulm. Ada died in 1960.", "Ada was born in Ulm.", greedy, "Ada was born in Graz.")
    outcome = one(tmp_path, subject, samples=4)
    sample = outcome.samples[0]
    assert [row["verdicts"] for row in sample["sentences"]] == [
        ["supported", "supported", "supported", "contradicted"],
        ["contradicted", "unsupported", "supported", "unsupported"],
    ]
    assert outcome.results["inconsistency"] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert outcome.results["samples_contradicted"] == pytest.approx((1 / 4 + 1 / 4) / 2)
    assert sample["verdict"] == "consistent" and not sample["failed"] and sample["reference"] == "Ada was born in Ulm."
    assert [p.seed for p in subject.prompts if p.temperature] == [1, 2, 3, 4] and len(subject.prompts) == 5


def test_judgements_that_fail_count_for_nothing(tmp_path):
    write(tmp_path, "selfcheck", [{"prompt": "Who was Ada?"}])
    task = open_task("selfcheck", TaskSettings(data_dir=tmp_path, options={"selfcheck": {"samples": 3}}))

    def chat(conversations):
        said = ['{"verdict": "supported"}', None, '{"verdict": "contradicted"}']
        return [Reply(text, "" if text else "timed out") for _, text in zip(conversations, said, strict=True)]

    results = task._replace(chat=chat).run(Draws("Ada was born in Ulm.")).results
    assert results["inconsistency"] == 1 / 2 and results["problems"]["unknown_judgements"]["n"] == 1
    failed = task._replace(chat=lambda c: [Reply(None, "timed out")] * len(c)).run(Draws("Ada was born in Ulm."))
    assert (
        failed.results["inconsistency"] is None
        and failed.samples[0]["verdict"] == "unknown"
        and not failed.samples[0]["failed"]
    )


def test_a_guesser_scores_chance(tmp_path):
    """It draws of 10 towns, 4 trades and 2 years: a sample says something else 9, 3 and 1 times of 10, 4 and 2."""
    task = checked(open_task("selfcheck", world(tmp_path)))
    values = [s["metrics"]["inconsistency"] for seed in range(5) for s in task.run(guesser(seed)).samples]
    mean = sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    assert abs(mean - (9 / 10 + 3 / 4 + 1 / 2) / 3) < 3 * error
    assert task.run(oracle()).results["inconsistency"] == 0


def test_a_steady_falsehood_is_consistent(tmp_path):
    """What the measure cannot see: the same falsehood in every draw."""
    task = checked(open_task("selfcheck", world(tmp_path)))
    assert task.run(Knower("steady", lambda name, salt: Belief(invented(name, "once"), 0.99))).results["inconsistency"] == 0


def test_silence_is_not_checked(tmp_path):
    outcome = one(tmp_path, Draws("I don't know.", "Ada was born in Ulm."))
    assert outcome.results["abstained"] == 1 and outcome.results["inconsistency"] is None
    assert outcome.samples[0]["verdict"] == "abstained" and not outcome.samples[0]["failed"]
    talks = one(tmp_path, Draws("Ada was born in Ulm.", "I don't know."), samples=1)
    assert talks.results["inconsistency"] == 1  # the sample does not support it


def test_without_a_judge_words_are_compared(tmp_path):
    write(tmp_path, "selfcheck", [{"prompt": "Who was Ada?"}])
    outcome = open_task("selfcheck", TaskSettings(data_dir=tmp_path)).run(
        Draws("Ada was born in Ulm.", "Ada was born in Graz.")
    )
    assert outcome.results["inconsistency"] is None and not outcome.results["problems"] and not outcome.samples[0]["failed"]
    assert outcome.results["inconsistency_unigram_avg_nll"] > 0


@pytest.mark.parametrize("options", [{"samples": 0}, {"temperature": 0.0}, {"judge": "classifier:x"}, {"sample": 3}])
def test_settings_that_cannot_be_used(tmp_path, options):
    with pytest.raises(UserError, match=next(iter(options))):
        one(tmp_path, Draws("x"), **options)
