"""A model that answers in harmony, as gpt-oss, behind the API: its thought, its answer and its calls have their own fields."""

import dataclasses
import json

import pytest
from flax import nnx

from data.chat.harmony import Channels
from data.chat.template import encode_chat
from data.chat.thoughts import Thoughts
from lm.infer.engine.engine import Engine
from lm.infer.engine.room import Capacity
from lm.infer.engine.thought import budget_of, forced_places
from lm.model.transformer import skeleton
from lm.serve.api.answers import TextStream
from lm.serve.api.service import Limits, Service
from lm.serve.api.tools import PLAIN, Calls, format_of, joined
from tests.data.chat import harmony_examples
from tests.data.chat.harmony_examples import TOOL
from tests.data.chat.test_harmony import AGAIN, FINAL, THINK, ids_of
from tests.lm.serve.api.test_serve_chat import ASKED, ask
from tests.lm.serve.conftest import CONFIG, client_of, serving
from tests.lm.weights import drawn


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return harmony_examples.tokenizer(tmp_path_factory.mktemp("harmony"))


@pytest.fixture(scope="module")
def client(tokenizer):
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    model = nnx.merge(skeleton(config)[0], drawn(config, 0, scale=4.0))
    engine = Engine(model, tokenizer, Capacity(rows=4, budget=16, pages=600))
    with serving(Service(engine, "tiny", limits=Limits(timeout=60.0))) as url:
        yield client_of(url)
    engine.close()


@pytest.mark.parametrize("size", [1, 3, 99])
def test_thought_answer_and_call_are_apart(tokenizer, size):
    call = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Bern"}<|call|>'
    ids = ids_of(tokenizer, f"{THINK}I ask é.{AGAIN}<|channel|>commentary<|message|>I look.{AGAIN}{call}")
    stream, thoughts, calls = (
        TextStream(tokenizer, channels=Channels(tokenizer)),
        Thoughts(begun=True),
        Calls(PLAIN, streams=True),
    )
    thought, answer, found = "", "", []
    for n in range(0, len(ids), size):
        over = n + size >= len(ids)
        piece = stream.feed(ids[n : n + size], over=over, hidden=ids[-1:] if over else ())
        more, text = thoughts.feed(piece.text, over)
        text, new = calls.feed(text, over)
        thought, answer, found = thought + more, answer + text, found + new
    assert (thought, answer) == ("I ask é.", "I look.")
    assert [(call.name, call.arguments) for call in joined(found)] == [("get_weather", '{"city": "Bern"}')]


def test_a_thought_is_ended_where_a_message_or_its_header_begins(tokenizer):
    prompt = encode_chat(tokenizer, ASKED, add_generation_prompt=True).ids
    think, end, answer = (ids_of(tokenizer, text) for text in (f"{THINK}one two", f"{AGAIN}{FINAL}", "7 <|return|>"))
    begin = len(ids_of(tokenizer, FINAL))
    assert forced_places(budget_of(tokenizer, prompt, 0), ids_of(tokenizer, FINAL) + answer) == [True] * begin + [False] * len(
        answer
    )
    for budget in range(1, len(think)):
        head = max(budget, len(ids_of(tokenizer, THINK)))  # a header is written to its end
        tokens = think[:head] + end + answer
        free, forced = [False] * head, [True] * len(end)
        assert forced_places(budget_of(tokenizer, prompt, budget), tokens) == free + forced + [False] * len(answer)
    whole = think + end + answer
    assert not any(forced_places(budget_of(tokenizer, prompt, len(think) + len(end)), whole))


@pytest.mark.parametrize("effort", ["none", "low", "high"])
def test_an_effort_goes_to_the_system_message_and_without_one_the_answer_begins(client, tokenizer, effort):
    answer = ask(client, reasoning_effort=effort, max_completion_tokens=20)
    extra = {"reasoning_effort": "low" if effort == "none" else effort}
    assert answer.usage.prompt_tokens == len(encode_chat(tokenizer, ASKED, add_generation_prompt=True, **extra).ids)
    if effort == "none":
        forced = len(ids_of(tokenizer, FINAL))
        assert answer.choices[0].message.content and not hasattr(answer.choices[0].message, "reasoning_content")
        assert answer.usage.completion_tokens_details.reasoning_tokens == forced


def test_a_form_begins_in_the_final_channel(client):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer", "minimum": 10, "maximum": 99}}}
    answer = ask(client, reasoning_effort="none", response_format=form, max_completion_tokens=60)
    assert json.loads(answer.choices[0].message.content) in range(10, 100) and answer.choices[0].finish_reason == "stop"


def test_a_required_call_is_written_in_the_commentary_channel(client, tokenizer):
    assert format_of(tokenizer, None) == PLAIN._replace(declared=True)
    number = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 10}}, "required": ["n"]}
    tool = {"type": "function", "function": TOOL["function"] | {"parameters": number | {"additionalProperties": False}}}
    bias = {str(tokenizer.controls["<|end|>"]): 9.0}  # the random model's thoughts would have no end
    options = {"tools": [tool], "tool_choice": "required", "max_completion_tokens": 120, "logit_bias": bias}
    answer = ask(client, **options).choices[0]
    (call,) = answer.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["n"] in range(10, 100)
    assert answer.finish_reason == "tool_calls" and not answer.message.content
    deltas = [chunk.choices[0].delta for chunk in ask(client, stream=True, **options)]
    pieces = [delta.tool_calls[0].function.arguments or "" for delta in deltas if delta.tool_calls]
    assert "".join(pieces) == call.function.arguments
