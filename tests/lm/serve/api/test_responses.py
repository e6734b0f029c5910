"""/v1/responses through the official client: the same answers as those of /v1/chat/completions."""

import json

import openai
import pytest

from tests.lm.serve.api.test_serve_chat import ASKED, CLOCK, WEATHER, ask

FLAT = [{"type": "function", **tool["function"]} for tool in (WEATHER, CLOCK)]
FORCED = {"tools": FLAT, "tool_choice": "required", "max_output_tokens": 300, "parallel_tool_calls": False}


def respond(client, **options):
    defaults = {"model": "tiny", "input": "the cat", "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 16}
    return client.responses.create(**defaults | options)


def test_the_answer_is_that_of_a_chat(client):
    chat, answer = ask(client), respond(client)
    assert answer.output_text == chat.choices[0].message.content and answer.object == "response"
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == chat.usage.completion_tokens
    is_cut = chat.choices[0].finish_reason == "length"
    assert answer.status == ("incomplete" if is_cut else "completed")
    assert (answer.incomplete_details and answer.incomplete_details.reason) == ("max_output_tokens" if is_cut else None)
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "the cat"}]},
    ]
    assert respond(client, input=parts, instructions=None).output_text == answer.output_text


@pytest.mark.parametrize("options", [{}, FORCED, {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 4}])
def test_a_stream_has_the_same_output(client, options):
    whole = respond(client, **options)
    events = list(respond(client, stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"] and kinds[-2:] == ["output_item.done", whole.status]
    last = events[-1].response
    assert last.usage.output_tokens == whole.usage.output_tokens and last.output_text == whole.output_text
    for one, other in zip(last.output, whole.output, strict=True):
        assert one.type == other.type
        if one.type == "function_call":
            assert (one.name, one.arguments) == (other.name, other.arguments)
            assert "".join(e.delta for e in events if e.type.endswith("arguments.delta")) == one.arguments
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text


def test_calls_and_their_answers_are_those_of_a_chat(client):
    (call,) = respond(client, **FORCED).output
    assert call.type == "function_call" and json.loads(call.arguments) is not None and call.call_id.startswith("call_")
    assert call.id.startswith("fc_")
    talk = [{"role": "user", "content": "the cat"}, call.model_dump(), {"type": "reasoning", "summary": []},
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]  # fmt: skip
    function = {"name": call.name, "arguments": call.arguments}
    told = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "a", "content": "rain"}]  # fmt: skip
    wanted = ask(client, messages=told, tools=[WEATHER, CLOCK])
    answer = respond(client, input=talk, tools=FLAT)
    assert answer.usage.input_tokens == wanted.usage.prompt_tokens
    assert answer.output_text == (wanted.choices[0].message.content or "")


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"input": []}, "input", "input"),
        ({"input": [{"type": "file_search_call"}]}, "input", "items of type 'file_search_call' are not taken"),
        ({"input": [{"role": "king", "content": "a"}]}, "input", "king"),
        ({"input": "a" * 500_000}, "input", "more than the"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens: "),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "stores no responses"),
        ({"tools": [{"type": "web_search"}]}, "tools", "tools"),
        ({"text": {"format": {"type": "poem"}}}, "text", "text"),
        ({"temperature": 3}, "temperature", "temperature"),
    ],
)
def test_mistakes_name_the_fields_of_a_response(client, options, param, words):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=words) as error:
            respond(client, stream=stream, **options)
        assert error.value.param == param
