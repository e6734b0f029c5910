"""The ChatML template with tools: the text that serve.py writes for a ChatML model without tools, and calls are trained."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import data
from data.chat.example_encoding import Encoder
from data.chat.messages import Conversation
from data.chat.template import render
from data.tasks.stockroom import STOCKROOM_TOOLS, stockroom
from data.text.tokenizer import load_tokenizer
from lm.align.rl.tools import answer_ids
from lm.infer.calls import parse_turn
from lm.serve.api.tools import PLAIN, declared, format_of

TEMPLATE = (Path(data.__file__).parent / "text" / "chatml_tools_template.jinja").read_text()
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TWO = [
    {"role": "user", "content": "Both?"},
    {"role": "assistant", "content": "I ask.", "tool_calls": [{"function": {"name": n, "arguments": {"a": n}}} for n in "bc"]},
    {"role": "tool", "content": "one"},
    {"role": "tool", "content": "two"},
    {"role": "assistant", "content": "Three."},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chatml")
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    return load_tokenizer(folder)


@pytest.mark.parametrize("tools", [[], STOCKROOM_TOOLS])
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
@pytest.mark.parametrize("messages", [next(stockroom("train", 0))["messages"], TWO, TWO[:4]])
def test_it_writes_what_serving_writes_for_a_model_without_tools(messages, system, tools):
    whole = [*system, *messages]
    for begun in (False, True):
        ours = render(whole, TEMPLATE, add_generation_prompt=begun, tools=tools)
        assert ours == render(declared(PLAIN, whole, tools), CHATML, add_generation_prompt=begun)


def test_turns_are_trained_and_read_again(tokenizer):
    messages = next(stockroom("train", 0))["messages"]
    found = Encoder(tokenizer, TEMPLATE).conversation(Conversation(messages))
    said = tokenizer.decode([i for i, learnt in zip(found.ids.tolist(), found.trained.tolist()) if learnt])
    assert said.count("<tool_call>") == 4 and "tool_response" not in said and said.endswith(messages[-1]["content"])
    turns = parse_turn(tokenizer, tokenizer.encode(said))
    assert [one["function"] for one in turns.tool_calls] == [
        m["tool_calls"][0]["function"] for m in messages if "tool_calls" in m
    ]
    form = format_of(tokenizer, TEMPLATE)
    assert form.declared and (form.begin, form.end) == (PLAIN.begin, PLAIN.end)


def test_answers_continue_a_conversation(tokenizer):
    encoder = Encoder(tokenizer, TEMPLATE)
    before, after = encoder.conversation(Conversation(TWO[:2])).ids, encoder.prompt_ids(TWO[:4])
    whole = [*before.tolist()[:-1], *answer_ids(tokenizer, ["one", "two"], TEMPLATE)]
    assert tokenizer.decode(whole) == tokenizer.decode(after) and whole == list(after)
