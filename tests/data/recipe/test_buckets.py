"""Buckets of documents by a column: bounds against a sort, and the parts of a dataset that train.py reads."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.curate import default
from data.recipe.buckets import bounds, bucket
from data.recipe.tokenized import write
from data.text.batches import Rows, TextBatches, prepared
from data.text.sentencepiece_tokenizer import train
from data.text.weights import Weights, parse_weights
from lm.errors import UserError

FIELDS = {"id": pa.string(), "text": pa.string(), "source": pa.string(), "licence": pa.string()}


def save(folder, rows, groups=3, **columns):
    """Write rows as the documents of a recipe, in two files of several row groups."""
    (folder / "documents").mkdir(parents=True)
    schema = pa.schema([*FIELDS.items(), *columns.items()])
    for k in range(2):
        table = pa.Table.from_pylist(rows[k::2], schema=schema)
        pq.write_table(table, folder / "documents" / f"{k:05d}.parquet", row_group_size=max(1, len(rows) // (2 * groups)))
    (folder / "manifest.json").write_text(json.dumps({"files": {"documents": len(rows)}}))
    return sorted((folder / "documents").glob("*.parquet"))


def rows_of(scores, source="web"):
    random = np.random.default_rng(1)
    return [
        {"id": f"{source}{n}", "text": f"é {source} {n} " + "word " * int(random.integers(1, 40)), "source": source, "s": score}
        for n, score in enumerate(scores)
    ]


def slow_bounds(rows, buckets):
    """The slow twin: sort all documents, and add up their bytes."""
    ordered = sorted((np.float32(row["s"]), len(row["text"].encode())) for row in rows)
    total, seen, found = sum(size for _, size in ordered), 0, []
    for value, size in ordered:
        seen += size
        while len(found) < buckets - 1 and seen * buckets >= (len(found) + 1) * total:
            found.append(value)
    return found


@pytest.mark.parametrize("buckets", [2, 4, 7])
def test_bounds_are_those_of_a_sort(tmp_path, buckets):
    random = np.random.default_rng(0)
    web = rows_of(random.normal(size=400).tolist())
    code = rows_of((1 - 1e-4 * random.random(300)).tolist(), "code")  # in few of the upper bins
    mixed = [row for pair in zip(web, code) for row in pair] + web[300:]
    found = bounds(save(tmp_path, mixed, s=pa.float64()), "s", buckets)
    assert sorted(found) == ["code", "web"]
    for name, rows in (("web", web), ("code", code)):
        assert found[name].tolist() == slow_bounds(rows, buckets)
        sizes = np.zeros(buckets)
        np.add.at(sizes, bucket(np.array([r["s"] for r in rows]), found[name]), [len(r["text"].encode()) for r in rows])
        assert abs(sizes / sizes.sum() - 1 / buckets).max() < 0.02


def test_buckets_have_the_order_of_the_values():
    values = np.array([-np.inf, -1e30, -2.5, -1e-30, 0.0, 1e-30, 0.5, 1.0, 3e38, np.inf])
    assert bucket(values, values.astype(np.float32)).tolist() == list(range(10))
    assert bucket(np.array([np.nan, -0.0]), values.astype(np.float32)).tolist() == [0, 4]


def test_equal_values_share_a_bucket(tmp_path):
    found = bounds(save(tmp_path, rows_of([1] * 50 + [2] * 3), s=pa.int64()), "s", 4)["web"]
    assert bucket(np.array([1, 2]), found).tolist() == [0, 3]


def test_a_missing_value_is_in_the_lowest_bucket(tmp_path):
    files = save(tmp_path, rows_of([None, 0.1, 0.2, None, 0.9, 0.8]), s=pa.float64())
    found = bounds(files, "s", 2)["web"]
    assert bucket(np.array([np.nan, 0.1, 0.9]), found).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "column, buckets, message",
    [
        ("text", 4, "dataset.bucket_by='text' holds string; name a column of numbers"),
        ("s", 1, "dataset.buckets=1 must be in 2…100"),
    ],
)
def test_a_fault_of_the_config_names_its_key(tmp_path, column, buckets, message):
    files = save(tmp_path, rows_of([0.5, 0.7]), s=pa.float64())
    with pytest.raises(UserError, match=message):
        bounds(files, column, buckets)


def test_a_dataset_has_a_part_for_each_bucket_and_stages_order_them(tmp_path):
    scores = np.random.default_rng(2).random(240).tolist()
    rows = [row for pair in zip(rows_of(scores), rows_of(scores[::-1], "code")) for row in pair]
    save(tmp_path, rows, s=pa.float64())
    train([row["text"] for row in rows], tmp_path / "t", vocab_size=300, sample_bytes=1 << 20, seed=0, threads=1)
    config = default.get_config()
    config.tokenizer, config.processes = str(tmp_path / "t"), 1
    config.dataset.update(sequence_length=32, bucket_by="s", buckets=3, valid_fraction=0.0)
    statistics = write(config.to_dict(), tmp_path)
    assert list(statistics["sources"]) == [f"{name}_q{n}" for name in ("code", "web") for n in (1, 2, 3)]
    about = json.loads((tmp_path / "dataset" / "buckets.json").read_text())
    assert about["column"] == "s" and about["highest"]["web"] == pytest.approx(slow_bounds(rows_of(scores), 3))
    from data.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tmp_path / "dataset")
    for n, (least, most) in enumerate(
        [(-1, *about["highest"]["web"][:1]), about["highest"]["web"], (about["highest"]["web"][1], 2)]
    ):
        part = Rows(tmp_path / "dataset", f"web_q{n + 1}", "train")
        said = tokenizer.decode(part.read(range(len(part)))["tokens"])
        wanted = {row["id"] for row in rows_of(scores) if least < np.float32(row["s"]) <= most}
        assert {f"web{word}" for word in said.split() if word.isdigit()} >= {id for id in wanted if id}
        assert statistics["sources"][f"web_q{n + 1}"]["train"]["documents"] == len(wanted)
    weights = parse_weights("0: web_q1=1,code_q1=1; 0.5: web_q3=1")
    batches = TextBatches(tmp_path / "dataset", batch_size=4, weights=Weights(weights, 4))
    assert set(batches.global_row_ids(3)) <= set(batches.ranges["web_q3"])
    assert write(config.to_dict(), tmp_path) == prepared(tmp_path / "dataset")
