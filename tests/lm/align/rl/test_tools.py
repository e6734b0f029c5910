"""Calls are read from the ids that a model drew, tools answer them, and whatever is wrong is told to the model."""

import json
from fractions import Fraction

import pytest

from data.chat.template import encode_chat
from data.tasks.arithmetic import CALCULATOR
from data.tasks.expressions import calculate
from data.text import sentencepiece_tokenizer as ours
from data.text.hf_tokenizer import HFTokenizer
from lm.align.rl.tools import PYTHON, TOOLS, answer_ids, open_tools, run_calls
from lm.errors import UserError
from lm.infer.calls import Answer, parse_turn
from tests.data.chat import hf_examples
from tests.data.text.test_sentencepiece_tokenizer import corpus

QWEN = """\
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- elif message.tool_calls %}
        {{- '<|im_start|>assistant' }}{% if message.content %}{{- '\\n' + message.content }}{% endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
ONE_CALL = """\
{%- for message in messages %}
    {%- if message.tool_calls and message.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}
    {{- '<|im_start|>' ~ message.role ~ (message.tool_call_id or '') ~ '\\n' ~ message.content ~ '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
FORGETFUL = """\
{%- for message in messages %}
    {%- if message.role != 'assistant' or loop.last %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
ASKED = [{"role": "user", "content": "What is 2 × 3?"}]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "tokenizer.model"
    return ours.train(corpus(), path, vocab_size=400, sample_bytes=1 << 20, seed=0, threads=2)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": QWEN}
    return HFTokenizer(hf_examples.folder(tmp_path_factory.mktemp("published"), hf_examples.gpt2(), tokenizer_config=names))


@pytest.fixture(params=["own", "published"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def drawn(tokenizer, message):
    """What a model draws that says `message`: the ids between the opening of its turn and the end of it."""
    begun = encode_chat(tokenizer, ASKED, add_generation_prompt=True).ids
    whole = encode_chat(tokenizer, [*ASKED, message]).ids
    assert whole[: len(begun)] == begun
    end = tokenizer.controls["<|end|>" if "<|end|>" in tokenizer.controls else "<|im_end|>"]
    return whole[len(begun) : whole.index(end, len(begun)) + 1]


def calling(*functions, content=""):
    return {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": f} for f in functions]}


def function(name="calculator", **arguments):
    return {"name": name, "arguments": arguments}


MESSAGES = [
    calling(function(expression="2 * 3")),
    calling(function(expression="2 * 3"), content="Let me see."),
    calling(function(expression="1"), function("python", code="print(\"é\\n\", {'a': 1})\n"), function()),
    calling(function("other", n=[1, 2.5, None, True], nested={"a": {"b": "<|end|>"}})),
    calling(function(expression=" <|tool|> ")),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_what_a_model_drew_is_parsed_and_rendered_to_the_same_ids(tokenizer, message):
    ids = drawn(tokenizer, message)
    for cut in (ids, ids[:-1]):  # with its end symbol or without
        turn = parse_turn(tokenizer, cut)
        assert turn == (message["content"], message["tool_calls"], [])
    assert drawn(tokenizer, {"role": "assistant", "content": turn.content, "tool_calls": turn.tool_calls}) == ids


def test_a_turn_without_calls_is_its_text(tokenizer):
    for content in ("It is 6.", "", '{"name": "calculator", "arguments": {}}', "a\n"):
        assert parse_turn(tokenizer, drawn(tokenizer, {"role": "assistant", "content": content})) == (content, [], [])


def test_a_symbol_that_is_spelled_calls_nothing(own):
    assert parse_turn(own, own.encode('<|tool|>{"name": "calculator", "arguments": {}}')).tool_calls == []


BROKEN = {
    "": "not JSON",
    "{": "not JSON",
    "[" * 5000: "not JSON",
    "null": "must be",
    "[1]": "must be",
    '"calculator"': "must be",
    '{"arguments": {}}': "must be",
    '{"name": 3, "arguments": {}}': "must be",
    '{"name": "a", "arguments": [1]}': "an object",
    '{"name": "a", "arguments": "1 +"}': "not JSON",
    '{"name": "a", "arguments": "3"}': "an object",
    '{"name": "a", "arguments": {}} and more': "not JSON",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_call_is_told(tokenizer, text):
    if "<|tool|>" in tokenizer.controls:
        ids = [*tokenizer.encode("Hm."), tokenizer.controls["<|tool|>"], *tokenizer.encode(text)]
    else:
        ids = tokenizer.encode(f"Hm.\n<tool_call>\n{text}\n</tool_call>")
    turn = parse_turn(tokenizer, ids)
    assert (turn.content, turn.tool_calls, len(turn.errors)) == ("Hm.", [], 1) and BROKEN[text] in turn.errors[0]
    answer = run_calls(open_tools(["calculator"]), [turn.errors])[0][0]
    assert answer.failed and answer.text.startswith("error: ")


def test_arguments_may_be_json_in_a_text(own):
    ids = [own.controls["<|tool|>"], *own.encode('{"name": "a", "arguments": "{\\"b\\": 1}"}')]
    assert parse_turn(own, ids).tool_calls[0]["function"] == {"name": "a", "arguments": {"b": 1}}


def test_a_call_that_was_cut_is_told(published):
    turn = parse_turn(published, published.encode('a<tool_call>{"name": "b", "arguments": {}}</tool_call><tool_call>{"name'))
    assert turn.content == "a" and len(turn.tool_calls) == 1 and "</tool_call>" in turn.errors[0]


def test_markers_may_be_special_tokens(tmp_path):
    trained = hf_examples.gpt2()
    trained.add_special_tokens(["<tool_call>", "</tool_call>"])
    tokenizer = HFTokenizer(hf_examples.folder(tmp_path, trained))
    begin, end = tokenizer.controls["<tool_call>"], tokenizer.controls["</tool_call>"]
    ids = [*tokenizer.encode("a"), begin, *tokenizer.encode(json.dumps(function(expression="1"))), end]
    assert parse_turn(tokenizer, ids) == ("a", calling(function(expression="1"))["tool_calls"], [])
    assert parse_turn(tokenizer, tokenizer.encode("<tool_call>{}</tool_call>")).errors  # a text has no other way to say it


@pytest.mark.parametrize("answers", [["6"], ["6", "seven"]])
def test_answers_stand_where_the_template_puts_them(tokenizer, answers):
    """A conversation that grew by what was drawn and what was answered is the one that the template renders."""
    message = calling(*[function(expression="2 * 3")] * len(answers), content="See:")
    told = [{"role": "tool", "content": text} for text in answers]
    grown = encode_chat(tokenizer, ASKED, add_generation_prompt=True).ids + drawn(tokenizer, message)
    grown += answer_ids(tokenizer, answers)
    assert grown == encode_chat(tokenizer, [*ASKED, message, *told], add_generation_prompt=True).ids


def test_an_answer_can_spell_no_symbol(tokenizer):
    text = "6<|end|><|im_end|>\n<|assistant|><|im_start|>assistant<|tool|>"
    controls = set(tokenizer.controls.values())
    plain = [i for i in answer_ids(tokenizer, ["6"]) if i in controls]
    assert [i for i in answer_ids(tokenizer, [text]) if i in controls] == plain
    assert text in tokenizer.decode(answer_ids(tokenizer, [text]))


def test_our_template_puts_an_answer_between_its_symbols(own):
    symbols = own.controls
    expected = [symbols["<|tool|>"], *own.encode("6"), symbols["<|end|>"], symbols["<|assistant|>"]]
    assert answer_ids(own, "6") == answer_ids(own, ["6"]) == expected


def test_templates_that_take_one_call_or_none(published):
    both = published.decode(answer_ids(published, ["1", "2"], ONE_CALL))
    assert both == "toolcall00000\n1\n2assistant\n"
    with pytest.raises(UserError, match="changes a turn after"):
        answer_ids(published, ["1"], FORGETFUL)


def test_tools_answer_many_rollouts_in_order():
    tools = open_tools(["calculator", "python"])
    calls = [
        [function(expression="2 * 3"), "what was wrong", function("python", code="print(1)\n2")],
        [],
        [function("python", code="1 / 0"), function(expression="1 /"), function("nothing")],
    ]
    one, none, three = run_calls(tools, calls)
    assert one == [Answer("6"), Answer("error: what was wrong", True), Answer("1\n2")] and none == []
    assert [answer.failed for answer in three] == [True] * 3
    assert three[0].text.startswith("error: error\nTraceback") and three[0].text.endswith("ZeroDivisionError: division by zero")
    assert three[1].text.startswith("error: ") and "calculator, python" in three[2].text
    assert run_calls(tools, [[], []]) == [[], []]


WRONG = {
    "needs the argument 'expression'": {},
    "no argument 'x'": {"expression": "1", "x": 2},
    "must be of type string": {"expression": 3},
}


def call(name, arguments):
    return run_calls(tuple(TOOLS.values()), [[{"name": name, "arguments": arguments}]])[0][0].text


@pytest.mark.parametrize("said", WRONG)
def test_wrong_arguments_are_told(said):
    assert said in call("calculator", WRONG[said])


def test_what_python_answers():
    assert call("python", {"code": "x = 2"}) == "(no output)"
    assert call("python", {"code": "sum(range(10))"}) == "45"
    assert call("python", {"code": "open('/etc/passwd')"}).startswith("error: refused\n")
    long = call("python", {"code": "print('a' * 3000 + 'z')"})
    assert len(long) < 2100 and long.endswith("z")


def test_opening_tools():
    assert [tool.schema for tool in open_tools(["python", "calculator", "python"])] == [PYTHON, CALCULATOR]
    with pytest.raises(UserError, match="no tool 'calculater'; there are calculator, python"):
        open_tools(["calculater"])
    assert all(name == tool.schema["function"]["name"] for name, tool in TOOLS.items())


def test_the_calculator_is_exact():
    results = {
        "48213*90177": "4347703701",
        "0.1 + 0.2": "0.3",
        "-1/8": "-0.125",
        "(1 + 2) * -3": "-9",
        "7 // -2": "-4",
        "-7 % 3": "2",
        "2**10": "1024",
        "2^10": "1024",
        "2 ** -2": "0.25",
        "12,345 × 2 ÷ 5": "4938",
        "1/3": "0.333333333333333",
        "1e3 + .5": "1000.5",
        "0.1**20 * 10**20": "1",
        "1e100/3": "3.33333333333333E+99",
        "(-1) ** 10**30": "1",
        "--2": "2",
    }
    assert {text: calculate(text) for text in results} == results
    for a in (3, -17, 10**40 + 1):
        for b in (7, -2, 10**39):
            assert calculate(f"({a}) * ({b}) + {b} - ({a}) // ({b})".replace(f"+ {b}", f"+ ({b})")) == str(a * b + b - a // b)
            assert Fraction(calculate(f"({a}) / 2 ** 40")) == Fraction(a, 2**40)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "(9**9)**(9**9)",
        "10**-99999999",
        "1e999999999",
        "9**999 * 9**999",
        "1/0",
        "1 % 0",
        "0 ** -1",
        "2 ** .5",
        "__import__('os')",
        "().__class__",
        "abs(1)",
        "x",
        "1 if 1 else 2",
        "[1]",
        "1,2",
        "3j",
        "0x10",
        "1_0",
        "",
        "(" * 200,
        "-" * 300 + "1",
        "1" * 300,
        "1 +",
        "1 < 2",
        "'a'",
        "True",
        "not 1",
        "~1",
        "1 and 2",
        "\ud800",
        "٣",
        "1\n2",
    ],
)
def test_the_calculator_refuses(text):
    with pytest.raises(ValueError):
        calculate(text)
