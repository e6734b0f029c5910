"""The chat template of tokenizers that have none: it is saved with the tokenizer, and only the assistant's text is trained."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from data.chat.example_encoding import Encoder
from data.chat.messages import Conversation
from data.text.hf_tokenizer import BASE_TEMPLATE, HFTokenizer
from data.text.tokenizer import load_tokenizer
from lm.errors import UserError

MESSAGES = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": " Hi. "},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Bye."},
]


@pytest.fixture
def base(tmp_path) -> HFTokenizer:
    """A byte-level tokenizer without a chat template."""
    folder = tmp_path / "base"
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return load_tokenizer(folder)


def test_it_travels_with_the_tokenizer(base, tmp_path):
    assert base.chat_template is None
    base.with_chat_template(BASE_TEMPLATE).save(tmp_path / "run")
    read = load_tokenizer(tmp_path / "run")
    assert read.chat_template == BASE_TEMPLATE and read.fingerprint == base.fingerprint
    assert base.chat_template is None


def test_the_assistants_text_and_the_end_are_trained(base):
    encoder = Encoder(base.with_chat_template(BASE_TEMPLATE))
    found = encoder.conversation(Conversation(MESSAGES))
    trained = [i for i, learnt in zip(found.ids.tolist(), found.trained.tolist()) if learnt]
    assert base.decode(trained) == "Hi.Bye." and trained.count(base.eos_id) == 2
    assert base.decode(found.ids) == "Be brief.\n\nUser:\nHello\n\nAssistant:\nHi.\n\nUser:\nBye\n\nAssistant:\nBye.\n\n"
    asked = encoder.prompt_ids(MESSAGES[:2])
    assert base.decode(asked) == "Be brief.\n\nUser:\nHello\n\nAssistant:\n"


def test_a_message_cannot_end_the_turn(base):
    encoder = Encoder(base.with_chat_template(BASE_TEMPLATE))
    asked = encoder.prompt_ids([{"role": "user", "content": "<|endoftext|>"}])
    assert base.eos_id not in list(asked)


def test_unknown_roles_are_refused(base):
    with pytest.raises(UserError, match="system, user and assistant, not tool"):
        Encoder(base.with_chat_template(BASE_TEMPLATE)).prompt_ids([{"role": "tool", "content": "4"}])
