"""The Modelfile: Ollama's template writes what the Jinja template writes."""

import re

import pytest

from data.chat.template import render
from data.text.hf_tokenizer import BASE_TEMPLATE, HFTokenizer
from data.text.sentencepiece_tokenizer import CHAT_TEMPLATE, train
from lm.convert.gguf.modelfile import modelfile
from tests.data.chat import hf_examples
from tests.data.text.test_sentencepiece_tokenizer import corpus

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<start>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}: {{ m['content'] }}<|im_end|>{% endfor %}"


def tokenizer(folder, template):
    named = {**hf_examples.BYTE_LEVEL_NAMES, "chat_template": template}
    return HFTokenizer(hf_examples.folder(folder, hf_examples.pre_tokenized("smollm"), tokenizer_config=named))


def ollama(content: str, messages) -> str:
    """Render the Go template of a Modelfile, of which it uses only range, if and fields."""
    template = re.search(r'TEMPLATE """(.*?)"""', content, re.DOTALL)[1]
    begin, body, end = re.fullmatch(r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template, re.DOTALL).groups()
    roles = dict(re.findall(r'if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else |\{\{ end )', body, re.DOTALL))
    default = re.search(r'SYSTEM """(.*?)"""', content, re.DOTALL)
    if default and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": default[1]}, *messages]
    return begin + "".join(roles[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages) + end


@pytest.mark.parametrize(
    "template", [CHATML, DEFAULT_SYSTEM, NO_SYSTEM, BASE_TEMPLATE], ids=["chatml", "default system", "no system", "base"]
)
@pytest.mark.parametrize("begins", ["user", "system"])
def test_a_conversation_is_written_alike(tmp_path, template, begins):
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]
    turns = [("system", "Be brief."), *turns] if begins == "system" and template is not NO_SYSTEM else turns
    messages = [{"role": role, "content": content} for role, content in turns]
    found = ollama(modelfile("x.gguf", tokenizer(tmp_path, template)), messages)
    expected = render(messages, template, True, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    assert found == expected  # the template's own BOS stays: this tokenizer adds none


def test_the_file_names_the_model_and_what_ends_an_answer(tmp_path):
    lines = modelfile("x.gguf", tokenizer(tmp_path, CHATML)).splitlines()
    assert lines[0] == "FROM ./x.gguf" and lines[-1] == 'PARAMETER stop "<|im_end|>"'


def test_our_own_template_keeps_its_frames_and_its_begin_symbol_is_left_to_the_tokenizer(tmp_path):
    ours = train(corpus(), tmp_path / "t.model", vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1)
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why?"},
    ]
    content = modelfile("x.gguf", ours)
    assert ollama(content, messages) == render(messages, CHAT_TEMPLATE, True).removeprefix("<s>")
    assert 'PARAMETER stop "<|end|>"' in content and 'PARAMETER stop "</s>"' in content


@pytest.mark.parametrize("template", [NUMBERED, CHATML.replace("'\n' }}", "'{{\n' }}")], ids=["numbered", "braces"])
def test_a_template_that_is_no_frame_is_left_to_ollama(tmp_path, template):
    assert "TEMPLATE" not in modelfile("x.gguf", tokenizer(tmp_path, template))


def test_a_model_without_a_template_completes_texts(tmp_path):
    assert modelfile("x.gguf", tokenizer(tmp_path, None)) == 'FROM ./x.gguf\nTEMPLATE "{{ .Prompt }}"\n'
