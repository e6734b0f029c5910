"""Harmony, the format of gpt-oss: prompts as its template renders them, answers read, and what is trained."""

import re

import pytest

from data.chat.example_encoding import Encoder
from data.chat.harmony import Channels, closing, spelled
from data.chat.messages import Conversation
from data.chat.template import encode_chat, end_of_turn, opens_thought, render
from data.chat.thoughts import divided, thought_length
from tests.data.chat import harmony_examples
from tests.data.chat.harmony_examples import TEMPLATE, TOOL

CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "3 + 4 <|end|>"},
    {"role": "assistant", "content": "7", "reasoning_content": "one, two"},
    {"role": "user", "content": "and the weather?"},
    {"role": "assistant", "content": "", "reasoning_content": "ask it", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"t": 9}'},
    {"role": "assistant", "content": "9 degrees", "reasoning_content": "it says 9"},
]
MARK = "<|channel|>{}<|message|>"
THINK, FINAL, AGAIN = MARK.format("analysis"), MARK.format("final"), "<|end|><|start|>assistant"
CASES = {  # an answer: its thought, and what follows
    f"{THINK}so Größe{AGAIN}{FINAL}yes\n": ("so Größe", "yes\n"),
    f"{FINAL}yes <think>": ("", "yes <think>"),
    f"{THINK}a{AGAIN}{THINK}b{AGAIN}{FINAL}c": ("a\nb", "c"),
    f"{THINK}it is 9, so": ("it is 9, so", ""),
    f"{THINK}so{AGAIN}<|channel|>fin": ("so", ""),
    f"{THINK}a{AGAIN}{MARK.format('commentary')}I look.{AGAIN}{THINK}late{AGAIN}{FINAL}b": ("a", "I look.b"),
    f'{THINK}a{AGAIN} to=functions.f<|channel|>commentary json<|message|>{{"b": 1}}<|call|>': (
        "a",
        '<tool_call>\n{"name": "f", "arguments": {"b": 1}}\n</tool_call>',
    ),
    '<|channel|>commentary to=functions.f_2 <|constrain|>json<|message|>{"b": 1}': (
        "",
        '<tool_call>\n{"name": "f_2", "arguments": {"b": 1}}\n</tool_call>',
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return harmony_examples.tokenizer(tmp_path_factory.mktemp("harmony"))


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer.encode_rendered(text)[0]


def test_a_prompt_has_the_published_form(tokenizer):
    text = render(TALK[:2], TEMPLATE, True, tools=[TOOL], reasoning_effort="high")
    assert re.sub(r"\d{4}-\d\d-\d\d", "TODAY", text, count=1) == (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
        "Current date: TODAY\n\nReasoning: high\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.\n"
        "Calls to these tools must go to the commentary channel: 'functions'.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nBe brief.\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n"
        "// The weather of a city.\ntype get_weather = (_: {\ncity: string,\n}) => any;\n\n} // namespace functions<|end|>"
        "<|start|>user<|message|>3 + 4 <|end|><|end|><|start|>assistant"
    )
    ids = encode_chat(tokenizer, TALK[:2], add_generation_prompt=True).ids
    assert ids.count(tokenizer.controls["<|end|>"]) == 3 and opens_thought(tokenizer, ids)  # the user's is text
    assert not opens_thought(tokenizer, [*ids, *ids_of(tokenizer, FINAL)])
    assert end_of_turn(tokenizer) == tokenizer.controls["<|return|>"]


@pytest.mark.parametrize("prompt", [False, True])
def test_conversations_are_rendered_as_by_transformers(tokenizer, tmp_path, prompt):
    peer = pytest.importorskip("transformers").PreTrainedTokenizerFast.from_pretrained(harmony_examples.folder(tmp_path))
    ours = [message | {"content": message["content"].removesuffix("<|end|>")} for message in TALK]
    named = [
        message | ({"thinking": message["reasoning_content"]} if "reasoning_content" in message else {}) for message in ours
    ]
    for n in range(2, len(TALK) + 1):
        options = dict(tools=[TOOL], add_generation_prompt=prompt, reasoning_effort="low")
        theirs = peer.apply_chat_template(named[:n], return_dict=True, **options)["input_ids"]
        assert encode_chat(tokenizer, ours[:n], **options).ids == theirs


@pytest.mark.parametrize("text", CASES)
def test_an_answer_is_read_token_by_token(tokenizer, text):
    ids, channels = ids_of(tokenizer, text), Channels(tokenizer)
    pieces = [channels.feed(i) for i in ids]
    whole = spelled(tokenizer, ids, begun=True)
    assert b"".join([*pieces, channels.over()]).decode() == whole
    assert divided(whole, begun=True) == CASES[text]
    length = thought_length(tokenizer, ids, begun=True)
    if "</think>" in whole:  # the header of the answer is no part of the thought
        header = ids[length : next(n for n, piece in enumerate(pieces) if b"</think>" in piece)]
        assert header and tokenizer.controls["<|start|>"] not in header
        assert not length or spelled(tokenizer, ids[:length], begun=False).endswith("assistant")
    else:
        assert length == len(ids)


def test_text_that_no_harmony_prompt_began_is_left_alone(tokenizer):
    ids = ids_of(tokenizer, f"{THINK}a{AGAIN}{FINAL}b")
    assert spelled(tokenizer, ids, begun=False) == tokenizer.decode(ids)


def trained(tokenizer, talk, **options) -> str:
    encoded = Encoder(tokenizer, **options).conversation(Conversation(talk, [TOOL]))
    names = {i: name for name, i in tokenizer.controls.items()}
    return "".join(names.get(i) or tokenizer.decode([i]) for i in encoded.ids[encoded.trained].tolist())


def test_what_the_assistant_wrote_is_trained(tokenizer):
    call = ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "'
    text = trained(tokenizer, TALK)
    # Earlier answers show no thought, and end with a symbol that the model does not draw there.
    assert text.startswith(f"{FINAL}7{call}") and text.endswith(f'"}}<|call|>{THINK}it says 9{AGAIN}{FINAL}9 degrees<|return|>')
    without = trained(tokenizer, TALK, thoughts=False)
    # The headers of answers and calls are trained: they name the channel and the tool.
    assert without.startswith(f"{FINAL}7{call}") and without.endswith(f'"}}<|call|>{FINAL}9 degrees<|return|>')
    text = trained(tokenizer, TALK[:5])
    assert f"{THINK}ask it{AGAIN}{call}" in text and text.endswith("<|call|>")


def test_a_template_without_channels_trains_what_it_adds(tokenizer):
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    assert trained(tokenizer, TALK[:3], template=template) == "7<|im_end|>"


def test_a_thought_can_be_ended_wherever_a_message_or_its_header_begins(tokenizer):
    ids, whole = ids_of(tokenizer, f"{THINK}ab{AGAIN}{FINAL}"), closing(tokenizer)
    assert ids_of(tokenizer, f"{AGAIN}{FINAL}") == list(whole)
    channels, ends = Channels(tokenizer), []
    for token in ids:
        ends.append(channels.closing)
        channels.feed(token)
        if channels.closing:
            assert spelled(tokenizer, [*ids[: len(ends)], *channels.closing], begun=True).count("</think>") == 1
    assert ends[0] == tuple(ids_of(tokenizer, FINAL)) and () in ends and whole in ends
