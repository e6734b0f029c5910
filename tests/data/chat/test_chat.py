"""Templates render as transformers renders them, no message can spell its way to a control symbol, and masks are exact."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from data.chat.template import CHAT_TEMPLATE, encode_chat, opens_thought, render
from data.text import sentencepiece_tokenizer as ours
from data.text.hf_tokenizer import BASE_TEMPLATE, HFTokenizer
from data.text.sentencepiece_tokenizer import CONTROLS, ROLES
from lm.errors import UserError
from tests.data.chat import hf_examples
from tests.data.text.test_sentencepiece_tokenizer import AWKWARD, corpus

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{% for message in messages %}
    {% if message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ message.content }}{% if message.tool_calls %}{% for call in message.tool_calls %}
<tool_call>
{{ call.function | tojson(indent=1) }}
</tool_call>
{% endfor %}{% endif %}<|im_end|>{% endgeneration %}

    {% else %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
    {%- endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

HEADERS = """\
{{- bos_token }}{% set day = strftime_now("%Y") %}
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = "" %}{% endif %}
{{- "<|im_start|>system<|im_end|>\\n\\nIn " + day[:2] + "xx: " + system + "<|endoftext|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|im_start|>assistant<|im_end|>\\n\\n{"parameters": ' + (call.arguments | tojson) + "}" }}
        {{- "<|endoftext|>" }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '<|im_end|>\\n\\n' + message['content'] | trim + '<|endoftext|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_end|>\\n\\n' }}{%- endif %}"""

THINKING = """\
{%- set last = namespace(user=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if message.role == "user" and not (message.content.startswith('<tool_call>')) %}
        {%- set last.user = index %}{%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "tool" %}{% continue %}{% endif %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content or "" %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- if loop.index0 > last.user %}
                {%- set content = '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' ~ content %}
            {%- endif %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""

# As Qwen 3's: a thought is a field of the message or in its text, and only what follows the last question shows it.
QWEN = """\
{%- set last = namespace(user=messages | length - 1) %}
{%- for message in messages if message.role == "user" %}{% set last.user = messages.index(message) %}{%- endfor %}
{%- for message in messages %}
    {%- set content, thought = message.content or "", message.reasoning_content or "" %}
    {%- if message.role == "assistant" and not message.reasoning_content and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == "assistant" and loop.index0 > last.user and (loop.last or thought) %}
        {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
    {%- else %}
        {{- content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

STRICT = """\
{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}
{{ '[INST] ' + message.content | trim if message.role == 'user' else message.content + eos_token }}
{% endfor %}"""

TALK = [
    {"role": "system", "content": "  Be good.\n"},
    {"role": "user", "content": "x < 3 & y > 4 \"quoted\" 'é' 🙂"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nthe model  reads", "name": None},
    {"role": "user", "content": ""},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "find", "arguments": {"city": "Zürich", "n": 3, "in": [True, None]}}}
        ],
    },
    {"role": "tool", "content": '{"temperature": 12}'},
    {"role": "assistant", "content": "<think>a</think>12 degrees"},
]
TOOLS = [{"type": "function", "function": {"name": "find", "description": "<b>é</b>", "parameters": {"type": "object"}}}]
TEMPLATES = {"ours": CHAT_TEMPLATE, "chatml": CHATML, "headers": HEADERS, "thinking": THINKING}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "tokenizer.model"
    return ours.train(corpus(), path, vocab_size=400, sample_bytes=1 << 20, seed=0, threads=2)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": THINKING}
    return hf_examples.folder(tmp_path_factory.mktemp("published"), hf_examples.gpt2(), tokenizer_config=names)


@pytest.fixture(scope="module")
def peer(published):
    return pytest.importorskip("transformers").PreTrainedTokenizerFast.from_pretrained(published)


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("template", TEMPLATES)
def test_text_ids_and_mask_are_those_of_transformers(peer, published, template, tools):
    template, tokenizer = TEMPLATES[template], HFTokenizer(published)
    for n in range(1, len(TALK) + 1):
        for prompt in (False, True):
            options = dict(tools=tools, add_generation_prompt=prompt)
            text = peer.apply_chat_template(TALK[:n], chat_template=template, tokenize=False, **options)
            assert render(TALK[:n], template, **options, **tokenizer.special_tokens) == text
            masked = "endgeneration" in template
            theirs = peer.apply_chat_template(
                TALK[:n], chat_template=template, return_dict=True, return_assistant_tokens_mask=masked, **options
            )
            if template == CHATML and n == 5:
                assert "\n<tool_call>\n" in text
            chat = encode_chat(tokenizer, TALK[:n], template=template, **options)
            assert chat.ids == theirs["input_ids"]
            assert chat.assistant == ([bool(bit) for bit in theirs["assistant_masks"]] if masked else None)


THOUGHT = [
    {"role": "user", "content": "3 + 4"},
    {"role": "assistant", "content": "7", "reasoning_content": "one, two\n<think> </think> é "},
    {"role": "user", "content": "and 1?"},
    {"role": "assistant", "content": " 8", "reasoning_content": "\nseven and one\n"},
]


@pytest.mark.parametrize("options", [{}, {"enable_thinking": True}, {"enable_thinking": False}])
@pytest.mark.parametrize("template", [QWEN, CHAT_TEMPLATE, BASE_TEMPLATE])
def test_thoughts_are_rendered_as_by_transformers(peer, published, template, options):
    tokenizer = HFTokenizer(published)
    for n in range(1, len(THOUGHT) + 1):
        for prompt in (False, True):
            extra = options | {"add_generation_prompt": prompt}
            text = peer.apply_chat_template(THOUGHT[:n], chat_template=template, tokenize=False, **extra)
            assert render(THOUGHT[:n], template, **extra, **tokenizer.special_tokens) == text
            theirs = peer.apply_chat_template(THOUGHT[:n], chat_template=template, return_dict=True, **extra)["input_ids"]
            assert encode_chat(tokenizer, THOUGHT[:n], template=template, **extra).ids == theirs
            assert ("<think>\n\n</think>\n\n" in text) == (prompt and options == {"enable_thinking": False})
            # Earlier turns show no thought, the last one shows its own.
            assert ("<think>\none, two" in text, "<think>\nseven and one\n</think>\n\n" in text) == (n == 2, n == 4)


def test_a_prompt_may_open_a_thought(published):
    tokenizer = HFTokenizer(published)
    for template, opens in ((THINKING, True), (QWEN, False), (CHAT_TEMPLATE, False)):
        for extra in ({}, {"enable_thinking": False}):
            chat = encode_chat(tokenizer, THOUGHT[:1], template=template, add_generation_prompt=True, **extra)
            assert opens_thought(tokenizer, chat.ids) == opens


def test_a_template_that_refuses_says_why(peer):
    for messages, words in ((TALK, "System role not supported"), (TALK[1:3] * 2 + TALK[2:3], "must alternate")):
        with pytest.raises(UserError, match=words):
            render(messages, STRICT, eos_token="</s>")
        with pytest.raises(Exception, match=words):
            peer.apply_chat_template(messages, chat_template=STRICT, tokenize=False)
    text = render(TALK[1:3], STRICT, eos_token="</s>")
    assert text == peer.apply_chat_template(TALK[1:3], chat_template=STRICT, tokenize=False).replace("<|im_end|>", "</s>")


@pytest.mark.parametrize(
    "template, words",
    [
        ("{% for %}", "template"),
        ("{{ messages[0].content.nothing.at_all }}", "nothing"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "stopped: .* steps"),
        ("{{ 'a' * 999999999 }}", "stopped: .* writes"),
    ],
)
def test_a_broken_or_hostile_template_is_a_user_error(template, words):
    with pytest.raises(UserError, match=f"^chat: .*{words}"):
        render(TALK, template)


def test_messages_that_are_none_are_refused():
    for messages in (["hello"], [{"content": "no role"}]):
        with pytest.raises(UserError, match="role"):
            render(messages)
    with pytest.raises(UserError, match="system, user, assistant or tool, not robot"):
        render([{"role": "robot", "content": "x"}])


def test_a_checkpoint_without_a_template_is_a_user_error(tmp_path):
    tokenizer = HFTokenizer(hf_examples.folder(tmp_path, hf_examples.gpt2()))
    with pytest.raises(UserError, match="template=…"):
        encode_chat(tokenizer, TALK)


def test_our_format(own):
    text = render(TALK[1:] + [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
    assert text == (
        "<s><|user|>x < 3 & y > 4 \"quoted\" 'é' 🙂<|end|><|assistant|><think>\nhm\n</think>\n\nthe model  reads<|end|>"
        '<|user|><|end|><|assistant|><|tool|>{"name": "find", "arguments": {"city": "Zürich", "n": 3, "in": [true, null]}}'
        '<|end|><|tool|>{"temperature": 12}<|end|><|assistant|><think>a</think>12 degrees<|end|><|user|>ab<|end|>'
    )
    ids, assistant = encode_chat(own, TALK, tools=TOOLS, add_generation_prompt=True)
    c = own.controls
    assert ids[:2] == [own.bos_id, c["<|system|>"]] and ids[-1] == c["<|assistant|>"] and not assistant[-1]
    written = [i for i, mine in zip(ids, assistant, strict=True) if mine]
    said = [own.encode(message["content"]) for message in (TALK[2], TALK[6])]
    call = '{"name": "find", "arguments": {"city": "Zürich", "n": 3, "in": [true, null]}}'
    end = c["<|end|>"]
    assert written == [*said[0], end, c["<|tool|>"], *own.encode(call), end, *said[1], end]


CONTENTS = [
    *CONTROLS,
    *AWKWARD,
    *hf_examples.SPECIAL,
    *hf_examples.ORDINARY,
    "<|user|",
    "<|im_en",
    "d|>",
    "<",
    "|>",
    " ",
    "\n",
    "<|USER|>",
    "the model",
    "\U0010fffd",
    "\U0010fffc<|end|>",
    "<\U0010fffd|end|>",
    "<|<|end|>end|>",
]


def hostile(count, seed):
    """Conversations whose messages are made of symbols, their parts, and characters that could serve as marks."""
    draw = random.Random(seed)
    for _ in range(count):
        contents = ["".join(draw.choices(CONTENTS, k=draw.randint(0, 6))) for _ in range(4)]
        yield [{"role": role, "content": text} for role, text in zip(("system", "user", "assistant", "user"), contents)]


def test_no_message_can_spell_a_control_symbol(own):
    for talk in hostile(400, 0):
        ids, assistant = encode_chat(own, talk)
        expected = [own.bos_id]
        for message in talk:  # the slow twin: the format, built from ids
            expected += [own.controls[f"<|{message['role']}|>"], *own.encode(message["content"]), own.controls["<|end|>"]]
        assert ids == expected
        assert sum(assistant) == 1 + len(own.encode(talk[2]["content"]))


def test_no_message_can_spell_a_symbol_of_a_published_template(published):
    tokenizer = HFTokenizer(published)
    own_symbols = set(tokenizer.controls.values()) | {tokenizer.encode(token)[0] for token in hf_examples.ORDINARY[:3]}
    innocent = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user")]
    wanted = [i for i in encode_chat(tokenizer, innocent, template=CHATML, tools=TOOLS).ids if i in own_symbols]
    for talk in hostile(300, 1):
        chat = encode_chat(tokenizer, talk, template=CHATML, tools=TOOLS)
        # <think> is not written by this template, and <tool_call> by an assistant too: the ordinary tokens that they are.
        free = {tokenizer.encode(token)[0] for token in hf_examples.ORDINARY[:3]}
        assert [i for i in chat.ids if i in own_symbols - free] == [i for i in wanted if i not in free]
        call = tokenizer.encode("<tool_call>")[0]
        assert chat.ids.count(call) == talk[2]["content"].count("<tool_call>")
        written = tokenizer.decode([i for i, mine in zip(chat.ids, chat.assistant) if mine])
        assert written in (talk[2]["content"], "\n" + talk[2]["content"])  # a token can hold the end of the header too
        without = CHATML.replace("<|im_start|>", "").replace("<|im_end|>", "")
        assert tokenizer.decode(chat.ids) == render(talk, without, tools=TOOLS)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|user|>{{ m.content | trim }}{% endfor %}<|end|>",
        "{% for m in messages %}{{ m.content | lower }}{% endfor %}",
        "{{ messages | map(attribute='content') | join }}",
        "{{ messages | tojson }}",
        "{{ messages[0].content * 2 }}",
        "{% for m in messages %}{% for w in m.content.split(' ') %}{{ w }}{% endfor %}{% endfor %}",
    ],
)
def test_symbols_do_not_come_together_in_a_template(own, template):
    """Trimmed, joined, changed in case: halves of a symbol in two messages, or with space between, stay text."""
    halves = [("<|us", "er|>"), ("<|us ", " er|>"), ("<|USER", "|>"), ("<", "|end|>"), ("<|END|>", "<|Sys\n"), ("<|end|>", "<")]
    for first, second in halves:
        if "split" in template and " " in first:
            continue  # a template that takes a text apart can join what was apart; said in the docstring
        talk = [{"role": "user", "content": first}, {"role": "user", "content": second}]
        symbols = [i for i in encode_chat(own, talk, template=template).ids if i < len(CONTROLS)]
        innocent = [{"role": "user", "content": "x"}] * 2
        assert symbols == [i for i in encode_chat(own, innocent, template=template).ids if i < len(CONTROLS)]


def test_tools_arguments_and_extras_cannot_spell_symbols_either(own):
    evil = f"</s>{''.join(ROLES)}"
    call = [{"function": {"name": evil, "arguments": {evil: [evil]}}}, {"name": "f", "arguments": f'{{"{evil}": 1}}'}]
    tools = [{"name": evil, evil: evil}]
    ids, assistant = encode_chat(own, [{"role": "assistant", "content": evil, "tool_calls": call}], tools=tools, own=evil)
    assert "".join(own.decode([i]) for i in ids).count(evil) == 8
    named = {i: symbol for symbol, i in own.controls.items()}
    assert [named[i] for i in ids if i in named] == [
        "<s>",
        "<|system|>",
        "<|end|>",
        "<|assistant|>",
        "<|tool|>",
        "<|tool|>",
        "<|end|>",
    ]


def test_a_tokenizer_that_folds_case_cannot_be_tricked(tmp_path):
    """Its added tokens are looked for in the normalised text, where another spelling becomes theirs."""
    raw = hf_examples.gpt2()
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.add_special_tokens([AddedToken("<|sys|>", normalized=True, special=True)])
    tokenizer = HFTokenizer(hf_examples.folder(tmp_path, raw))
    assert raw.encode("＜|ＳＹＳ|＞").ids == [tokenizer.controls["<|sys|>"]]
    template = "<|sys|>{{ messages[0].content }}"
    for content in ("＜|ＳＹＳ|＞", "<|SYS|>", "<|sys|>", "nothing"):
        ids, _ = encode_chat(tokenizer, [{"role": "user", "content": content}], template=template)
        assert [i for i in ids if i in tokenizer.controls.values()] == [tokenizer.controls["<|sys|>"]]
        assert tokenizer.decode(ids) == content.lower().replace("＜|ｓｙｓ|＞", "<|sys|>")


def test_a_tokenizer_that_makes_symbols_of_plain_text_is_refused(tmp_path):
    raw = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(["</s>", "!"])
    tokenizer = HFTokenizer(hf_examples.folder(tmp_path, raw))
    with pytest.raises(UserError, match="^chat: .*plain text"):
        encode_chat(tokenizer, [{"role": "user", "content": "a </s>"}], template="{{ messages[0].content }}")
    # A symbol of a single character cannot be taken apart, and is still known.
    ids, _ = encode_chat(tokenizer, [{"role": "user", "content": "a !"}], template="!{{ messages[0].content }}!")
    assert ids == [3, 1, 2, 3]


def test_what_stands_for_a_symbol_by_name_may_be_given(own):
    template = "{{ bos_token }}{{ other }}"
    assert encode_chat(own, TALK, template=template, bos_token="</s>", other="").ids == [own.eos_id]
    assert own.eos_id not in encode_chat(own, TALK, template=template, other="</s>").ids


def test_a_mask_covers_tokens_that_hold_part_of_a_character(own):
    talk = [{"role": "user", "content": "日"}, {"role": "assistant", "content": "本🙂"}]
    ids, assistant = encode_chat(own, talk)
    assert own.decode([i for i, mine in zip(ids, assistant) if mine]) == "本🙂"
    assert sum(assistant) == len(own.encode("本🙂")) + 1
