"""Tool calls: how a template writes them, and how they are read out of an answer, piece by piece."""

import json

import pytest

from data.chat.template import render
from lm.serve.api.tools import PLAIN, CallFormat, Calls, declared, format_of, joined

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
HERMES = """{%- if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}
{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for call in m.tool_calls or [] %}{{ '\n<tool_call>' }}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
LLAMA = """{%- if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}
{%- for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}
{%- endif %}{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}
{%- else %}{{ m.content }}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
MISTRAL = """{%- if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}
{%- if m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
{%- set out = call.function | tojson %}{{ out[:-1] }}, "id": "{{ call.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]
{%- endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
NONE = """{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
FORMATS = {
    None: CallFormat("<|tool|>", "<|tool|>", "", "name", "arguments", True),
    HERMES: CallFormat("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "name", "arguments", True),
    LLAMA: CallFormat("", "\n", "", "name", "parameters", True),
    MISTRAL: CallFormat("[TOOL_CALLS] [", ", ", "]", "name", "arguments", True),
    NONE: PLAIN,
}


@pytest.mark.parametrize("template", FORMATS, ids=["ours", "hermes", "llama", "mistral", "none"])
def test_a_template_shows_its_format(tokenizer, template):
    found, expected = format_of(tokenizer, template), FORMATS[template]
    assert found._replace(begin=found.begin.lstrip("\n")) == expected


TWO = [("f", {}), ("g", {})]
ANSWERS = [
    ("<tool_call>\n", 'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "I look.", [("f", {"a": 1})]),
    ("<tool_call>\n", '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g", "arguments": "{}"}', "", TWO),
    ("<tool_call>\n", "no call < here <tool> ", "no call < here <tool> ", []),
    ("<tool_call>\n", 'broken <tool_call>{"name": ', 'broken<tool_call>{"name": ', []),
    ("<tool_call>\n", '<tool_call>{"name": 3}', '<tool_call>{"name": 3}', []),
    ("<tool_call>\n", 'a {"name": "f"} b', 'a {"name": "f"} b', []),
    ("<|tool|>", 'x<|tool|>{"name": "f", "arguments": {"s": "}<|tool|>{"}}', "x", [("f", {"s": "}<|tool|>{"})]),
    ("[TOOL_CALLS] [", '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "123456789"}]', "", [("f", {})]),
    ("", ' {"name": "f", "arguments": {"é": "→"}}', "", [("f", {"é": "→"})]),
    ("", "{not a call}", "{not a call}", []),
    ("", "words", "words", []),
]  # fmt: skip


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("size", [1, 3, 999])
@pytest.mark.parametrize("begin, answer, content, calls", ANSWERS)
def test_calls_are_read_out_of_an_answer(begin, answer, content, calls, size, streams):
    reader, said, found = Calls(CallFormat(begin, "", "", "name", "arguments", True), streams=streams), "", []
    for n in range(0, len(answer), size):
        more, new = reader.feed(answer[n : n + size])
        said, found = said + more, found + new
    more, new = reader.feed("", over=True)
    said, found = said + more, found + new
    assert [(call.name, json.loads(call.arguments)) for call in joined(found)] == calls
    assert said == content


def test_arguments_come_in_pieces():
    reader = Calls(PLAIN, streams=True)
    text = 'I look. <tool_call>{"name": "f", "arguments": {"a": "b\\nc", "d": [1, 2]}}</tool_call>'
    fed = [reader.feed(character) for character in text]
    found = [call for _, calls in fed for call in calls]
    assert len(found) > 20 and {call.id for call in found} == {found[0].id}
    assert [call.name for call in found] == ["f"] + [""] * (len(found) - 1)
    assert "".join(call.arguments for call in found) == '{"a": "b\\nc", "d": [1, 2]}'
    assert "".join(content for content, _ in fed) == "I look."
    assert reader.feed("", over=True) == ("", [])


@pytest.mark.parametrize(
    "text", ['{"name": "f", "arguments": {a', '{"name": "f", "arguments": [', '{"name": "f", "arguments": {"a" 1']
)
def test_what_begins_no_arguments_is_given_in_no_pieces(text):
    assert Calls(PLAIN, streams=True).feed(f"<tool_call>{text}", over=True) == (f"<tool_call>{text}", [])


def test_an_answer_that_ends_within_its_arguments_has_their_beginning():
    content, (call,) = Calls(PLAIN, streams=True).feed('<tool_call>{"name": "f", "arguments": {"a": "b', over=True)
    assert (content, call.name, call.arguments) == ("", "f", '{"a": "b')


def test_one_call_if_they_may_not_be_parallel():
    reader = Calls(PLAIN, most=1)
    text = '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>'
    assert [call.name for call in reader.feed(text, over=True)[1]] == ["f"]


def test_a_template_without_tools_is_told_of_them_as_text():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    talk = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "yes"},
        {"role": "tool", "content": "and no"},
    ]
    told = declared(PLAIN, talk, [TOOL])
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert json.dumps(TOOL) in told[0]["content"] and "<tool_call>" in told[2]["content"]
    assert told[3]["content"] == "<tool_response>\nyes\n</tool_response>\n<tool_response>\nand no\n</tool_response>"
    assert "yes" in render(told, NONE) and talk[1]["content"] == ""
    system = declared(PLAIN, [{"role": "system", "content": "Be brief."}, *talk], [TOOL])
    assert system[0]["content"].startswith("Be brief.\n\n# Tools") and len(system) == 4
