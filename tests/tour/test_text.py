"""The tour's text: the library's rules, near duplicates and packed rows; batches; texts that come back from the tokenizer."""

import re

import numpy as np
import pytest

from configs.curate import default
from data.dedup import near
from data.filters.heuristics.gopher import gopher_quality, gopher_repetition
from data.filters.words import Words
from data.text.batches import layout
from data.text.packing import Counts, Packer
from tests.data.dedup.corpus import edited, prose
from tour import text

# What the tour leaves out: it splits words plainly, the library as spaCy does, so shares of punctuation differ.
LEFT_OUT = re.compile("paragraph|gram|letter_words")


@pytest.fixture(scope="module")
def documents():
    """A thousand documents: prose of the language reference, near copies of it, and prose that breaks each of the rules."""
    pieces = prose()
    broken = [
        lambda text: " ".join(text.split()[:30]),  # few words
        lambda text: " ".join(word * 3 for word in re.findall(r"[a-z]{4,}", text)),  # long words
        lambda text: " ".join(f"{word} #" if i % 4 == 0 else word for i, word in enumerate(text.split())),
        lambda text: " ".join(f"{word} ..." if i % 4 == 0 else word for i, word in enumerate(text.split())),
        lambda text: "\n".join(f"- {line}" for line in text.splitlines()),
        lambda text: "\n".join(f"{line} ..." for line in text.splitlines()),
        lambda text: "\n".join([*text.splitlines(), *text.splitlines()]),
        lambda text: " ".join(re.findall(r"[A-Z]\w+", text) * 9),  # no stop words
    ]
    worse = [change(pieces[i]) for change in broken for i in range(0, 240, 3)]
    copies = [edited(pieces[i], 0.02, i) for i in range(100)]
    return (pieces[:300] + worse + copies + pieces[300:])[:1000]


def kept_by_the_library(documents, folder):
    rules: dict = {}
    config = default.get_config()
    default.gopher_quality(config.rules)
    default.gopher_repetition(config.rules)
    names = [name for name in config.rules if LEFT_OUT.search(name) is None]
    rules = {name: config.rules[name] for name in names}
    columns = gopher_quality(Words(documents)) | gopher_repetition(Words(documents))
    good = np.all([(columns[n] >= least) & (columns[n] <= most) for n, (least, most) in rules.items()], axis=0)
    assert set(rules) == {name for name in columns if LEFT_OUT.search(name) is None}
    some = [document for document, is_good in zip(documents, good) if is_good]
    with near.new_part(folder / "part") as part:
        part.add(some, range(len(some)))
    near.find([folder / "part"], folder / "clusters")
    keep = near.columns(range(len(some)), folder / "clusters")["near_duplicate_keep"]
    return some, [document for document, stays in zip(some, keep) if stays]


def test_kept_documents_are_those_of_the_library(documents, tmp_path):
    assert len(documents) == 1000 and len(set(documents)) > 900
    expected_good, expected = kept_by_the_library(documents, tmp_path)
    good = [document for document in documents if text.is_good(document)]
    assert good == expected_good
    assert 200 < len(expected) < len(expected_good) - 50 < 800
    assert text.without_near_duplicates(good) == expected


@pytest.mark.parametrize("length", [16, 64])
def test_rows_are_those_of_the_library(length):
    rng = np.random.default_rng(0)
    documents = [rng.integers(4, 999, rng.integers(0, 90)) for _ in range(300)]
    packer = Packer(Counts(), sequence_length=length, vocab_size=1000, bos_id=2, eos_id=1, pad_id=0)
    expected = [row for document in documents for row in packer.add(document)] + list(packer.finish())
    rows = text.pack([document.tolist() for document in documents], length)
    assert len(rows) == len(expected)
    tokens = np.stack([row["tokens"] for row in expected]).astype(np.int32)
    segments, positions = layout(np.stack([row["joined"] for row in expected]), length + 1)
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    for n in range(30):
        ids = text.shuffled(range(len(rows)), n, 8)
        batch = text.batch_of_rows(text.shuffled(rows, n, 8), length)
        np.testing.assert_array_equal(batch["tokens"], tokens[ids, :-1])
        np.testing.assert_array_equal(batch["targets"], tokens[ids, 1:])
        np.testing.assert_array_equal(batch["segment_ids"], segments[ids, :-1])
        np.testing.assert_array_equal(batch["positions"], positions[ids, :-1])
        np.testing.assert_array_equal(batch["weights"], same[ids])


def test_each_epoch_has_every_row_once_in_another_order():
    ids = [i for n in range(6) for i in text.shuffled(range(12), n, 4, seed=1)]
    assert sorted(ids[:12]) == sorted(ids[12:]) == list(range(12)) and ids[:12] != ids[12:]


def test_texts_come_back_from_the_tokenizer():
    some = ["Some text.\n\n  With  spaces, 123 and ä.", "Other text.\tWith tabs, and <|end|>."] * 20
    tokenizer = text.train_tokenizer(some, 300)
    for document in [*some[:2], "ß ✓ \x00"]:
        ids = tokenizer.encode(document)
        assert tokenizer.decode(ids) == document
        assert tokenizer.piece_to_id(text.END) not in ids
