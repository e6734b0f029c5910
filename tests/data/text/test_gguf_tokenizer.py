"""Tokenizers in GGUF files: the same ids after writing and reading, and settings that are no tokenizer."""

import json

import numpy as np
import pytest
from tokenizers import normalizers, pre_tokenizers

from data.text.gguf_tokenizer import tokenizer_settings
from data.text.hf_tokenizer import HFTokenizer, has_tokenizer
from data.text.sentencepiece_tokenizer import train
from data.text.tokenizer import load_tokenizer
from lm.errors import UserError
from lm.files.gguf import writing
from tests.data.chat import hf_examples
from tests.data.text.test_sentencepiece_tokenizer import AWKWARD, corpus

KINDS = (*hf_examples.STEPS, "llama 2", "gemma")
TEXTS = (*AWKWARD, "Hello world, it's 2024! DON'T\n\n  x = 12345  # 日本語 é 🙂 ½", " a", "a ", "")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def published(folder, kind: str, **settings) -> HFTokenizer:
    named = hf_examples.NAMED.get(kind, hf_examples.BYTE_LEVEL_NAMES) | settings
    return HFTokenizer(hf_examples.folder(folder / "hf", hf_examples.pre_tokenized(kind), tokenizer_config=named))


def file_of(folder, settings: dict):
    """Return a GGUF file with these settings and no tensor."""
    with writing(folder / "x.gguf", {"general.architecture": "llama"} | settings, {}):
        pass
    return folder / "x.gguf"


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_tokenizer_comes_back_with_the_same_ids(tmp_path, kind):
    before = published(tmp_path, kind, chat_template=TEMPLATE)
    after = load_tokenizer(file_of(tmp_path, tokenizer_settings(before, before.vocab_size + 3)))
    for text in TEXTS:
        assert after.prompt_ids(text) == before.prompt_ids(text), text
        assert after.decode_bytes(after.encode(text)) == before.decode_bytes(before.encode(text))
    assert after.vocab_size == before.vocab_size + 3  # unused ids, as a padded embedding has
    names = ("bos_id", "eos_id", "stop_ids", "controls", "special_tokens", "chat_template")
    assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]


def test_our_own_tokenizer_comes_back_but_for_the_sign_of_a_space(tmp_path):
    before = train(corpus(), tmp_path / "t.model", vocab_size=400, sample_bytes=1 << 16, seed=0, threads=1)
    after = load_tokenizer(file_of(tmp_path, tokenizer_settings(before, before.vocab_size)))
    for text in TEXTS:
        if "▁" not in text:  # llama.cpp and Hugging Face's fast tokenizers take it for a space
            assert after.prompt_ids(text) == before.prompt_ids(text), text
            assert after.decode(after.encode(text)) == before.decode(before.encode(text))
    assert after.stop_ids == (before.eos_id, before.controls["<|end|>"])
    assert after.chat_template == before.chat_template and after.controls.keys() >= before.controls.keys() - {"<unk>"}


def test_the_files_of_a_tokenizer_are_those_that_a_folder_has(tmp_path):
    """An import writes them; they give the same tokenizer."""
    before = published(tmp_path, "smollm", chat_template=TEMPLATE)
    file = file_of(tmp_path, tokenizer_settings(before, before.vocab_size))
    load_tokenizer(file).save(tmp_path)
    assert (tmp_path / "tokenizer.json").exists() and load_tokenizer(tmp_path / "tokenizer.json").stop_ids == before.stop_ids
    copied = tmp_path / "copy"
    load_tokenizer(file).save(copied)
    assert load_tokenizer(copied).fingerprint == load_tokenizer(file).fingerprint


def test_a_file_without_a_tokenizer_has_none(tmp_path):
    assert not has_tokenizer(file_of(tmp_path, {}))
    (tmp_path / "x.gguf").unlink()
    assert not has_tokenizer(file_of(tmp_path, {"tokenizer.ggml.model": "none"}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "bert"}, "tokenizer.ggml.model='bert'"),
        ({"pre": "klingon"}, "tokenizer.ggml.pre='klingon', which is none of gpt-2, smollm"),
        ({"tokens": None}, "no list tokenizer.ggml.tokens"),
        ({"tokens": "all"}, "no list tokenizer.ggml.tokens"),
        ({"tokens": [1, 2]}, "no list tokenizer.ggml.tokens of str"),
        ({"merges": None}, "no list tokenizer.ggml.merges"),
        ({"merges": ["a b c"]}, "the merge 'a b c'"),
        ({"merges": ["qqq zzz"]}, "the merge 'qqq zzz'"),
        ({"token_type": [1, 1]}, "tokens and 2 types"),
        ({"eos_token_id": 100000}, "eos_token_id=100000"),
        ({"eos_token_id": "last"}, "eos_token_id must be of type int"),
        ({"pre": ["smollm"]}, "tokenizer.ggml.pre must be of type str"),
        ({"model": [1, 2]}, "tokenizer.ggml.model must be of type str"),
        ({"add_bos_token": 7}, "add_bos_token must be of type bool"),
    ],
)
def test_settings_that_are_no_tokenizer_give_one_line(tmp_path, changes, message):
    tokenizer = published(tmp_path, "smollm")
    settings = tokenizer_settings(tokenizer, tokenizer.vocab_size) | {f"tokenizer.ggml.{k}": v for k, v in changes.items()}
    file = file_of(tmp_path, {name: value for name, value in settings.items() if value is not None})
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(file)
    assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_scores_of_another_number_than_tokens_are_refused(tmp_path):
    tokenizer = published(tmp_path, "gemma")
    settings = tokenizer_settings(tokenizer, tokenizer.vocab_size) | {"tokenizer.ggml.scores": [0.5]}
    with pytest.raises(UserError, match="tokens and 1 scores"):
        load_tokenizer(file_of(tmp_path, settings))


@pytest.mark.parametrize("name, value", [("tokenizer.ggml.add_space_prefix", 2**31), ("tokenizer.chat_template", [1, 2])])
def test_a_setting_of_another_type_is_refused(tmp_path, name, value):
    tokenizer = published(tmp_path, "gemma")
    with pytest.raises(UserError, match=f"{name} must be of type"):
        load_tokenizer(file_of(tmp_path, tokenizer_settings(tokenizer, tokenizer.vocab_size) | {name: value}))


@pytest.mark.parametrize("name", ["unigram", "word_piece", "other words", "a space before words", "lower case"])
def test_what_llama_cpp_cannot_cut_is_refused(tmp_path, name):
    if name in ("unigram", "word_piece"):
        tokenizer = getattr(hf_examples, name)()
    elif name == "other words":
        tokenizer = hf_examples.gpt2()
    elif name == "lower case":
        tokenizer = hf_examples.pre_tokenized("gpt-2")
        tokenizer.normalizer = normalizers.Lowercase()
    else:
        tokenizer = hf_examples.pre_tokenized("gpt-2")
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    loaded = HFTokenizer(hf_examples.folder(tmp_path, tokenizer, tokenizer_config={"eos_token": "</s>"}))
    with pytest.raises(UserError, match="GGUF cannot hold|llama.cpp has no name|does not normalise"):
        tokenizer_settings(loaded, loaded.vocab_size)


def test_a_template_of_a_list_of_templates_and_null_ids(tmp_path):
    tokenizer = published(tmp_path, "smollm")
    settings = tokenizer_settings(tokenizer, tokenizer.vocab_size) | {"tokenizer.ggml.padding_token_id": 2**32 - 1}
    loaded = load_tokenizer(file_of(tmp_path, settings))
    assert "pad_token" not in loaded.special_tokens and loaded.chat_template is None
    ids = np.asarray(loaded.encode("a b"))
    assert json.loads(loaded.json)["model"]["vocab"] and loaded.decode(ids) == "a b"
