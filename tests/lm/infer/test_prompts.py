"""Prompts of each form, with a tokenizer of ours and with a published one."""

import copy
import warnings

import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, models, pre_tokenizers

import lm
from data.chat.template import encode_chat
from data.text.hf_tokenizer import HFTokenizer
from data.text.sentencepiece_tokenizer import train
from lm.config import ModelConfig
from lm.errors import UserError
from lm.infer.prompts import stops_of
from lm.model.transformer import skeleton
from tests.data.chat import hf_examples
from tests.lm.weights import drawn as parameters

CONFIG = ModelConfig(vocab_size=512, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=2, mlp_dim=32, dtype="float32")
CHATML = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GREEDY = dict(max_new_tokens=6, temperature=0.0)
ASKED = [{"role": "user", "content": "the cat <|im_end|> <|end|>"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(tokenizer, symbol that ends a turn) of ours and of a published one."""
    folder = tmp_path_factory.mktemp("tokenizers")
    ours = train(
        ["the cat and the hat sat on that mat\n"] * 3, folder / "t", vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1
    )
    files = {"tokenizer_config": {"eos_token": "<|endoftext|>", "chat_template": CHATML}}
    published = HFTokenizer(hf_examples.folder(folder / "published", hf_examples.gpt2(), **files))
    return {"ours": (ours, "<|end|>"), "published": (published, "<|im_end|>")}


@pytest.fixture(params=["ours", "published"])
def pair(made, request):
    return made[request.param]


@pytest.fixture(scope="module")
def model():
    return nnx.merge(skeleton(CONFIG)[0], parameters(CONFIG, scale=4.0))


def saying(model, first: int, then: int):
    """The same model, except that it says `then` where it would have said `first`."""
    graph, params = nnx.split(model)
    head = np.array(params["head"].get_value())
    head[[first, then]] = head[[then, first]]
    params["head"].set_value(head)
    return nnx.merge(graph, params)


def test_messages_are_rendered_by_the_template(model, pair):
    tokenizer, _ = pair
    ids = encode_chat(tokenizer, ASKED, add_generation_prompt=True).ids
    expected = lm.generate(model, tokenizer, [ids], **GREEDY)[0]
    assert lm.generate(model, tokenizer, [ASKED], **GREEDY) == [tokenizer.decode(expected)]


def test_the_end_of_turn_ends_the_answer(model, pair):
    tokenizer, symbol = pair
    ids = encode_chat(tokenizer, ASKED, add_generation_prompt=True).ids
    greedy = lm.generate(model, tokenizer, [ids], **GREEDY)[0]
    ending = saying(model, greedy[3], tokenizer.controls[symbol])
    at = next(n for n, token in enumerate(greedy) if token == greedy[3])
    assert lm.generate(ending, tokenizer, [ASKED], **GREEDY) == [tokenizer.decode(greedy[:at])]
    pieces = []
    assert lm.generate(ending, tokenizer, [ASKED], **GREEDY, stream=pieces.append) == ["".join(pieces)]


def test_forms_may_be_mixed(model, pair):
    """Each prompt is answered as it would be alone, also where only some of the prompts end with a turn."""
    tokenizer, symbol = pair
    text, ids = "the hat", tokenizer.encode("a mat")
    spoken = lm.generate(model, tokenizer, [tokenizer.prompt_ids(text)], **GREEDY)[0]
    model = saying(model, spoken[2], tokenizer.controls[symbol])
    prompts = [text, ASKED, ids, np.asarray(ids), ASKED]
    alone = [lm.generate(model, tokenizer, [prompt], **GREEDY)[0] for prompt in prompts]
    assert lm.generate(model, tokenizer, prompts, **GREEDY) == alone
    assert [type(one) for one in alone] == [str, str, list, list, str]


def test_a_string_that_spells_a_symbol_is_text_and_is_warned_of_once(model, pair):
    tokenizer, symbol = pair
    text = f"the cat{symbol}"
    tokenizer = copy.copy(tokenizer)  # one that was not warned of yet
    with pytest.warns(UserWarning, match="control symbol .* read as plain text.* messages, .*--chat") as warned:
        first = lm.generate(model, tokenizer, [text, f"{symbol} {symbol}"], **GREEDY)
    assert len(warned) == 1 and warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lm.generate(model, tokenizer, [text], **GREEDY) == first[:1]
        lm.generate(model, tokenizer, ["the cat", ASKED, tokenizer.encode(text)], **GREEDY)
    assert tokenizer.controls[symbol] not in tokenizer.encode(text)


@pytest.mark.parametrize(
    "prompts, named",
    [
        (ASKED, "prompt 0 .* list of their own"),
        ({"role": "user", "content": "a"}, "must be a list"),
        (5, "must be a list"),
        ([5], "prompt 0 .* of no known form"),
        ([["a", "b"]], "prompt 0 .* of no known form"),
        ([[1.5]], "prompt 0 .* of no known form"),
        (["a", [{"content": "a"}]], "prompt 1 .*message 1 is no object with a role"),
        ([[{"role": "user", "content": "a"}, "b"]], "message 2 is no object with a role"),
        ([[{"role": "user"}]], "message 1 has no content"),
        ([[{"role": "user", "content": 5}]], "message 1 has content that is not only text"),
        ([[{"role": 7, "content": "a"}]], "message 1 has the role '7'"),
        ([[{"role": "wizard", "content": "a"}]], "has the role 'wizard'; roles are"),
        ([[]], "empty"),
    ],
)
def test_what_is_no_prompt_is_named(model, pair, prompts, named):
    with pytest.raises(UserError, match=named):
        lm.generate(model, pair[0], prompts, **GREEDY)


def test_a_template_that_refuses_and_one_that_there_is_not(model, made, tmp_path):
    tokenizer, _ = made["published"]
    with pytest.raises(UserError, match="the template says: no tools here"):
        lm.generate(model, tokenizer, [[*ASKED, {"role": "tool", "content": "a"}]], **GREEDY)
    with pytest.raises(UserError, match="the template fails on these messages: TypeError"):
        lm.generate(model, tokenizer, [ASKED], template="{{ messages[0].content + 1 }}", **GREEDY)
    bare = HFTokenizer(hf_examples.folder(tmp_path, hf_examples.gpt2()))
    with pytest.raises(UserError, match="without a chat template"):
        lm.generate(model, bare, [ASKED], **GREEDY)
    assert lm.generate(model, bare, [ASKED], template=CHATML, **GREEDY) == lm.generate(model, tokenizer, [ASKED], **GREEDY)


def test_a_turn_ends_with_its_symbol_though_the_tokenizer_knows_no_letter(tmp_path):
    words = {"[UNK]": 0, "ACGT": 1, "<user>": 2, "<model>": 3, "<end>": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(words)[2:])
    template = "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<model>' }}{{ m.content }}<end>{% endfor %}"
    template += "{% if add_generation_prompt %}<model>{% endif %}"
    found = HFTokenizer(hf_examples.folder(tmp_path, tokenizer, tokenizer_config={"chat_template": template}))
    assert stops_of(found, None) == (words["<end>"],)
