"""Every kind of input gives its records as they stand, with where they are from, and every mistake is one line."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data.chat.records import is_builtin, read_builtin, read_records
from lm.errors import UserError

ROWS = [{"prompt": "a é", "n": 1}, {"prompt": [{"role": "user", "content": "b"}], "n": None}, {"messages": []}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(input, *parts):
    with pytest.raises(UserError) as error:
        list(read_records(input))
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value), error.value


@pytest.mark.parametrize(
    "name, data",
    [
        ("a.jsonl", LINES),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\n")),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.zst", zstandard.compress(LINES)),
        ("a.json.gz", gzip.compress(LINES)),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", json.dumps(ROWS, indent=2).encode()),
        ("a.json", json.dumps({"version": 2, "data": ROWS}).encode()),
    ],
    ids=range(9),
)
def test_json_in_all_its_files(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    records = list(read_records(name))
    assert [record.values for record in records] == ROWS
    places = [int(record.where.removeprefix(name).lstrip(": item")) for record in records]
    assert places == ([1, 3, 5] if b"\n\n" in data else [1, 2, 3])


def test_a_single_object_is_one_record(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"prompt": "a", "completion": "b"}, indent=1))
    assert [record.values for record in read_records("one.json")] == [{"prompt": "a", "completion": "b"}]


def test_parquet_keeps_nested_values(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"{n}"}], "score": n / 2} for n in range(3000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    records = list(read_records("a.parquet"))
    assert [record.values for record in records] == rows
    assert records[2000].where == "a.parquet: row 2001"


def test_folders_globs_and_lists(tmp_path):
    (tmp_path / "d/deep").mkdir(parents=True)
    for path in ("d/b.jsonl", "d/deep/a.json", "d/README.md", "c.jsonl"):
        (tmp_path / path).write_text(json.dumps({"from": path}) + "\n")
    for input, found in (
        ("d", ["d/b.jsonl", "d/deep/a.json"]),
        ("d/**/*.json", ["d/deep/a.json"]),
        ("d/b.jsonl,c.jsonl", ["c.jsonl", "d/b.jsonl"]),
    ):
        assert [record.values["from"] for record in read_records(input)] == found


def test_what_cannot_be_read_says_where(tmp_path):
    for name, text, parts in (
        ("a.jsonl", '{"a": 1}\n{oops}\n', ["a.jsonl:2", "not JSON"]),
        ("b.jsonl", "[1]\n", ["b.jsonl:1", "list"]),
        ("c.json", "[1, 2", ["c.json", "not JSON"]),
        ("d.json", '[{"a": 1}, 7]', ["d.json: item 2", "int"]),
        ("e.parquet", "nothing of the kind", ["e.parquet", "damaged"]),
        ("f.jsonl.gz", "plain", ["f.jsonl.gz"]),
    ):
        (tmp_path / name).write_text(text)
        fails(name, *parts)
    fails("a.json", "no file matches data.input='a.json'", "a.jsonl")
    fails("nowhere/to/be/found", "nowhere/to/be/found")
    fails("no_such_dataset", "no_such_dataset", "builtin:")
    (tmp_path / "empty").mkdir()
    fails("empty", "holds no file", ".jsonl")


def test_a_built_in_task_with_options():
    assert is_builtin("builtin:digits") and not is_builtin("digits")
    records = [record for record, _ in zip(read_builtin("builtin:arithmetic?digits=5&valid=3", "train", 0), range(4))]
    assert records == [record for record, _ in zip(read_builtin("builtin:arithmetic?digits=5", "train", 0), range(4))]
    assert all(len(record.values["prompt"]) > 10 for record in records)
    assert records[2].where == "builtin:arithmetic train[2]"
    assert len(list(read_builtin("builtin:arithmetic?valid=3", "valid", 0))) == 3
    for name, part in (("arithmetik", "arithmetic"), ("digits?x=1", "'x'"), ("digits?oops", "key=value")):
        with pytest.raises(UserError, match=part):
            list(read_builtin(f"builtin:{name}", "valid", 0))


def test_a_tfds_dataset(tmp_path):
    import tensorflow_datasets as tfds

    talk = tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()})
    features = {"messages": talk, "labels": tfds.features.Sequence(np.bool_), "score": tfds.features.Scalar(np.float32)}

    class TinyTalk(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos, pkg_dir_path = None, tmp_path

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            messages = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "b"}]
            yield 0, {"messages": messages, "labels": [True, False], "score": 0.5}

    TinyTalk(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    tfds.core.add_data_dir(tmp_path / "tfds")
    [record] = read_records("tiny_talk")
    assert record.where == "tiny_talk train[0]"
    assert record.values == {
        "messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "b"}],
        "labels": [True, False],
        "score": 0.5,
    }
