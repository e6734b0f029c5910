"""A budget closes a thought where it ends, and what follows is what the model says after those tokens."""

import dataclasses

import pytest

from lm.infer.engine.engine import Engine
from lm.infer.engine.request import Request
from lm.infer.engine.room import Capacity
from lm.infer.engine.thought import budget_of, forced_places
from tests.lm.evals import tiny_models

ANSWER = 6


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_models.tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_models.model(vocab_size=tokenizer.vocab_size, max_positions=256)


@pytest.fixture(scope="module", params=[{}, {"drafts": 3, "pages": 13}], ids=["plain", "guesses and preemption"])
def engine(request, model, tokenizer):
    engine = Engine(model, tokenizer, Capacity(**{"rows": 4, "budget": 32, "pages": 200, "page": 16} | request.param))
    yield engine
    engine.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_forced_end_is_read_as_if_it_had_been_drawn(engine, tokenizer, temperature):
    """The slow twin draws the thought, and then the answer to a longer prompt."""
    prompts = [(*tokenizer.encode(text), *tokenizer.encode("<think>\n")) for text in ("abc", "a cat", "b", "a cat sat")]
    requests = []
    for n, prompt in enumerate(prompts):
        budget = budget_of(tokenizer, prompt, 3 * n)
        assert budget.begun
        most = budget.tokens + len(budget.close) + ANSWER
        requests.append(Request(prompt, most, temperature, seed=n, logprobs=0, thought=budget))
    for request, event in zip(requests, engine.answers(requests), strict=True):
        budget = request.thought
        free = engine.generate(dataclasses.replace(request, thought=None, max_new_tokens=max(1, budget.tokens)))[
            : budget.tokens
        ]
        begun = (*request.prompt, *free, *budget.close)
        assert list(event.tokens[:-ANSWER]) == [*free, *budget.close]
        assert forced_places(budget, event.tokens) == [False] * len(free) + [True] * len(budget.close) + [False] * ANSWER
        if not temperature:
            assert list(event.tokens[-ANSWER:]) == engine.generate(Request(begun, ANSWER, 0.0))
        (scored,) = engine.answers([Request((*request.prompt, *event.tokens), 1, 0.0, prompt_logprobs=0)])
        logps = [one.chosen for one in scored.prompt[len(request.prompt) :]]
        assert [one.chosen for one in event.likely] == pytest.approx(logps, abs=1e-4)


def test_a_thought_that_ends_in_time_and_an_answer_without_one_are_left_alone(engine, tokenizer):
    prompt = tuple(tokenizer.encode("abc"))
    free = engine.generate(Request(prompt, 20, 0.0))
    assert engine.generate(Request(prompt, 20, 0.0, thought=budget_of(tokenizer, prompt, 2))) == free
    ended = tokenizer.encode("<think>\nab\n</think>\n\n<think> b")
    assert not any(forced_places(budget_of(tokenizer, prompt, len(ended)), ended))
    assert any(forced_places(budget_of(tokenizer, prompt, 3), ended))


def test_logits_are_not_needed_to_know_what_is_forced(tokenizer):
    budget = budget_of(tokenizer, (), 4)
    thought, drawn = budget.start(), [*tokenizer.encode("<think>"), *tokenizer.encode("a b c d e f")]
    said = []
    while drawn:
        said.append(thought.forced[0] if thought.forced else drawn.pop(0))
        thought.accept(said[-1])
    text = tokenizer.decode(said)
    assert text.count("</think>") == 1 and text.startswith("<think>") and text.endswith("f")
