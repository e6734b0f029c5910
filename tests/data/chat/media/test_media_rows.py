"""Prepared conversations with media: a batch has the arrays of its own images in the order of their tokens."""

import json

import numpy as np
import pyarrow.parquet
import pytest
from ml_collections import ConfigDict

from data.chat.example_batches import ExampleBatches
from data.chat.examples import prepare_examples, prepare_tasks
from data.chat.media.encoding import Towers
from data.chat.media.rows import arrays, media_of
from data.media import spectrograms, tiles
from data.media.audio import RATE, decode, encode_wav
from data.media.prompts import AUDIO, IMAGE
from data.text.sentencepiece_tokenizer import train
from lm.errors import UserError
from tests.data.media.pictures import picture, saved
from tests.data.media.test_parts import image, text, url, user
from tests.data.text.test_sentencepiece_tokenizer import corpus

TOWERS = Towers(tiles.Tower(8, "tiles", 16), 2, spectrograms.Tower(8, 1), 5)
T = 96


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train(corpus(), path, vocab_size=420, sample_bytes=1 << 20, seed=0, threads=2)


def config(folder, **changed) -> ConfigDict:
    data = {"input": str(folder), "valid_fraction": 0.25, "max_examples": None, "max_valid_examples": None}
    return ConfigDict({"data": data, "sequence_length": T, "seed": 0, "chat_template": None, "method": "sft"} | changed)


def talk(n: int) -> dict:
    """One or two images and sometimes a sound, or text alone; the answer is the number of the conversation."""
    (pictures, sounds), parts = ((n % 3), n % 4 == 1), [text(f"{n}")]
    parts += [image(f"{n}-{k}.png") for k in range(pictures)]
    parts += [{"type": "input_audio", "input_audio": {"data": url(sound(n)), "format": "wav"}}] if sounds else []
    return {"messages": [user(*parts), {"role": "assistant", "content": f"it is {n}"}]}


def pixels(n: int, k: int) -> np.ndarray:
    return picture(16, 16 if k else 8, seed=2 * n + k)


def sound(n: int) -> bytes:
    return encode_wav(np.random.default_rng(n).normal(0, 0.1, RATE // 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "x.jsonl").write_text("".join(json.dumps(talk(n)) + "\n" for n in range(24)))
    for n in range(24):
        for k in range(n % 3):
            (folder / f"{n}-{k}.png").write_bytes(saved(pixels(n, k)))
    return folder


@pytest.fixture(scope="module")
def examples(own, folder, tmp_path_factory):
    return prepare_examples(config(folder), tmp_path_factory.mktemp("run"), own, "conversation", towers=TOWERS)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_each_row_has_its_own_media_in_the_order_of_its_tokens(own, examples, split):
    columns, most = getattr(examples, split), examples.counts[split]
    batches = ExampleBatches(
        columns, kind="conversation", lengths=[T], batch_size=3, shuffle=False,
        media=lambda rows: arrays(columns, rows, TOWERS, most),
    )  # fmt: skip
    told = []
    for step in range(batches.num_batches):
        batch = batches.batch(step)
        assert batch["images"].dtype == batch["audio"].dtype == np.float32
        assert batch["images"].shape[2:] == (8, 8, 3) and batch["audio"].shape[2:] == (100, 8)
        for row, segments, seen, heard in zip(batch["tokens"], batch["segment_ids"], batch["images"], batch["audio"]):
            numbers = [int(own.decode(row[segments == s]).partition("it")[0] or -1) for s in range(1, segments.max() + 1)]
            told += numbers
            expected = [tiles.prepare(pixels(n, k), TOWERS.image).pixels for n in numbers for k in range(n % 3)]
            expected = np.concatenate([np.zeros((0, 8, 8, 3)), *expected])
            assert np.array_equal(seen[: len(expected)], expected) and not seen[len(expected) :].any()
            assert np.count_nonzero(row == own.controls[IMAGE]) == 2 * len(expected)
            expected = [spectrograms.prepare(decode(sound(n), "x"), TOWERS.audio) for n in numbers if n % 4 == 1]
            assert np.count_nonzero(row == own.controls[AUDIO]) == 5 * len(expected)
            for window, n in zip(expected, heard):
                assert np.array_equal(window[0], n)
        part = batches.batch(step, rows=[2, 0])
        assert np.array_equal(part["images"], batch["images"][[2, 0]])
    assert len(told) == len(set(told)) == examples.counts[split]["examples"]


def test_every_conversation_is_in_one_split_and_rows_hold_several(examples):
    counts = examples.counts
    assert counts["train"]["examples"] + counts["valid"]["examples"] == 24
    assert counts["train"]["rows"] < counts["train"]["examples"]
    files = [kept.file for n in range(counts["train"]["rows"]) for kept in media_of(examples.train, n)]
    assert len(files) > 10 and len(set(files)) == len(files)


def test_text_alone_is_prepared_as_without_towers(own, tmp_path):
    lines = (json.dumps({"prompt": f"word {n}", "completion": f"it is {n}"}) + "\n" for n in range(40))
    (tmp_path / "x.jsonl").write_text("".join(lines))
    one, other = (
        prepare_examples(config(tmp_path / "x.jsonl"), tmp_path / str(n), own, "conversation", towers=towers)
        for n, towers in enumerate((None, TOWERS))
    )
    for name, column in one.train.items():
        assert np.array_equal(column, other.train[name])
    assert arrays(other.train, [0, -1], TOWERS, other.counts["train"]) == {}


def test_a_model_of_text_refuses_and_other_towers_prepare_anew(own, folder, tmp_path):
    with pytest.raises(UserError, match="only text is read here"):
        prepare_examples(config(folder), tmp_path / "text", own, "conversation")
    for towers in (TOWERS, TOWERS._replace(image_tokens=1)):
        prepare_examples(config(folder), tmp_path / "run", own, "conversation", towers=towers)
    assert len(list((tmp_path / "run" / "data").glob("*/counts.json"))) == 2


def test_a_bad_image_among_many_is_left_out_and_named(own, tmp_path):
    """In rows to train on and in held-out questions. A file whose first image is bad is refused, and leaves nothing."""
    rows = [{"question": f"{n}?", "answer": f"it is {n}", "image": {"bytes": saved(picture(8, 8, n))}} for n in range(100)]
    rows[50]["image"]["bytes"] = rows[50]["image"]["bytes"][:60]
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    settings = config(path, rollout={"max_prompt_tokens": T})
    counts = prepare_examples(settings, tmp_path / "run", own, "conversation", towers=TOWERS).counts
    _, _, asked = prepare_tasks(settings, own, towers=TOWERS)
    for some in (counts, asked):
        dropped = some["train"]["dropped"] | some["valid"]["dropped"]
        ((reason, count),) = dropped.items()
        assert count == 1 and reason.startswith(f"{path}: row 51, column image: the image: a damaged image")
        assert some["train"]["examples"] + some["valid"]["examples"] == 99
    for row in rows:
        row["image"]["bytes"] = b"no image"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    for refused in (
        lambda: prepare_examples(settings, tmp_path / "bad", own, "conversation", towers=TOWERS),
        lambda: prepare_tasks(settings, own, towers=TOWERS),
    ):
        with pytest.raises(UserError, match=r"x.parquet: row \d+, .*no image of the formats"):
            refused()
    assert not [path for path in tmp_path.rglob("bad/*") if path.is_file()]


def test_a_built_in_task_is_prepared(own, tmp_path):
    settings = config("builtin:scenes?size=24")
    settings.data.input, settings.data.max_examples, settings.data.max_valid_examples = "builtin:scenes?size=24", 60, 20
    found = prepare_examples(settings, tmp_path, own, "conversation", towers=TOWERS._replace(image=tiles.Tower(24)))
    assert found.counts["train"]["examples"] == 60 and found.counts["valid"]["examples"] == 20
    assert found.counts["train"]["images"] > 1 and found.counts["train"]["audio"] == 0
    batch = arrays(found.train, [0, 1], TOWERS._replace(image=tiles.Tower(24)), found.counts["train"])
    assert batch.keys() == {"images"} and batch["images"].shape[2:] == (24, 24, 3)
