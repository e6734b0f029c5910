"""A prepared dataset holds every kept document once, and is there as a whole or not at all."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from data.sources.source import Document, Source
from data.text.batches import Rows, TextBatches, prepared
from data.text.dataset import beginnings, prepare
from data.text.sentencepiece_tokenizer import train
from lm.errors import UserError

T = 32


@dataclasses.dataclass
class Stats:
    documents: int = 0


class Survey:
    """Stands in for data.text.split.Survey: every seventh document is validation, unless told otherwise."""

    def __init__(self, every=7):
        self.stats, self.every = {}, every

    def documents(self, source):
        self.stats[source.name] = Stats()
        for i, document in enumerate(source.read()):
            self.stats[source.name].documents += 1
            yield document, "valid" if self.every and i % self.every == 0 else "train"

    def encoded(self, source, tokenizer, processes=None):
        for document, split in self.documents(source):
            yield split, np.asarray(tokenizer.encode(document.text)), len(document.text.encode())


def texts(name, count):
    random = np.random.default_rng(len(name))
    return [f"{name} {i}: " + "some words, é and ▁ 日本 " * int(random.integers(0, 12)) for i in range(count)]


def source(name, count):
    return Source(name, lambda: (Document(f"{name}-{i}", text, name) for i, text in enumerate(texts(name, count))))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train(texts("code", 200), path, vocab_size=400, sample_bytes=1 << 20, seed=0, threads=1)


def documents_in(folder, name, split, tokenizer):
    """All texts of a split, put together again from its rows."""
    rows = Rows(folder, name, split)
    read = rows.read(range(len(rows)))
    heads, rest = [], []
    assert read["tokens"].shape == read["segment_ids"].shape == read["positions"].shape == (len(rows), T + 1)
    assert read["tokens"].dtype == np.uint16
    for tokens, segments in zip(read["tokens"], read["segment_ids"]):
        for segment in range(1, int(segments.max()) + 1):
            piece = tokens[segments == segment].tolist()
            (heads if piece[0] == tokenizer.bos_id else rest).append(piece)
    return heads, rest


def test_every_document_is_in_its_split_once(tmp_path, tokenizer, capfd):
    seen = []
    statistics = prepare(
        tmp_path / "set",
        [source("code", 150), source("docs", 40)],
        tokenizer,
        sequence_length=T,
        survey=Survey(),
        progress=lambda name, size: seen.append((name, size)),
    )
    assert statistics == prepared(tmp_path / "set")
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["dataset.json", "packed_text"]
    assert (statistics["sequence_length"], statistics["vocab_size"]) == (T, tokenizer.vocab_size)
    assert statistics["tokenizer"] == tokenizer.fingerprint
    for name, count in (("code", 150), ("docs", 40)):
        counts = statistics["sources"][name]
        assert counts["survey"] == {"documents": count}
        assert (name, counts["train"]["bytes"] + counts["valid"]["bytes"]) in seen
        for split in ("train", "valid"):
            wanted = [t for i, t in enumerate(texts(name, count)) if (i % 7 == 0) == (split == "valid")]
            heads, rest = documents_in(tmp_path / "set", name, split, tokenizer)
            assert counts[split]["rows"] == len(Rows(tmp_path / "set", name, split))
            assert counts[split]["documents"] == len(wanted) == len(heads)
            assert counts[split]["bytes"] == sum(len(text.encode()) for text in wanted)
            targets = sum(len(tokenizer.encode(text)) + 1 for text in wanted)
            assert counts[split]["tokens_in"] == counts[split]["tokens_packed"] == targets
            assert counts[split]["tokens_padded"] == counts[split]["rows"] * (T + 1) - sum(map(len, heads + rest))
            # Documents that fit a row can be read back as they were; of the others every target is there.
            short = sorted(text for text in wanted if len(tokenizer.encode(text)) <= T - 1)
            assert sorted(tokenizer.decode(h) for h in heads if h[-1] == tokenizer.eos_id) == short
            found = sorted(token for piece in heads + rest for token in piece[1:])
            assert found == sorted(t for text in wanted for t in tokenizer.encode(text) + [tokenizer.eos_id])


def version_1():
    """The builder of version 1.0.0, whose rows held segments and positions."""

    class PackedText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos, pkg_dir_path = None, Path(__file__).parent

        def __init__(self, *, rows, **kwargs):
            self._rows = rows
            super().__init__(file_format=tfds.core.FileFormat.ARRAY_RECORD, **kwargs)

        def _info(self):
            features = {
                name: tfds.features.Tensor(shape=(T + 1,), dtype=np.uint16, encoding=tfds.features.Encoding.BYTES)
                for name in ("tokens", "segment_ids", "positions")
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in self._rows.items()}

        def _generate_examples(self, rows):
            for key, row in enumerate(rows):
                yield key, {name: values.astype(np.uint16) for name, values in row.items()}

    return PackedText


@pytest.mark.slow
def test_a_dataset_of_version_1_is_still_read(tmp_path, tokenizer):
    statistics = prepare(tmp_path / "set", [source("code", 100)], tokenizer, sequence_length=T, survey=Survey())
    rows = {}
    for split in ("train", "valid"):
        new = Rows(tmp_path / "set", "code", split)
        read = new.read(range(len(new)))
        rows[split] = [dict(zip(read, values)) for values in zip(*read.values())]
    (tmp_path / "old").mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        with registered.skip_registration():
            builder = version_1()
        builder(
            rows=rows, data_dir=tmp_path / "old", config=tfds.core.BuilderConfig(name="code", version="1.0.0")
        ).download_and_prepare(download_dir=tmp_path / "downloads")
    del statistics["files"]  # which earlier versions did not write
    (tmp_path / "old" / "dataset.json").write_text(json.dumps(statistics))
    assert os.listdir(tmp_path / "old" / "packed_text" / "code") == ["1.0.0"]
    for split in ("train", "valid"):

        def batches(name):
            return TextBatches(tmp_path / name, split, batch_size=4, shuffle=False)  # noqa: B023 (called at once)

        tokens = [
            sorted(
                row.tobytes()
                for n in range(batches(name).num_batches)
                for row in np.concatenate(
                    [batches(name).batch(n)[key] for key in ("tokens", "targets", "segment_ids", "positions", "weights")],
                    axis=1,
                )
            )
            for name in ("old", "set")
        ]
        assert tokens[0] == tokens[1]


def test_a_row_takes_two_bytes_a_token_and_a_bit(tmp_path, tokenizer):
    """Of random tokens, which nothing compresses."""
    random = np.random.default_rng(0)
    words = ["".join(map(chr, random.integers(33, 0x2000, 3000))) for _ in range(60)]
    many = Source("code", lambda: (Document(word[:9], word, "here") for word in words))
    statistics = prepare(tmp_path / "set", [many], tokenizer, sequence_length=511, survey=Survey(every=0))
    rows = statistics["sources"]["code"]["train"]["rows"]
    stored = sum(size for name, size in statistics["files"].items() if "array_record" in name)
    assert stored < 2.6 * 512 * rows


def test_empty_splits_and_sources_are_left_out(tmp_path, tokenizer):
    statistics = prepare(
        tmp_path / "set", [source("code", 10), source("none", 0)], tokenizer, sequence_length=T, survey=Survey(every=0)
    )
    assert statistics["sources"]["none"]["train"]["rows"] == statistics["sources"]["code"]["valid"]["rows"] == 0
    assert os.listdir(tmp_path / "set" / "packed_text") == ["code"]


def test_documents_begin_with_their_first_words_and_sources_take_turns(tmp_path, tokenizer):
    prepare(tmp_path, [source("code", 60), source("docs", 60)], tokenizer, sequence_length=T, survey=Survey())
    names = beginnings(tmp_path, "valid", tokenizer, count=5, words=3)
    held_out = {" ".join(text.split()[:3]) for name in ("code", "docs") for text in texts(name, 60)[::7]}
    assert [name.split()[0] for name in names] == ["code", "docs", "code", "docs", "code"]
    assert len(set(names)) == 5 and set(names) <= held_out


def test_nothing_to_train_on_is_a_user_error_and_leaves_nothing(tmp_path, tokenizer):
    with pytest.raises(UserError, match="data.input"):
        prepare(tmp_path / "set", [source("code", 5)], tokenizer, sequence_length=T, survey=Survey(every=1))
    assert not list(tmp_path.iterdir()) and prepared(tmp_path / "set") is None


def test_an_error_in_a_source_leaves_nothing(tmp_path, tokenizer):
    def broken():
        yield Document("a", "text", "here")
        raise UserError("line 7 is no JSON")

    with pytest.raises(UserError, match="line 7"):
        prepare(tmp_path / "set", [Source("bad", broken)], tokenizer, sequence_length=T, survey=Survey())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_is_left_alone(tmp_path, tokenizer):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        prepare(tmp_path / "set", [source("code", 5)], tokenizer, sequence_length=T, survey=Survey())
    assert (tmp_path / "set" / "mine").read_text() == "mine"


KILLED = """
import os, sys
import numpy as np
from data.text.dataset import beginnings, prepare
from data.sources.source import Source
from data.text.sentencepiece_tokenizer import SentencePieceTokenizer
assert "tensorflow" not in sys.modules
class Survey:
    stats = {}
    def encoded(self, source, tokenizer, processes):
        for i in range(200):
            yield "train", np.asarray(tokenizer.encode("some words " * 300)), 3300
        os._exit(9)
prepare(sys.argv[1], [Source("code", list)], SentencePieceTokenizer(sys.argv[2]), sequence_length=32, survey=Survey())
"""


def test_a_kill_leaves_nothing_and_the_next_start_sweeps_up(tmp_path, tokenizer, tmp_path_factory):
    model = tmp_path_factory.getbasetemp() / "killed.model"
    train(["some words " * 50], model, vocab_size=300, sample_bytes=1 << 20, seed=0, threads=1)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "set"), str(model)],
        cwd=root,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
    )
    assert killed.returncode == 9, killed.stderr.decode()
    assert prepared(tmp_path / "set") is None
    assert [path.name for path in tmp_path.iterdir()] == [".set.incomplete"]
    prepare(tmp_path / "set", [source("code", 20)], tokenizer, sequence_length=T, survey=Survey())
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_writers_do_not_share_a_folder(tmp_path, tokenizer):
    (tmp_path / ".set.incomplete").mkdir()
    other = os.open(tmp_path / ".set.incomplete", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process"):
        prepare(tmp_path / "set", [source("code", 5)], tokenizer, sequence_length=T, survey=Survey())
    os.close(other)
    assert prepare(tmp_path / "set", [source("code", 5)], tokenizer, sequence_length=T, survey=Survey())
