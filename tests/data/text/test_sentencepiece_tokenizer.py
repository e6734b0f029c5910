"""The tokenizer gives back every text, byte for byte, and text never becomes a control symbol."""

import numpy as np
import pytest

from data.text import sentencepiece_tokenizer as tokens
from data.text.sentencepiece_tokenizer import CONTROLS, SentencePieceTokenizer, sample, train
from lm.errors import UserError

WORDS = ["the", "model", "reads", "a", "row", "of", "tokens", "def", "return", "12", "345", "x", "=", "(", "):", "."]
AWKWARD = [
    "▁",
    "▁▁ ▁",
    "\0",
    "\t\t",
    "\r\n",
    "  ",
    "   x  ",
    "e\u0301",
    "𝒳",
    "🙂‍🔥",
    "\ufffd",
    "\u2047",
    "\u2585",
    "\x7f",
    "<0x41>",
    "0123456789",
    "\u200b",
    "日本語",
    "\u0600",
    "\U0010ffff",
    "\n    ",
    "\u2028",
    *CONTROLS,
]


def corpus():
    random = np.random.default_rng(0)
    for _ in range(300):
        yield "\n".join("    " * random.integers(3) + " ".join(random.choice(WORDS, 12)) for _ in range(20))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train(corpus(), path, vocab_size=420, sample_bytes=1 << 20, seed=0, threads=2)


def strings(count):
    """Random texts of many kinds: words, awkward pieces, any code point, runs of spaces, long without a space."""
    random = np.random.default_rng(1)
    for i in range(count):
        n = int(random.integers(0, 40))
        if i % 4 == 0:
            yield " ".join(random.choice(WORDS, n))
        elif i % 4 == 1:
            yield "".join(random.choice(AWKWARD, n))
        elif i % 4 == 2:
            codes = [c for c in random.integers(0, 0x110000, n) if not 0xD800 <= c < 0xE000]
            yield "".join(map(chr, codes))
        else:
            runs = random.choice([" ", "a", "\n", "é", "▁"], n)
            yield "".join(str(run) * int(length) for run, length in zip(runs, random.integers(1, 300, n), strict=True))


def test_every_text_comes_back_byte_for_byte(tokenizer):
    texts = list(strings(800)) + AWKWARD + ["", "x" * 100_000, " " * 5000, "a b" * 5000]
    for text, ids in zip(texts, tokenizer.encode_many(texts), strict=True):
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.decode(ids) == text
        assert tokenizer.bytes_per_token[ids].sum() == len(text.encode())
        assert ids.size == 0 or ids.min() >= len(CONTROLS)


def test_many_is_one_at_a_time_and_cutting_changes_no_id(tokenizer):
    texts = list(strings(400)) + ["word " * 2000, "  ab" * 3000]
    for text, ids in zip(texts, tokenizer.encode_many(texts, threads=2), strict=True):
        assert ids.dtype == np.int32
        assert tokenizer.encode(text) == ids.tolist()
        if "▁" not in text:
            assert ids.tolist() == tokenizer._pieces.encode(text)  # the slow twin: the whole text at once


def test_merges_are_learnt_and_digits_stand_alone(tokenizer):
    assert len(tokenizer.encode("the model reads a row of tokens")) <= 7
    assert len(tokenizer.encode("        ")) < 4
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("x = 12345")]
    assert pieces[-5:] == list("12345")


@pytest.mark.parametrize("symbol", CONTROLS)
def test_a_control_symbol_spelled_in_text_is_text(tokenizer, symbol):
    i = tokenizer.controls[symbol]
    assert i not in tokenizer.encode(f"a {symbol}{symbol} b")
    assert tokenizer.decode([i]) == "" and tokenizer.bytes_per_token[i] == 0


def test_ids_of_the_controls(tokenizer):
    assert [tokenizer.controls[s] for s in ("<pad>", "</s>", "<s>", "<unk>")] == [0, 1, 2, 3]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (0, 1, 2, 3)


def test_decoding_broken_and_impossible_ids(tokenizer):
    ids = tokenizer.encode("🙂")
    assert tokenizer.decode(ids[:-1]) == "\ufffd"
    assert tokenizer.decode([]) == ""
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside a vocabulary"):
            tokenizer.decode([bad])


def test_a_lone_surrogate_becomes_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_training_is_deterministic_and_leaves_one_file(tmp_path, tokenizer):
    again = train(corpus(), tmp_path / "new" / "t.model", vocab_size=420, sample_bytes=1 << 20, seed=0, threads=1)
    assert again.fingerprint == SentencePieceTokenizer(tmp_path / "new" / "t.model").fingerprint
    assert again.encode("the model reads") == tokenizer.encode("the model reads")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["t.model"]


@pytest.mark.parametrize("vocab_size", [273, 274, 280, 300])
def test_tiny_vocabularies_work_on_many_characters(tmp_path, vocab_size):
    texts = ["日本語のテキスト ünïcödé " + chr(0x4E00 + i) * 3 + " plain words" for i in range(500)]
    small = train(texts, tmp_path / "t", vocab_size=vocab_size, sample_bytes=1 << 20, seed=0, threads=1)
    assert small.vocab_size <= vocab_size
    assert small.decode(small.encode(texts[7])) == texts[7]
    few_spaces = train(["aaab^]-\\ c"] * 9, tmp_path / "t", vocab_size=vocab_size, sample_bytes=999, seed=0, threads=1)
    assert few_spaces.vocab_size <= vocab_size


def test_a_vocabulary_too_small_names_the_key_and_the_least(tmp_path):
    with pytest.raises(UserError, match="model.vocab_size=272 .* least is 273"):
        train(corpus(), tmp_path / "t", vocab_size=272, sample_bytes=1000, seed=0, threads=1)
    assert not list(tmp_path.iterdir())


def test_a_poor_text_gives_fewer_ids_and_no_text_is_an_error(tmp_path):
    poor = train(["hello hello"], tmp_path / "t", vocab_size=8192, sample_bytes=1000, seed=0, threads=1)
    assert poor.vocab_size < 300 and poor.decode(poor.encode("hello, world")) == "hello, world"
    for texts in ([], [""], ["\0"]):
        with pytest.raises(UserError, match="data.input"):
            train(texts, tmp_path / "none", vocab_size=300, sample_bytes=1000, seed=0, threads=1)


@pytest.mark.parametrize("vocab_size", [273, 280, 400])
def test_a_text_without_a_space_still_gives_a_piece_for_it(tmp_path, vocab_size):
    """SentencePiece would spell a space that is no piece as `▁`."""
    texts = ["日本語のテキスト", "abcabc"] * 9
    dense = train(texts, tmp_path / "t", vocab_size=vocab_size, sample_bytes=1000, seed=0, threads=1)
    for text in (" ", "a b▁  ▁", "日本 語"):
        assert dense.decode(dense.encode(text)) == text


def test_a_prompt_begins_a_document_and_its_end_stops(tokenizer):
    assert tokenizer.prompt_ids("the model") == [tokenizer.bos_id, *tokenizer.encode("the model")]
    assert tokenizer.stop_ids == (tokenizer.eos_id,)


def test_spans_are_the_characters_of_each_id(tokenizer):
    for text in (*strings(200), *AWKWARD, "a\ud800b"):
        ids, spans = tokenizer.encode_spans(text)
        assert ids == tokenizer.encode(text)
        scrubbed = tokens.scrub(text)
        for i, (begin, end) in zip(ids, spans, strict=True):
            assert tokenizer.decode_bytes([i]) in scrubbed[begin:end].encode() and end > begin
        assert sorted({c for begin, end in spans for c in range(begin, end)}) == list(range(len(text)))


def test_a_file_that_is_no_tokenizer_is_a_user_error(tmp_path):
    (tmp_path / "junk").write_bytes(b"not a model at all" * 9)
    (tmp_path / "empty").write_bytes(b"")
    for name in ("junk", "empty", "missing", "."):
        with pytest.raises(UserError, match="^tokenizer: ") as caught:
            SentencePieceTokenizer(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_the_sample_is_bounded_uniform_and_repeatable():
    lines = [f"line {i} of the text\n" * 20 for i in range(2000)]
    taken = sample(lines, 50_000, seed=3)
    assert 45_000 < sum(len(chunk) for chunk in taken) <= 50_000
    assert taken == sample(lines, 50_000, seed=3) != sample(lines, 50_000, seed=4)
    places = np.asarray([int(chunk.split()[1]) for chunk in taken])
    assert (np.diff(places) > 0).all() and 800 < places.mean() < 1200
    assert "".join(sample(lines, 10_000_000, seed=3)) == "".join(lines)


def test_chunks_end_at_line_ends_and_lose_nothing():
    text = "\n".join("word " * 30 for _ in range(200)) + "x" * 10_000
    chunks = list(tokens._chunks(text))
    assert "".join(chunks) == text and max(map(len, chunks)) <= tokens.CHUNK
    assert chunks[0].endswith("\n")
