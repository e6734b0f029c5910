"""A grown tokenizer keeps every id, cuts texts into fewer pieces, and gives them back byte for byte."""

import collections
import json

import pytest
import tokenizers

from data.text import sentencepiece_tokenizer as ours
from data.text.grow import MIN, extends, grow, learn_merges, old_pieces
from data.text.hf_tokenizer import HFTokenizer
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.errors import UserError
from tests.data.chat import hf_examples
from tests.data.text.test_sentencepiece_tokenizer import AWKWARD, corpus, strings

DOMAIN = ["The licensee warrants the Licensed Software, v2.0.\n", "  Licensed software:\tlicensee's licences 42 42\n"] * 20
KINDS = {"gpt2": hf_examples.gpt2, "llama3": hf_examples.llama3, "llama2": hf_examples.llama2}


@pytest.fixture(scope="module", params=["ours", *KINDS])
def old(request, tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("old")
    if request.param == "ours":
        return ours.train(corpus(), path / "tokenizer.model", vocab_size=320, sample_bytes=1 << 18, seed=0, threads=2)
    return HFTokenizer(hf_examples.folder(path, KINDS[request.param]()))


@pytest.fixture(scope="module")
def grown(old, tmp_path_factory) -> Tokenizer:
    return grow(old, DOMAIN, 40, tmp_path_factory.mktemp("grown"))


def test_old_ids_stay_and_new_ones_join_old_pieces(old, grown):
    assert old.vocab_size < grown.vocab_size <= old.vocab_size + 40
    assert grown.controls == old.controls and grown.stop_ids == old.stop_ids and grown.chat_template == old.chat_template
    assert [grown.decode_bytes([i]) for i in range(old.vocab_size)] == [old.decode_bytes([i]) for i in range(old.vocab_size)]
    parts = old_pieces(grown, old)
    assert len(parts) == grown.vocab_size - old.vocab_size
    for n, ids in enumerate(parts):
        assert len(ids) > 1 and old.decode_bytes(ids) == grown.decode_bytes([old.vocab_size + n])


def test_texts_have_fewer_pieces_and_the_same_bytes(old, grown):
    parts = old_pieces(grown, old)
    for text in [*DOMAIN[:2], *strings(200), *AWKWARD, "", "licensee" * 50, "x<s>licensee"]:
        before, after = old.encode(text), grown.encode(text)
        apart = [i for id_ in after for i in (parts[id_ - old.vocab_size] if id_ >= old.vocab_size else [id_])]
        assert old.decode_bytes(apart) == old.decode_bytes(before) and len(after) <= len(before)
        assert grown.encode_many([text])[0].tolist() == after
    assert sum(map(len, map(grown.encode, DOMAIN))) < 0.75 * sum(map(len, map(old.encode, DOMAIN)))


def test_a_saved_tokenizer_can_be_loaded_and_grown_again(old, grown, tmp_path):
    grown.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == grown.fingerprint and loaded.encode(DOMAIN[0]) == grown.encode(DOMAIN[0])
    (tmp_path / "more").mkdir()
    more = grow(loaded, ["the warranty of the warrantor\n"] * 9, 5, tmp_path / "more")
    assert extends(more, grown) and extends(more, old) and not extends(old, grown) and more.vocab_size > grown.vocab_size
    with pytest.raises(UserError, match="not that of init_from"):
        old_pieces(old, grown)


def test_digits_and_words_stay_apart_in_our_tokenizer(tmp_path):
    tokenizer = ours.train(corpus(), tmp_path / "t.model", vocab_size=320, sample_bytes=1 << 18, seed=0, threads=2)
    grown = grow(tokenizer, ["in 2024, in 2024; the end"] * 50, 100, tmp_path)
    for piece in (grown.decode([i]) for i in range(tokenizer.vocab_size, grown.vocab_size)):
        assert not any(c.isdecimal() for c in piece) and " " not in piece.lstrip(" ")


@pytest.mark.parametrize("seed", range(5))
def test_merges_are_those_of_counting_all_pairs_again_each_time(seed):
    draw = ours.random.Random(seed)
    words = collections.Counter({tuple(draw.choices("abcd", k=draw.randint(1, 9))): draw.randint(1, 9) for _ in range(30)})

    def joins(a, b):
        return len(a + b) <= 6 and a + b != "ab"

    def slowly(words, most):
        merges, words = [], dict(words)
        while len(merges) < most:
            counts = collections.Counter()
            for word, number in words.items():
                for pair in zip(word, word[1:]):
                    counts[pair] += number if joins(*pair) else 0
            best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
            if best is None or counts[best] < MIN:
                break
            merges.append(best)
            joined = collections.Counter()
            for word, number in words.items():
                pieces, i = [], 0
                while i < len(word):
                    both = word[i : i + 2] == best
                    pieces.append("".join(word[i : i + 2]) if both else word[i])
                    i += 2 if both else 1
                joined[tuple(pieces)] += number
            words = joined
        return merges

    assert learn_merges(words, 25, joins) == slowly(words, 25)


@pytest.mark.parametrize("kind", ["unigram", "word_piece"])
def test_other_tokenizers_are_refused(kind, tmp_path):
    (tmp_path / "new").mkdir()
    old = HFTokenizer(hf_examples.folder(tmp_path / "old", getattr(hf_examples, kind)()))
    with pytest.raises(UserError, match="only a byte-pair"):
        grow(old, DOMAIN, 5, tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_transformers_reads_the_grown_file_with_the_same_ids(old, grown, tmp_path):
    if isinstance(old, ours.SentencePieceTokenizer):
        pytest.skip("its export is that of any tokenizer.model")
    raw = tokenizers.Tokenizer.from_str(json.dumps(json.loads(grown.json)))
    for text in DOMAIN[:2]:
        assert raw.encode(text, add_special_tokens=False).ids == grown.encode(text)
