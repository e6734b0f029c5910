"""Thoughts through the official client: apart from the answer, within their budget, in chats and responses.

The model is random, so a form or the beginning of the answer in the prompt makes it think.
"""

import json

import openai
import pytest

from data.chat.template import CHAT_TEMPLATE, encode_chat
from lm.serve.api.service import Limits, Service
from tests.lm.serve.api.test_serve_chat import ASKED, ask
from tests.lm.serve.conftest import client_of, serving

WRITTEN = {"guided_regex": "\\n<think>\\n[a-e]{4,9}\\n</think>\\n\\n[v-z]{3,6}"}
BEGUN = {"messages": [*ASKED, {"role": "assistant", "content": "<think>\n"}]}
OPENS = CHAT_TEMPLATE.replace('"<|assistant|>" -}}\n  {%- if', '"<|assistant|><think>\\n" -}}\n  {%- if')
GOES_ON = {"continue_final_message": True, "add_generation_prompt": False}


@pytest.fixture(scope="module")
def thinker(engine):
    """A client of the same model with a template that opens a thought, as DeepSeek R1's does."""
    with serving(Service(engine, "tiny", template=OPENS, limits=Limits(timeout=60.0))) as url:
        yield client_of(url)


def think(client, budget=None, **options):
    """Ask with a prompt that has begun a thought."""
    extra = GOES_ON | ({} if budget is None else {"thinking_token_budget": budget}) | options.pop("extra_body", {})
    return ask(client, **BEGUN, extra_body=extra, **options)


@pytest.mark.parametrize("options", [{}, {"n": 2, "temperature": 1.0, "seed": 5}, {"logprobs": True, "top_logprobs": 2}])
def test_a_thought_is_apart_from_the_answer_streamed_or_not(client, options):
    options |= {"extra_body": WRITTEN, "max_completion_tokens": 60}
    whole, found, usage = ask(client, **options), {}, None
    for chunk in ask(client, stream=True, stream_options={"include_usage": True}, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            row = found.setdefault(choice.index, ["", ""])
            row[0] += getattr(choice.delta, "reasoning_content", "")
            row[1] += choice.delta.content or ""
    assert usage == whole.usage
    details, spent = usage.completion_tokens_details, usage.completion_tokens
    assert 0 < details.reasoning_tokens < spent
    for choice in whole.choices:
        message = choice.message
        assert [message.reasoning_content, message.content] == found[choice.index]
        assert set(message.reasoning_content) <= set("abcde") and set(message.content) <= set("vwxyz") and message.content
        if choice.logprobs:  # the tokens are those of the whole text
            assert "</think>" in "".join(token.token for token in choice.logprobs.content)


def test_usage_counts_the_tokens_up_to_the_end_of_the_thought(client, tokenizer):
    answer = ask(client, extra_body=WRITTEN, max_completion_tokens=60, logprobs=True)
    tokens = [token.token for token in answer.choices[0].logprobs.content]
    count = answer.usage.completion_tokens_details.reasoning_tokens
    assert "</think>" in "".join(tokens[:count]) and "</think>" not in "".join(tokens[: count - 1])


def test_a_plain_answer_has_no_thought(client):
    answer = ask(client)
    assert not hasattr(answer.choices[0].message, "reasoning_content")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert not any(hasattr(chunk.choices[0].delta, "reasoning_content") for chunk in ask(client, stream=True))


@pytest.mark.parametrize("budget", [0, 1, 7])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_budget_closes_the_thought_and_the_answer_goes_on(client, tokenizer, budget, temperature):
    close = len(tokenizer.encode("\n</think>\n\n"))
    options = {"max_completion_tokens": budget + close + 5, "temperature": temperature, "seed": 3, "logprobs": True}
    free = think(client, **options)
    answer = think(client, budget, **options)
    tokens = [token.token for token in answer.choices[0].logprobs.content]
    assert tokens[:budget] == [token.token for token in free.choices[0].logprobs.content][:budget]
    assert "".join(tokens[budget : budget + close]) == "\n</think>\n\n"
    assert answer.usage.completion_tokens == budget + close + 5 and answer.choices[0].message.content
    # The blank lines after the mark belong to neither.
    assert budget < answer.usage.completion_tokens_details.reasoning_tokens <= budget + close
    # It is never closed by itself: all of it is the thought, and nothing answers.
    assert free.choices[0].message.content is None and free.choices[0].message.reasoning_content


def test_an_effort_is_a_budget_that_leaves_half_of_the_tokens(thinker, tokenizer):
    close = len(tokenizer.encode("\n</think>\n\n"))
    for effort in ("low", "high"):
        answer = ask(thinker, reasoning_effort=effort, max_completion_tokens=60)
        assert answer.choices[0].message.content
        assert 30 < answer.usage.completion_tokens_details.reasoning_tokens <= 30 + close


def test_no_thinking_is_what_the_template_writes(client, tokenizer):
    lengths = [
        len(encode_chat(tokenizer, ASKED, add_generation_prompt=True, **more).ids) for more in ({}, {"enable_thinking": False})
    ]
    for options in ({"reasoning_effort": "none"}, {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}):
        assert ask(client, **options).usage.prompt_tokens == lengths[1] > lengths[0]
    assert ask(client, reasoning_effort="low").usage.prompt_tokens == lengths[0]


def test_a_form_comes_after_the_thought(client):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer", "minimum": 10, "maximum": 99}}}
    answer = think(client, 5, response_format=form, max_completion_tokens=60)
    assert json.loads(answer.choices[0].message.content) in range(10, 100)
    assert answer.choices[0].message.reasoning_content and answer.choices[0].finish_reason == "stop"


def test_a_response_has_the_thought_as_an_item(thinker):
    chat = ask(thinker, reasoning_effort="low", max_completion_tokens=60)
    options = {"model": "tiny", "input": "the cat", "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 60}
    options["reasoning"] = {"effort": "low"}
    whole, events = thinker.responses.create(**options), list(thinker.responses.create(**options, stream=True))
    for response in (whole, events[-1].response):
        thought, answer = response.output
        assert (thought.type, thought.content[0].type, answer.type) == ("reasoning", "reasoning_text", "message")
        assert thought.content[0].text == chat.choices[0].message.reasoning_content and thought.id.startswith("rs_")
        assert response.output_text == chat.choices[0].message.content
        assert response.usage.output_tokens_details.reasoning_tokens == chat.usage.completion_tokens_details.reasoning_tokens
    deltas = [event for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(event.delta for event in deltas) == thought.content[0].text
    assert {event.output_index for event in deltas} == {0}
    assert [event.text for event in events if event.type == "response.reasoning_text.done"] == [thought.content[0].text]
    with pytest.raises(openai.BadRequestError, match="reasoning: "):
        thinker.responses.create(**options | {"reasoning": {"effort": "lots"}})


@pytest.mark.parametrize("extra", [{"thinking_token_budget": -1}, {"reasoning_effort": "lots"}])
def test_mistakes_name_the_field(client, extra):
    with pytest.raises(openai.BadRequestError, match=next(iter(extra))):
        ask(client, extra_body=extra)
