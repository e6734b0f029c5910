"""What is scored is the answer behind the thought, whatever the thought quotes; without an end of the thought there is none."""

import pytest

from configs.evaluate import default
from data.text.sentencepiece_tokenizer import train
from lm.errors import UserError
from lm.evals.checks import check_evaluation
from lm.evals.engine.encoding import Encoding
from lm.evals.engine.generate import Answer, Ask, stopped, text_of
from lm.evals.engine.model_subject import ModelSubject
from lm.evals.task import Outcome, Prompt
from lm.evals.tasks.budgets import with_budgets
from tests.lm.evals import tiny_models

ANSWERS = {  # text of the model: what is scored, if a line break ends an answer
    "<think>\nIt is 9.\n\nNo.\n</think>\n\n6\nQuestion:": "6",
    "<think>so 6\n": "",
    "<think></think>6": "6",
    "6 <think>9</think>\n": "6 <think>9</think>",
    "\n6": "",
    "6\n7": "6",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train(["the cat sat on the mat\n"] * 9, path, vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1)


@pytest.mark.parametrize("text", ANSWERS)
@pytest.mark.parametrize("begun", [False, True])
def test_stop_strings_and_scores_see_what_follows_the_thought(tokenizer, text, begun):
    if begun and not text.startswith("<think>"):
        return
    ask = Ask(tuple(tokenizer.encode("2 * 3 = " + "<think>" * begun)), ("\n",), 99, 0.0, 1.0, 0)
    tokens = tokenizer.encode(text.removeprefix("<think>") if begun else text)
    end = stopped(tokens, ask, tokenizer)
    assert text_of(Answer(tokens[:end], end is not None), ask, tokenizer) == ANSWERS[text]
    ends = [
        n for n in range(len(tokens) + 1) if text_of(Answer(tokens[:n], True), ask._replace(stops=()), tokenizer).count("\n")
    ]
    assert end == (ends[0] if ends else None)


def test_white_space_before_a_thought_ends_no_answer(tokenizer):
    ask = Ask(tuple(tokenizer.encode("2 * 3 = ")), ("\n",), 99, 0.0, 1.0, 0, thought=50)
    tokens = tokenizer.encode("\n<think>\nIt is 9.\n</think>\n\n6\n7")
    assert all(stopped(tokens[:n], ask, tokenizer) is None for n in range(len(tokens) - 1))
    assert text_of(Answer(tokens[: stopped(tokens, ask, tokenizer)], True), ask, tokenizer) == "6"


class Counted:
    """A task that generates, and scores nothing."""

    name, versions = "counted", {"task": 1}

    def __init__(self, prompts):
        self.prompts = prompts

    def run(self, subject):
        self.answers = subject.generate(self.prompts)
        return Outcome({"acc": 0.0, "n": len(self.prompts)}, [{"task": "counted", "doc_id": 0}])


def test_budgets_are_beside_the_tokens_of_the_answer(tokenizer, tmp_path):
    model = tiny_models.model(vocab_size=tokenizer.vocab_size, max_positions=256)
    subject = ModelSubject(
        model, Encoding(tokenizer), name="tiny", progress=False, max_length=200, cache=tmp_path / "answers.sqlite"
    )
    task = Counted([Prompt("a cat <think>\n", max_new_tokens=6), Prompt("a cat", max_new_tokens=6)])
    tasks, files = with_budgets([task], {"counted": "f"}, (0, 9))
    assert files == {"counted@0": "f", "counted@9": "f"}
    close = tokenizer.encode("\n</think>\n\n")
    for one, budget in zip(tasks, (0, 9)):
        before = subject.stats["thoughts"]
        outcome = one.run(subject)
        assert outcome.samples == [{"task": one.name, "doc_id": 0}] and one.versions["thought_budget"] == budget
        thought, plain = task.answers
        assert list(thought.tokens[budget : budget + len(close)]) == close and len(plain.tokens) > 6
        assert (
            "<think>" not in thought.text and thought.text == tokenizer.decode(thought.tokens[budget + len(close) :]).lstrip()
        )
        assert budget < subject.stats["thoughts"] - before <= budget + len(close)
    assert subject.generate(task.prompts)[0].text == ""  # without a budget the thought has no end


@pytest.mark.parametrize("budgets", [(-1,), (3, 3), (1.5,)])
def test_wrong_budgets_are_refused(budgets, tmp_path):
    config = default.get_config()
    config.checkpoint, config.thought_budgets = "a", budgets
    with pytest.raises(UserError, match="^thought_budgets="):
        check_evaluation(config, tmp_path)
