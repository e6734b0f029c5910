"""What leaves as tokenizer.json gives our ids for every text, also in transformers; what comes in stays whole."""

import functools
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from data.chat.template import CHAT_TEMPLATE, encode_chat, render
from data.text.hf_tokenizer import HFTokenizer
from data.text.sentencepiece_tokenizer import CONTROLS, ROLES, SPACE, SentencePieceTokenizer, train
from data.text.tokenizer import load_tokenizer
from lm.convert.tokenizer_files import export_tokenizer, import_tokenizer
from lm.errors import UserError
from tests.data.chat import hf_examples
from tests.data.text.test_sentencepiece_tokenizer import AWKWARD, corpus, strings
from tests.slow import all_but


def code() -> list[str]:
    """Real text: some of the standard library, which is not the same on every machine and is never compared with a constant."""
    return [path.read_text(errors="replace") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:40]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """pair(name), of small and of real vocabularies: ours, and what it is exported as, read back from its file."""
    path = tmp_path_factory.mktemp("tokenizers")
    wide = ["日本語のテキスト ünïcödé e\u0301 🙂‍🔥 " + chr(0x4E00 + i % 90) * (i % 7) for i in range(500)]
    texts = {
        "words": (corpus, 420),
        "code": (code, 4096),
        "scripts": (lambda: wide, 600),
        "runs": (lambda: runs(300, 5), 800),
        "no space": (lambda: ["abcabd" * 20, "bcd" * 9], 300),
    }

    @functools.cache
    def made(name: str) -> tuple[SentencePieceTokenizer, tokenizers.Tokenizer]:
        text, vocab_size = texts[name]
        ours = train(text(), path / f"{name}.model", vocab_size=vocab_size, sample_bytes=1 << 20, seed=0, threads=2)
        export_tokenizer(ours, path / name)
        return ours, tokenizers.Tokenizer.from_file(str(path / name / "tokenizer.json"))

    return made


def runs(count, seed):
    """Texts that repeat themselves, where the order of equal merges decides."""
    random = np.random.default_rng(seed)
    units = ["a", "b", "ab", "aba", " ", "-", "=", "\n", "\t", "ba ", "  a", "aab"]
    for _ in range(count):
        lengths = random.integers(1, 24, 12)
        yield "".join(unit * int(n) for unit, n in zip(random.choice(units, 12), lengths))


def without_symbols(texts) -> list[str]:
    """The texts with every control symbol in them misspelt."""
    texts = list(texts)
    for symbol in CONTROLS:
        texts = [text.replace(symbol, "·" + symbol[1:]) for text in texts]
    return texts


def pieces(tokenizer, count, seed):
    """Texts glued from the vocabulary's own pieces."""
    random = np.random.default_rng(seed)
    spelled = [tokenizer.decode([i]) for i in range(len(CONTROLS), tokenizer.vocab_size)]
    for _ in range(count):
        yield "".join(spelled[i] for i in random.integers(0, len(spelled), random.integers(1, 40)))


@pytest.mark.parametrize("name", all_but(["scripts", "runs"], ["words", "code", "scripts", "runs", "no space"]))
def test_ids_are_equal_for_every_text(pair, name):
    """10,000 texts over all vocabularies: any code point, runs, NUL, ▁, control characters, code, the vocabulary's pieces."""
    ours, fast = pair(name)
    texts = [*strings(1200), *AWKWARD, *runs(400, 1), *pieces(ours, 400, 2), " " * 999, "x" * 9999, SPACE * 99, ""]
    texts += [text[:20_000] for text in code()[:10]]
    texts = without_symbols(texts)
    assert len(texts) > 2000
    theirs = [encoding.ids for encoding in fast.encode_batch(texts, add_special_tokens=False)]
    for text, ids, their_ids in zip(texts, ours.encode_many(texts), theirs, strict=True):
        assert ids.tolist() == their_ids, text
    assert fast.decode_batch(theirs) == texts


def test_one_pair_a_piece_is_enough_and_in_order(pair):
    ours, fast = pair("code")
    merges = json.loads(fast.to_str())["model"]["merges"]
    joined = [a + b for a, b in merges]
    assert len(set(joined)) == len(joined) > 3000
    rank = {piece: -score for _, piece, score in ours.pieces() if score is not None}
    assert [rank[piece] for piece in joined] == sorted(rank[piece] for piece in joined)


def test_a_control_symbol_in_a_text_is_a_symbol_there_unless_told_otherwise(pair):
    ours, fast = pair("words")
    text = "a <|user|></s> b"
    assert fast.encode(text, add_special_tokens=False).ids == [
        *ours.encode("a "),
        ours.controls["<|user|>"],
        ours.eos_id,
        *ours.encode(" b"),
    ]
    copy = tokenizers.Tokenizer.from_str(fast.to_str())
    copy.encode_special_tokens = True
    assert copy.encode(text, add_special_tokens=False).ids == ours.encode(text)


def test_the_files(pair, tmp_path):
    ours, _ = pair("words")
    export_tokenizer(ours, tmp_path / "deep" / "out", max_length=64)
    out = tmp_path / "deep" / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    assert (out / "tokenizer.model").read_bytes() == ours.model
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHAT_TEMPLATE and config["model_max_length"] == 64
    assert config["clean_up_tokenization_spaces"] is False
    assert load_tokenizer(out).fingerprint == ours.fingerprint
    hf = HFTokenizer(out)  # its own twin
    assert (hf.bos_id, hf.eos_id, hf.pad_id, hf.unk_id, hf.stop_ids) == (2, 1, 0, 3, (1,))
    assert hf.controls == ours.controls and hf.special_tokens == ours.special_tokens
    np.testing.assert_array_equal(hf.bytes_per_token, ours.bytes_per_token)
    talk = [{"role": "user", "content": "the <|end|> é"}, {"role": "assistant", "content": "model▁ 🙂"}]
    assert encode_chat(hf, talk) == encode_chat(ours, talk)
    for text in (*strings(300), *AWKWARD):
        assert hf.encode(text) == ours.encode(text) and hf.prompt_ids(text) == ours.prompt_ids(text)
        assert hf.decode(ours.encode(text)) == text
        assert hf.encode_spans(text)[0] == ours.encode_spans(text)[0]


@pytest.mark.parametrize("model_type", [None, "llama", "mistral", "gemma3_text", "qwen3", "deepseek_v3"])
def test_transformers_reads_the_folder(pair, tmp_path, model_type):
    auto = pytest.importorskip("transformers").AutoTokenizer
    ours, _ = pair("words")
    export_tokenizer(ours, tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = auto.from_pretrained(tmp_path)
    texts = without_symbols([*(text[:200] for text in strings(100)), *AWKWARD, "a , b . don 't"])
    batch = theirs(texts, padding=True)
    for text, ids, mask in zip(texts, batch["input_ids"], batch["attention_mask"], strict=True):
        assert [i for i, real in zip(ids, mask) if real] == ours.prompt_ids(text)
        assert ids[: len(ids) - sum(mask)] == [ours.pad_id] * (len(ids) - sum(mask))
    assert theirs.batch_decode(batch["input_ids"], skip_special_tokens=True) == texts
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (2, 1, 0, 3)
    for text in CONTROLS:
        assert theirs(text, split_special_tokens=True)["input_ids"] == ours.prompt_ids(text)
    contents = {"system": " a ", "user": "é\n", "assistant": "the model"}
    talk = [{"role": role, "content": content} for role, content in contents.items()]
    assert theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) == render(talk, None, True)
    chat = theirs.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    assert (chat["input_ids"], [bool(bit) for bit in chat["assistant_masks"]]) == encode_chat(ours, talk)
    assert set(theirs.all_special_tokens) >= {*ROLES}


def test_a_published_tokenizer_comes_in_and_leaves_as_it_was(tmp_path):
    files = {
        "tokenizer_config": {"eos_token": "<|im_end|>", "chat_template": "{{ x }}"},
        "special_tokens_map": {"x": 1},
        "generation_config": {"eos_token_id": [2, 0], "top_p": 0.9},
        "config": {"model_type": "gpt2", "bos_token_id": 0},
    }
    hf = hf_examples.folder(tmp_path / "hf", hf_examples.gpt2(), **files)
    (hf / "chat_template.jinja").write_text("{{ y }}\n")
    import_tokenizer(hf, tmp_path / "run")
    tokenizer = load_tokenizer(tmp_path / "run")
    assert (tokenizer.bos_id, tokenizer.stop_ids, tokenizer.pad_id) == (0, (2, 0), 2)
    assert tokenizer.fingerprint == load_tokenizer(hf).fingerprint and tokenizer.chat_template == "{{ y }}\n"
    export_tokenizer(tokenizer, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "run" / name).read_bytes() == (hf / name).read_bytes()
    generation = json.loads((tmp_path / "run" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": [2, 0], "top_p": 0.9}
    assert not (tmp_path / "run" / "config.json").exists() and not (tmp_path / "run" / "tokenizer.model").exists()


def test_our_own_export_comes_in_again(pair, tmp_path):
    ours, _ = pair("words")
    export_tokenizer(ours, tmp_path / "out")
    import_tokenizer(tmp_path / "out", tmp_path / "run")
    assert load_tokenizer(tmp_path / "run").fingerprint == ours.fingerprint


def test_a_checkpoint_without_a_tokenizer_leaves_the_ids_of_its_model(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"bos_token_id": 7, "eos_token_id": 8, "pad_token_id": null}')
    import_tokenizer(tmp_path / "hf", tmp_path / "run")
    ids = json.loads((tmp_path / "run" / "generation_config.json").read_text())
    assert (ids["bos_token_id"], ids["eos_token_id"]) == (7, 8)
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"something else")
    with pytest.raises(UserError, match="tokenizer.json"):
        import_tokenizer(tmp_path / "hf", tmp_path / "other")
    assert not (tmp_path / "other").exists()
