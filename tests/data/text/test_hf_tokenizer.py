"""A published tokenizer.json gives the ids of `tokenizers`, counts its bytes, and stands wherever ours does."""

import json
import threading

import numpy as np
import pytest
import tokenizers

from configs.train import tiny
from data.text import sentencepiece_tokenizer as ours
from data.text.batches import Rows, prepared
from data.text.hf_tokenizer import HFTokenizer
from data.text.pipeline import prepare_text
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.errors import UserError
from tests.data.chat import hf_examples
from tests.data.text.test_sentencepiece_tokenizer import AWKWARD, corpus, strings

KINDS = {
    "gpt2": hf_examples.gpt2,
    "llama3": hf_examples.llama3,
    "llama2": hf_examples.llama2,
    "gemma": lambda: hf_examples.llama2(prefix=False),
    "unigram": hf_examples.unigram,
    "word_piece": hf_examples.word_piece,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind -> (our tokenizer, that of `tokenizers`)."""
    path = tmp_path_factory.mktemp("made")
    both = {}
    for kind, make in KINDS.items():
        raw = make()
        both[kind] = HFTokenizer(hf_examples.folder(path / kind, raw)), raw
    return both


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("ours") / "tokenizer.model"
    return ours.train(corpus(), path, vocab_size=320, sample_bytes=1 << 18, seed=0, threads=2)


def texts(count=300):
    return [*strings(count), *AWKWARD, *hf_examples.SPECIAL, "a<think> b\n\n c</think>", "x" * 3000, ""]


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "gemma"])
def test_where_the_vocabulary_spells_every_byte_all_texts_come_back(made, kind):
    tokenizer, raw = made[kind]
    for text, ids in zip(texts(), tokenizer.encode_many(texts()), strict=True):
        if kind == "gemma" and "▁" in text:
            continue
        assert tokenizer.decode(ids) == text and tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.bytes_per_token[ids].sum() == len(text.encode())
        assert not set(ids.tolist()) & set(tokenizer.controls.values())
        assert ids.dtype == np.int32 and tokenizer.encode(text) == ids.tolist()
        if not any(symbol in text for symbol in tokenizer.controls):
            assert ids.tolist() == raw.encode(text, add_special_tokens=False).ids
            assert raw.decode(ids) == text
    assert tokenizer.vocab_size == len(tokenizer.bytes_per_token) == raw.get_vocab_size()


def test_a_space_put_before_a_text_is_seen(made):
    tokenizer, raw = made["llama2"]
    for text in filter(None, texts()):
        ids = tokenizer.encode(text)
        if "▁" not in text:
            assert tokenizer.decode(ids) == " " + text
            assert tokenizer.bytes_per_token[ids].sum() == 1 + len(text.encode())
        if not any(symbol in text for symbol in tokenizer.controls):
            assert raw.decode(ids) == tokenizer.decode(ids).removeprefix(" ")
    ids = tokenizer.encode("the model reads")
    assert tokenizer.decode(ids[1:]) == tokenizer.decode(ids)[len(tokenizer.decode(ids[:1])) :]  # a completion keeps its space


@pytest.mark.parametrize("kind", ["unigram", "word_piece"])
def test_other_kinds_decode_as_tokenizers_does(made, kind):
    tokenizer, raw = made[kind]
    for text in ("the model reads a row", "tokens def return 12 ):", "the"):
        ids = tokenizer.encode(text)
        assert ids == raw.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids).removeprefix(" ") == raw.decode(ids)
        assert tokenizer.bytes_per_token[ids].sum() == len(tokenizer.decode_bytes(ids))


def test_added_tokens(made):
    tokenizer, _ = made["gpt2"]
    think = tokenizer.encode("<think>")
    assert len(think) == 1 and tokenizer.bytes_per_token[think[0]] == len("<think>")
    assert tokenizer.controls == {symbol: i for i, symbol in enumerate(hf_examples.SPECIAL)}
    end = tokenizer.controls["<|im_end|>"]
    assert tokenizer.decode([end]) == "" and tokenizer.bytes_per_token[end] == 0
    assert tokenizer.decode(tokenizer.encode("🙂")[:-1]) == "\ufffd"
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside a vocabulary"):
            tokenizer.decode([bad])
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


# The files of a checkpoint -> bos, eos, pad, all that ends a completion, and what stands before the prompt.
EOT, START, END = 0, 1, 2
FILES = {
    "GPT-2: the model's config alone names them": (
        {"config": {"bos_token_id": 0, "eos_token_id": 0, "n_embd": 8}},
        (EOT, EOT, EOT, (EOT,), []),
    ),
    "Qwen: no token begins, and one is not what the model's config says": (
        {
            "tokenizer_config": {
                "bos_token": None,
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "add_bos_token": False,
            },
            "config": {"bos_token_id": 0, "eos_token_id": 0},
            "generation_config": {"eos_token_id": [2, 0]},
        },
        (None, END, EOT, (END, EOT), []),
    ),
    "Llama 3: several ends": (
        {
            "tokenizer_config": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
            "generation_config": {"bos_token_id": 1, "eos_token_id": [0, 2]},
        },
        (START, END, END, (END, EOT), None),
    ),
    "Gemma: tokens as objects": (
        {
            "tokenizer_config": {"add_bos_token": True, "bos_token": {"__type": "AddedToken", "content": "<|im_start|>"}},
            "special_tokens_map": {"eos_token": {"content": "<|endoftext|>"}, "pad_token": "<|im_end|>"},
        },
        (START, EOT, END, (EOT,), []),
    ),
    "nothing is named": ({}, (None, None, 0, (), [])),
}


@pytest.mark.parametrize("name", FILES)
def test_special_ids_come_from_the_files_beside(tmp_path, name):
    files, (bos, eos, pad, stops, before) = FILES[name]
    raw = hf_examples.llama3() if before is None else hf_examples.gpt2()
    tokenizer = HFTokenizer(hf_examples.folder(tmp_path / "hf", raw, **files))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.stop_ids) == (bos, eos, pad, stops)
    text = "the model <|im_end|>"
    assert tokenizer.prompt_ids(text) == [*([EOT] if before is None else before), *tokenizer.encode(text)]
    assert all(
        tokenizer.special_tokens[f"{role}_token"] == hf_examples.SPECIAL[i]
        for role, i in (("bos", bos), ("eos", eos))
        if i is not None
    )

    tokenizer.save(tmp_path / "copy")
    copy = load_tokenizer(tmp_path / "copy")
    assert copy.fingerprint == tokenizer.fingerprint
    assert (copy.bos_id, copy.eos_id, copy.pad_id, copy.stop_ids) == (bos, eos, pad, stops)
    assert not (tmp_path / "copy" / "config.json").exists()


@pytest.mark.parametrize("name", list(FILES)[1:4])
def test_prompts_are_those_of_transformers(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    files, (*_, before) = FILES[name]
    raw = hf_examples.llama3() if before is None else hf_examples.gpt2()
    path = hf_examples.folder(tmp_path, raw, **files)
    peer, tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path), HFTokenizer(path)
    for text in ("the model reads", " \n\n é", "<think>"):
        assert tokenizer.prompt_ids(text) == peer(text)["input_ids"]
    assert tokenizer.prompt_ids("<|im_end|>") == peer("<|im_end|>", split_special_tokens=True)["input_ids"]


def test_the_fingerprint_tells_tokenizers_and_their_ids_apart(tmp_path):
    def fingerprint(name, raw, **files):
        return HFTokenizer(hf_examples.folder(tmp_path / name, raw, **files)).fingerprint

    raw = hf_examples.gpt2()
    one = fingerprint("a", raw)
    assert one == fingerprint("b", raw)
    assert one != fingerprint("c", raw, tokenizer_config={"eos_token": "<|im_end|>"})
    assert one != fingerprint("d", hf_examples.llama3())


def test_a_file_that_cuts_and_fills_texts_does_not_here(tmp_path):
    raw = hf_examples.gpt2()
    raw.enable_truncation(3)
    raw.enable_padding(length=50)
    tokenizer = HFTokenizer(hf_examples.folder(tmp_path, raw))
    text = "the model reads a row of tokens"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_many([text, "a"])[1].size == 1 and tokenizer.prompt_ids("a") == tokenizer.encode("a")


def test_a_pattern_that_tries_too_long_costs_a_line(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HFTokenizer(tmp_path)
    assert tokenizer.encode("aab") == [0, 0, 1]
    for encode in (tokenizer.encode, tokenizer.prompt_ids, lambda text: tokenizer.encode_many(["b", text])):
        with pytest.raises(UserError, match="^tokenizer: .* fails on a text .*retry-limit-in-match"):
            encode("a" * 60 + "b")


def test_what_a_path_names(tmp_path, sentencepiece):
    hf = hf_examples.folder(tmp_path / "hf", hf_examples.gpt2())
    assert isinstance(load_tokenizer(hf), HFTokenizer)
    assert isinstance(load_tokenizer(hf / "tokenizer.json"), HFTokenizer)
    assert all(isinstance(each, Tokenizer) for each in (load_tokenizer(hf), sentencepiece))
    sentencepiece.save(tmp_path / "ours")
    for path in ("ours", "ours/tokenizer.model"):
        assert load_tokenizer(tmp_path / path).fingerprint == sentencepiece.fingerprint
    sentencepiece.save(hf)
    assert isinstance(load_tokenizer(hf), ours.SentencePieceTokenizer)  # of both, ours
    (hf / "tokenizer.model").write_bytes(foreign_model(tmp_path))
    assert isinstance(load_tokenizer(hf), HFTokenizer)


def foreign_model(folder):
    import sentencepiece

    folder.joinpath("text").write_text("\n".join(corpus()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "foreign"), vocab_size=100, model_type="bpe", minloglevel=2
    )
    return (folder / "foreign.model").read_bytes()


def test_a_foreign_sentencepiece_model_alone_is_refused_with_the_cure(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "tokenizer.model").write_bytes(foreign_model(tmp_path))
    with pytest.raises(UserError, match="^tokenizer: .*tokenizer.json beside it.*save_pretrained"):
        load_tokenizer(tmp_path / "hf")


@pytest.mark.parametrize(
    "content, words", [(None, "holds neither"), (b"{}", "no tokenizer.json that"), (b"\xff", "no tokenizer.json that")]
)
def test_what_is_no_tokenizer_is_said_in_a_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=f"^tokenizer: .*{words}") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_said(tmp_path):
    with pytest.raises(UserError, match="^tokenizer: cannot read .*no.json"):
        load_tokenizer(tmp_path / "no.json")
    hf_examples.folder(tmp_path, hf_examples.gpt2())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="^tokenizer: .*tokenizer_config.json is not JSON"):
        load_tokenizer(tmp_path)


def run_config(tmp_path, tokenizer):
    (tmp_path / "text").mkdir(exist_ok=True)
    for i, text in enumerate(corpus()):
        if i < 30:
            (tmp_path / "text" / f"{i}.txt").write_text(f"{i} {text}")
    config = tiny.get_config()
    config.update({"sequence_length": 64, "tokenizer": str(tokenizer)})
    config.data.update({"input": str(tmp_path / "text"), "valid_fraction": 0.1})
    config.model.vocab_size = 512
    return config


@pytest.mark.parametrize("form", ["folder", "tokenizer.json", "ours", "ours/tokenizer.model"])
def test_a_run_takes_any_tokenizer_and_keeps_what_it_needs(tmp_path, sentencepiece, form):
    sentencepiece.save(tmp_path / "ours")
    hf_examples.folder(tmp_path / "folder", hf_examples.gpt2(), config={"eos_token_id": 2, "model_type": "gpt2"})
    path = tmp_path / {"tokenizer.json": "folder/tokenizer.json"}.get(form, form)
    config, workdir = run_config(tmp_path, path), tmp_path / "run"
    tokenizer, folder, _ = prepare_text(config, workdir)
    ((name, counts),) = prepared(folder)["sources"].items()
    sizes = sum(file.stat().st_size for file in (tmp_path / "text").iterdir())
    assert counts["train"]["bytes"] + counts["valid"]["bytes"] == sizes
    assert tokenizer.fingerprint == load_tokenizer(workdir).fingerprint == load_tokenizer(path).fingerprint
    rows = Rows(folder, name, "train")
    read = rows.read(range(len(rows)))
    begin = tokenizer.bos_id if "ours" in form else 2  # without a begin token, the end token stands there
    assert read["tokens"][0, 0] in (begin, *range(len(tokenizer.controls), tokenizer.vocab_size))
    assert begin in read["tokens"][read["positions"] == 0]

    again, same, _ = prepare_text(config, workdir)  # what stands is taken, and another tokenizer refused
    assert (again.fingerprint, same) == (tokenizer.fingerprint, folder)
    config.tokenizer = str(tmp_path / ("folder" if "ours" in form else "ours"))
    with pytest.raises(UserError, match="^tokenizer: .*another --workdir"):
        prepare_text(config, workdir)


def test_a_tokenizer_without_an_end_or_with_too_many_ids_trains_nothing(tmp_path):
    hf = hf_examples.folder(tmp_path / "hf", hf_examples.gpt2())
    with pytest.raises(UserError, match="^tokenizer: .*eos_token"):
        prepare_text(run_config(tmp_path, hf), tmp_path / "run")
    config = run_config(tmp_path, hf)
    config.model.vocab_size = 300
    with pytest.raises(UserError, match="^tokenizer: .*model.vocab_size=300"):
        prepare_text(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ids_with_a_gap_leave_it_empty(tmp_path):
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = HFTokenizer(hf_examples.folder(tmp_path, raw))
    assert tokenizer.vocab_size == 6 and tokenizer.decode([0, 3, 5]) == " a b"


def test_a_named_template_and_the_default_one(tmp_path):
    raw = hf_examples.gpt2()
    listed = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    for i, (config, template) in enumerate([({}, None), ({"chat_template": "C"}, "C"), ({"chat_template": listed}, "D")]):
        path = hf_examples.folder(tmp_path / str(i), raw, tokenizer_config=config)
        assert HFTokenizer(path).chat_template == template
    (path / "chat_template.jinja").write_text("J")
    HFTokenizer(path).save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").chat_template == "J"
    assert json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text()) == {"chat_template": listed}


@pytest.mark.slow  # it depends on the clock
@pytest.mark.parametrize("name", ["encode", "prompt_ids", "encode_spans", "encode_rendered"])
def test_other_threads_run_while_a_text_is_encoded(made, name):
    tokenizer, ticks, over = made["gpt2"][0], [0], threading.Event()
    encode = getattr(tokenizer, name)
    encode("a")

    def tick():
        while not over.wait(0.001):
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    begin = ticks[0]
    encode("the cat and the hat " * 5_000)
    count = ticks[0] - begin
    over.set()
    thread.join()
    assert count > 3
