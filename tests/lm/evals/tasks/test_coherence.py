"""Repetition, and a judge that is asked in both orders."""

import json

import pytest

from lm.errors import UserError
from lm.evals.judges.endpoint import Reply
from lm.evals.stats.repetition import repetition, split_words
from lm.evals.task import Generated, TaskSettings
from lm.evals.tasks.catalogue import open_task
from lm.evals.tasks.coherence import preferences
from tests.lm.evals.factuality.knower import write

STORY = (
    "The harbour of Marno lies behind a long wall. The wall was built by fishermen after a storm. The storm had sunk nine "
    "boats in one night. Most of the boats belonged to a family called Teller."
)
LOOP = "The dog saw the cat. " * 12


def test_repetition_by_hand():
    assert repetition(split_words("a b a b a b c")) == 1 - 3 / 4  # abab, baba, abab, babc
    assert repetition(split_words("One two three.")) == 0.0
    assert repetition(split_words("One two")) is None and repetition([]) is None
    assert split_words("猫が猫を見た") == list("猫が猫を見た")  # each character is a word
    assert repetition(split_words(LOOP)) > 0.8 > 0.1 > repetition(split_words(STORY))


class Writer:
    """Continues every prompt with the same text."""

    name = "writer"

    def __init__(self, text, problem=""):
        self.text, self.problem = text, problem

    def generate(self, prompts):
        return [Generated(self.text(p.text) if callable(self.text) else self.text, problem=self.problem) for p in prompts]


def run(folder, rows, subject, chat=None, **options):
    write(folder, "coherence", rows)
    task = open_task("coherence", TaskSettings(data_dir=folder, options={"coherence": options} if options else {}))
    return task._replace(chat=chat).run(subject)


def judge(prefers):
    """A judge that answers A or B, by what it sees at each place."""

    def chat(conversations):
        replies = []
        for (message,) in conversations:
            a, b = (message["content"].split(f"<{x}-")[1].split(f"</{x}-")[0].split("\n", 1)[1].strip() for x in "AB")
            replies.append(prefers(a, b))
        return [reply if isinstance(reply, Reply) else Reply(json.dumps({"better": reply})) for reply in replies]

    return chat


def test_a_preference_must_hold_in_both_orders():
    def said(prefers):
        (verdict, consistent), *_ = preferences(judge(prefers), [("x", "good", "bad")])
        return verdict.label, consistent, verdict.reason

    assert said(lambda a, b: "A" if a == "good" else "B")[:2] == ("first", True)
    assert said(lambda a, b: "A" if a == "bad" else "B")[:2] == ("second", True)
    assert said(lambda a, b: "tie")[:2] == ("tie", True)
    assert said(lambda a, b: "A")[:2] == ("tie", False)  # the first place, whatever stands there
    assert said(lambda a, b: "A" if a == "good" else "tie")[:2] == ("tie", False)
    assert said(lambda a, b: "A" if a == "good" else Reply(None, "timed out")) == ("unknown", False, "timed out")
    assert said(lambda a, b: Reply("I like both"))[0] == "unknown"
    assert said(lambda a, b: Reply('{"better": "A"} or {"better": "B"}'))[0] == "unknown"

    def broken(conversations):
        raise OSError("gone")

    assert [v.label for v, _ in preferences(broken, [("x", "a", "c"), ("y", "b", "d")])] == ["unknown"] * 2
    assert preferences(lambda c: [Reply("{}")], [("x", "a", "b")])[0][0].label == "unknown"


def test_the_judge_in_the_task(tmp_path):
    rows = [{"id": str(n), "prompt": f"Beginning {n}.", "reference": f"Reference {n}."} for n in range(4)]
    rows.append({"id": "alone", "prompt": "Beginning without a reference."})
    writer = Writer(lambda prompt: "Better." if "0" in prompt or "1" in prompt else "Worse.")

    def prefers(a, b):
        if "3." in a + b:
            return Reply(None, "timed out")
        return "A" if a == "Better." or b == "Worse." else "B"

    outcome = run(tmp_path, rows, writer, judge(prefers))
    assert outcome.results["judge_win_rate"] == pytest.approx(2 / 3) and outcome.results["judge_inconsistent"] == 0
    assert outcome.results["problems"]["unknown_judgements"]["n"] == 1
    assert [s.get("verdict") for s in outcome.samples] == ["first", "first", "second", "unknown", None]
    assert [s["failed"] for s in outcome.samples] == [False, False, True, False, False]
    first = run(tmp_path, rows, writer, judge(lambda a, b: "A"))
    assert first.results["judge_win_rate"] == 0.5 and first.results["judge_inconsistent"] == 1.0
    assert run(tmp_path, rows, writer).results["judge_win_rate"] is None


def test_a_degenerate_text_fails(tmp_path):
    outcome = run(tmp_path, [{"id": "0", "text": STORY}], Writer(LOOP), prompt_words=12)
    sample = outcome.samples[0]
    assert outcome.results["seq_repetition_4"] > 0.8 and sample["failed"]
    assert len(sample["prompt"].split()) == 12 and f"{sample['prompt']} {sample['reference']}" == STORY
    assert not run(tmp_path, [{"text": STORY}], Writer("It rained."), prompt_words=12).samples[0]["failed"]


def test_what_is_wrong_is_named(tmp_path):
    rows = [
        {"id": "a", "prompt": "x"},
        {"id": "a", "prompt": "y"},
        {"text": "one"},
        {"prompt": 7},
        {"id": "b", "prompt": "Go on."},
    ]
    outcome = run(tmp_path, rows, Writer(""))
    problems = outcome.results["problems"]
    assert problems["duplicate_items"]["n"] == 1 and problems["malformed_items"]["n"] == 2
    assert problems["empty_answers"]["n"] == 1 and outcome.results["n"] == 1 and outcome.results["seq_repetition_4"] is None
    failing = run(tmp_path, rows, Writer("x", problem="out of memory"))
    assert failing.results["problems"]["answers_missing"]["n"] == 1 and failing.results["n"] == 0
    for options in ({"prompt_words": 0}, {"judge": "rules"}, {"bucket": 3}):
        with pytest.raises(UserError, match=next(iter(options))):
            run(tmp_path, rows, Writer("x"), **options)
