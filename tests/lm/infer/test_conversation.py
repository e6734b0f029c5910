"""A conversation: what it keeps, what it drops, and its seeds."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from data.chat.messages import make_message
from data.chat.template import CHAT_TEMPLATE
from lm.errors import UserError
from lm.infer.conversation import Conversation
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import Sampling
from lm.infer.engine.room import Capacity
from tests.lm.evals import tiny_models

LIMIT = 12


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_models.tokenizer(tmp_path_factory.mktemp("tokenizer"))


def engine(tokenizer, positions=128, change=lambda params: params) -> Engine:
    model = tiny_models.model(vocab_size=tokenizer.vocab_size, max_positions=positions)
    graph, params = nnx.split(model)
    return Engine(nnx.merge(graph, change(params)), tokenizer, Capacity(rows=1, budget=32))


def conversation(tokenizer, system="be brief", positions=128, **sampling) -> Conversation:
    return Conversation(
        engine(tokenizer, positions), Sampling(**{"max_new_tokens": LIMIT, "temperature": 0.0} | sampling), system=system
    )


def said(talk: Conversation, text: str, **options) -> str:
    return "".join(piece.text for piece in talk.ask(text, **options))


def test_the_oldest_exchanges_make_way_for_an_answer(tokenizer):
    talk, told, first = conversation(tokenizer), [], {}
    for n in range(12):
        answer = said(talk, f"abc {n}", tell=told.append)
        first[f"abc {n}"] = answer
        roles = [message["role"] for message in talk.messages]
        assert roles == ["system", *["user", "assistant"] * (len(roles) // 2)]
        assert talk.messages[-2:] == [make_message("user", f"abc {n}"), make_message("assistant", answer)]
    assert told and all("128 positions: dropped the oldest 1 of" in line and "not the system message" in line for line in told)
    kept = [message["content"] for message in talk.messages[1:]]
    assert kept == [text for pair in list(first.items())[-len(kept) // 2 :] for text in pair] and 2 < len(kept) < 24
    with pytest.raises(UserError, match="128 positions"):
        said(talk, "abc " * 200)
    assert [message["content"] for message in talk.messages[1:]] == kept


def test_an_answer_ends_at_the_last_position(tokenizer):
    talk = conversation(tokenizer, system="", positions=32, max_new_tokens=100)
    assert said(talk, "abc")
    assert len(talk.messages) == 2


def test_what_was_said_is_kept_when_the_caller_stops(tokenizer):
    whole = said(conversation(tokenizer), "abc")
    talk = conversation(tokenizer)
    pieces = talk.ask("abc")
    first = next(pieces).text
    pieces.close()
    assert talk.messages[1:] == [make_message("user", "abc"), make_message("assistant", first)]
    assert first and whole.startswith(first) and whole != first
    assert talk.undo() and talk.messages == [make_message("system", "be brief")] and not talk.undo()


def test_an_error_leaves_the_conversation_as_it_was(tokenizer):
    talk = conversation(tokenizer)
    said(talk, "abc")
    before = list(talk.messages)
    talk.engine.close()
    talk.engine = engine(tokenizer, change=lambda params: jax.tree.map(lambda p: p * jnp.nan, params))
    with pytest.raises(UserError, match="NaN"):
        said(talk, "def")
    assert talk.messages == before


def test_every_answer_has_a_seed_and_the_conversation_repeats(tokenizer):
    def twice(seed):
        talk = conversation(tokenizer, temperature=1.0, seed=seed)
        first = said(talk, "abc")
        talk.undo()
        return first, said(talk, "abc")

    first, second = twice(0)
    assert first != second and twice(0) == (first, second) and twice(1)[0] != first


def test_only_what_is_new_is_read(tokenizer):
    talk = conversation(tokenizer, positions=512)
    said(talk, "abc " * 40)
    before = talk.engine.stats()
    said(talk, "def")
    after = talk.engine.stats()
    assert after.prefix_hits - before.prefix_hits > 0.7 * (after.prefix_queries - before.prefix_queries)


def test_warming_changes_nothing(tokenizer):
    talk, other = conversation(tokenizer, temperature=1.0), conversation(tokenizer, temperature=1.0)
    talk.engine.warm()
    assert said(talk, "abc") == said(other, "abc")


def test_a_template_that_takes_no_system_message_says_so(tokenizer):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}{{ messages[0].content }}"
    )
    talk = Conversation(engine(tokenizer), Sampling(4), template)
    with pytest.raises(UserError, match="no system here"):
        talk.begin("be brief")
    assert talk.messages == []


def test_a_thought_is_kept_apart_and_left_out_of_the_next_prompt(tokenizer):
    template = CHAT_TEMPLATE.replace('"<|assistant|>" -}}\n  {%- if', '"<|assistant|><think>\\n" -}}\n  {%- if')
    talk = Conversation(engine(tokenizer), Sampling(LIMIT, 0.0), template)
    pieces = list(talk.ask("abc"))
    answer = talk.messages[-1]
    assert answer == {"role": "assistant", "content": "", "reasoning_content": "".join(piece.thought for piece in pieces)}
    assert answer["reasoning_content"] and not any(piece.text for piece in pieces)
    list(talk.ask("b"))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
