"""Closed-book questions: verdicts on answers, calibration by hand, abstention, the published formats."""

import json
import math
import random

import pytest

from lm.errors import UserError
from lm.evals.factuality.answers import abstains, f1, judged, normal
from lm.evals.factuality.calibration import auroc, brier, calibration, ece, risk_coverage
from lm.evals.task import Generated, Likelihood, TaskSettings
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.factuality.knower import Belief, Knower, guesser, oracle, world, write

SURE, RIGHT = [0.95, 0.9, 0.85, 0.45, 0.4], [True, True, False, True, False]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Beatles", "beatles"),
        ("  An  apple, a day! ", "apple day"),
        ("Jean-Paul's", "jeanpauls"),
        ("“Hamlet”", "hamlet"),
        ("rock_and_roll", "rock and roll"),
        ("1,000", "1000"),
        ("The", "the"),  # nothing would be left
        ("Cafe\u0301", "caf\u00e9"),
    ],
)
def test_answers_are_compared_as_squad_does(text, expected):
    assert normal(text) == expected


@pytest.mark.parametrize(
    "answer, match, verdict",
    [
        ("Paris", "exact", "correct"),
        ("the paris.", "exact", "correct"),
        ("City of Light", "exact", "correct"),  # an alias
        ("It is Paris", "exact", "incorrect"),
        ("It is Paris.", "contains", "correct"),
        ("It is Parisian", "contains", "incorrect"),  # another word
        ("It is not Paris", "contains", "incorrect"),
        ("Paris or Rome", "contains", "incorrect"),
        ("Rome", "exact", "incorrect"),
        ("I don't know", "exact", "abstained"),
        ("I don’t know.", "exact", "abstained"),
        ("i do not really know", "contains", "abstained"),
        ("I'm not sure whether it is Paris", "contains", "abstained"),
        ("I'm not sure, but I think it is Paris", "contains", "correct"),
        ("I'm not sure, but I think it is Rome", "contains", "incorrect"),
        ("I don't know, but you could ask a teacher", "contains", "abstained"),
        ("I cannot answer that question", "exact", "abstained"),
        ("I'm sorry, but I can't help with that", "exact", "abstained"),
        ("There is not enough information", "exact", "abstained"),
        ("unknown", "exact", "abstained"),
        ("Unknown Pleasures", "exact", "incorrect"),
        ("", "exact", "abstained"),
        ("PASS", "exact", "abstained"),  # the phrase that this task agreed on
        ("Passau", "exact", "incorrect"),
    ],
)
def test_a_verdict_on_an_answer(answer, match, verdict):
    assert judged(answer, ["Paris", "City of Light"], "pass", match) == verdict


def test_an_answer_that_sounds_like_silence_is_right_where_it_is_the_answer():
    assert judged("Unknown", ["unknown"]) == "correct"
    assert judged("Paris", []) == "incorrect"  # nobody knows, and it makes something up
    assert abstains(" ") and not abstains("I know") and f1("the big cat", ["a cat", "dog"]) == pytest.approx(2 / 3)


def test_calibration_by_hand():
    # Five bins of a width of 0.2: 0.95, 0.9, 0.85 (2 of 3 right, mean 0.9); 0.45 (right); 0.4, on an edge, so below it (wrong).
    wide, bins = ece(SURE, RIGHT, bins=5)
    assert wide == pytest.approx(3 / 5 * (0.9 - 2 / 3) + 1 / 5 * 0.55 + 1 / 5 * 0.4)
    assert [(b["n"], b["low"], b["high"]) for b in bins] == [(1, 0.2, 0.4), (1, 0.4, 0.6), (3, 0.8, 1.0)]
    assert brier(SURE, RIGHT) == pytest.approx((0.05**2 + 0.1**2 + 0.85**2 + 0.55**2 + 0.4**2) / 5)
    assert auroc(SURE, RIGHT) == pytest.approx(5 / 6)  # of 3 · 2 pairs only (0.45, 0.85) is in the wrong order
    area, curve = risk_coverage(SURE, RIGHT)
    assert area == pytest.approx((0 + 0 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert curve["coverage"] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert curve["risk"] == pytest.approx([0, 0, 1 / 3, 1 / 4, 2 / 5])


def test_equal_confidences_have_no_order():
    area, curve = risk_coverage([0.9, 0.9, 0.5], [True, False, True])
    assert curve["risk"] == pytest.approx([1 / 2, 1 / 2, 1 / 3]) and area == pytest.approx(4 / 9)
    assert auroc([0.9, 0.9, 0.5], [True, False, True]) == 0.25
    draw = random.Random(1)
    sure = [draw.choice([0.1, 0.3, 0.5, 0.7, 1.0, 0.0]) for _ in range(60)]
    right = [draw.random() < s for s in sure]
    whole = calibration(sure, right)
    for seed in range(5):
        order = random.Random(seed).sample(range(60), 60)
        assert calibration([sure[i] for i in order], [right[i] for i in order]) == whole


def test_who_is_as_often_right_as_sure_is_calibrated():
    draw = random.Random(2)
    sure = [draw.random() for _ in range(20000)]
    honest = calibration(sure, [draw.random() < s for s in sure])
    assert honest["ece_equal_width"] < 0.02
    assert honest["brier"] == pytest.approx(1 / 6, abs=0.01)  # E[s(1 − s)]
    assert len(honest["bins"]["equal_width"]) == 15
    nothing = calibration([], [])
    assert nothing["aurc"] is None and nothing["ece_equal_width"] is None and nothing["bins"]["equal_width"] == []


def test_a_guesser_scores_chance_and_an_oracle_everything(tmp_path):
    task = open_task("closed_book_qa", world(tmp_path))
    hits = [s["metrics"]["accuracy"] for seed in range(15) for s in task.run(guesser(seed)).samples if s["answerable"]]
    assert abs(sum(hits) / len(hits) - 1 / 10) < 3 * math.sqrt(0.1 * 0.9 / len(hits))
    best = task.run(oracle())
    assert best.results["accuracy"] == best.results["truthful_score"] == best.results["unanswerable_abstained"] == 1
    assert best.results["hallucination_rate"] == 0 and best.results["verdicts"]["abstained"] == 4
    assert best.results["auroc"] is None  # nothing is wrong
    assert not any(s["failed"] for s in best.samples)


def test_who_never_answers_hallucinates_nothing_and_knows_nothing(tmp_path):
    results = open_task("closed_book_qa", world(tmp_path)).run(Knower("mute", lambda name, salt: Belief(None, 0.5))).results
    assert results["abstention_rate"] == results["unanswerable_abstained"] == 1 and results["accuracy"] == 0
    assert results["hallucination_rate"] is None and results["ece_equal_width"] is None and results["aurc"] is None
    assert results["truthful_score"] == pytest.approx(4 / 24)


def test_samples_tell_all_that_was_asked(tmp_path):
    settings = world(tmp_path)._replace(chat=True, system="Be brief.", limit=2)
    outcome = open_task("closed_book_qa", settings).run(guesser(0))
    assert outcome.results["n"] == 2
    sample = outcome.samples[0]
    assert sample["messages"][0]["content"].startswith("Be brief.") and sample["messages"][-1]["role"] == "user"
    assert "write: I don't know" in sample["messages"][0]["content"] and sample["prompt"].endswith("<assistant>")
    assert sample["target"] == ["Arvo"] and sample["reference"] == "Arvo" and sample["tokens"] == [[3], [1, 2]]
    assert sample["failed"] == (sample["verdict"] == "incorrect")
    assert json.dumps(outcome.results) == json.dumps(open_task("closed_book_qa", settings).run(guesser(0)).results)


class Script:
    """Answers each prompt by the last of its words that the script knows. logp: of every likelihood."""

    name = "script"

    def __init__(self, answers, logp=-1.0):
        self.answers, self.logp, self.prompts = answers, logp, []

    def generate(self, prompts):
        self.prompts += [p.text for p in prompts]
        return [self.answers[max(self.answers, key=p.text.rfind)] for p in prompts]

    def likelihoods(self, requests):
        self.asked = list(requests)
        return [Likelihood(self.logp, False, (1, 2)) for _ in requests]


def test_confidence_is_the_likelihood_of_what_was_said_per_token(tmp_path):
    write(tmp_path, "closed_book_qa", [{"question": "Why?", "answers": ["x"]}])
    script = Script({"Why": Generated("\n Because.\nMore of it")})
    settings = TaskSettings(data_dir=tmp_path, options={"closed_book": {"confidence": ["likelihood"]}})
    sample = open_task("closed_book_qa", settings).run(script).samples[0]
    assert script.asked[0].continuation == "\n Because." and sample["answer"] == "Because."
    assert sample["confidence"] == pytest.approx(math.exp(-0.5)) and sample["p_true"] is None


def test_what_is_wrong_is_named_and_not_scored(tmp_path):
    rows = [
        {"id": 1, "question": "One?", "answers": ["1"]},
        {"id": 1, "question": "Two?", "answers": ["2"]},
        {"question": "Three?"},
        {"question": "Four?", "answers": []},
        {"question": "Five?", "answers": [None]},
        {"question": 6, "answers": ["6"], "answerable": "yes"},
        {"question": "Seven?", "answers": [7], "answerable": True},
        {"question": "Eight?", "answers": ["8"]},
        {"question": "Nine?", "answers": ["9"]},
    ]
    write(tmp_path, "closed_book_qa", rows)
    (tmp_path / "closed_book_qa" / "more_test.jsonl").write_text('{"question": \n[]\n')
    (tmp_path / "closed_book_qa" / "void_test.jsonl").write_text("")
    script = Script(
        {"Seven": Generated(" 7"), "Eight": Generated("", problem="no room"), "Nine": Generated(" "), "Qu": Generated("?")},
        math.nan,
    )
    outcome = open_task("closed_book_qa", TaskSettings(data_dir=tmp_path)).run(script)
    problems = {kind: problem["n"] for kind, problem in outcome.results["problems"].items()}
    assert problems.pop("likelihoods_not_finite") == 2  # by likelihood and P(True)
    assert problems == {"duplicate_items": 1, "malformed_items": 6, "empty_files": 1, "answers_missing": 1, "empty_answers": 1}
    assert [s["doc_id"] for s in outcome.samples] == [8, 10] and outcome.samples[0]["confidence"] is None
    assert outcome.results["accuracy"] == 1 / 2 and outcome.results["brier"] is None


@pytest.mark.parametrize(
    "options, word",
    [
        ({"match": "fuzzy"}, "match"),
        ({"confidence": ["vibes"]}, "vibes"),
        ({"phrase": "x"}, "phrase"),
        ({"until": "x"}, "until"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, options, word):
    with pytest.raises(UserError, match=word):
        open_task("closed_book_qa", world(tmp_path)._replace(options={"closed_book": options}))


def test_triviaqa_and_natural_questions_as_published(tmp_path):
    def trivia(n):
        return {"question": f"Q{n}", "question_id": f"tc_{n}", "answer": {"aliases": [f"A{n}", f"The A{n}"], "value": f"A{n}"}}

    for split, numbers in (("validation", (0, 1)), ("train", (2, 3))):
        (tmp_path / "triviaqa").mkdir(exist_ok=True)
        (tmp_path / "nq_open").mkdir(exist_ok=True)
        (tmp_path / "triviaqa" / f"{split}.jsonl").write_text("\n".join(json.dumps(trivia(n)) for n in numbers))
        lines = (json.dumps({"question": f"q{n}", "answer": [f"A{n}"]}) for n in numbers)
        (tmp_path / "nq_open" / f"{split}.jsonl").write_text("\n".join(lines))
    script = Script({"Q0?": Generated(" the a0"), "Q1?": Generated(" B"), "q0?": Generated(" a0"), "q1?": Generated(" b")})
    trivia_qa = open_task("triviaqa", TaskSettings(data_dir=tmp_path, num_fewshot=1)).run(script)
    assert trivia_qa.results["accuracy"] == trivia_qa.results["exact_match"] == 1 / 2
    assert [s["doc_id"] for s in trivia_qa.samples] == ["tc_0", "tc_1"]
    assert script.prompts[0] in {f"Question: Q{n}?\nAnswer: A{n}\n\nQuestion: Q0?\nAnswer:" for n in (2, 3)}
    natural = open_task("nq_open", TaskSettings(data_dir=tmp_path, num_fewshot=1)).run(script)
    assert natural.results["accuracy"] == 1 / 2
    assert script.prompts[2] in {f"Answer these questions:\n\nQ: q{n}?\nA: A{n}\nQ: q0?\nA:" for n in (2, 3)}
