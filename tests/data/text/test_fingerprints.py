"""A run notices another tokenizer, a changed input and a damaged dataset, and refuses or mends in one line."""

import json
import os
import shutil

import numpy as np
import pytest

from configs.train import tiny
from data.chat.examples import prepare_examples, prepare_tasks, record_tasks
from data.text.batches import TextBatches, prepared
from data.text.fingerprints import record_tokenizer
from data.text.pipeline import prepare_text
from data.text.sentencepiece_tokenizer import train
from data.text.tokenizer import load_tokenizer
from lm.errors import UserError
from tests.data.chat import hf_examples
from tests.data.chat.test_examples import configured, write
from tests.data.text.test_sentencepiece_tokenizer import corpus

LINES = [{"text": f"{n} {text}"} for n, text in enumerate(corpus()) if n < 60]


def run_config(tmp_path, **data):
    config = tiny.get_config()
    config.sequence_length, config.model.vocab_size = 64, 320
    config.data.update({"input": str(tmp_path / "text"), "valid_fraction": 0.1, **data})
    return config


@pytest.fixture
def run(tmp_path):
    """A config, and a workdir whose dataset was prepared from two files of JSON lines."""
    (tmp_path / "text").mkdir()
    for part in (0, 1):
        write(tmp_path / "text" / f"{part}.jsonl", LINES[part::2])
    config, workdir = run_config(tmp_path), tmp_path / "run"
    prepare_text(config, workdir)
    return config, workdir


def state(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(call, *words):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# The tokenizer.


def other_model(path):
    return train(["quite another text, of other words " * 30], path, vocab_size=320, sample_bytes=1 << 16, seed=0, threads=1)


def test_another_tokenizer_model_is_refused_wherever_it_is_read(run, tmp_path):
    config, workdir = run
    own = (workdir / "tokenizer.model").read_bytes()
    other_model(workdir / "tokenizer.model")
    before = state(workdir)
    for call in (lambda: prepare_text(config, workdir), lambda: load_tokenizer(workdir)):
        refused(call, "tokenizer: ", str(workdir), "put the run's own tokenizer back", "--workdir")
    assert state(workdir) == before
    (workdir / "tokenizer.model").write_bytes(own)
    prepare_text(config, workdir)


def test_a_deleted_tokenizer_comes_back_only_as_it_was(run, tmp_path):
    config, workdir = run
    own = (workdir / "tokenizer.model").read_bytes()
    (workdir / "tokenizer.model").unlink()
    config.tokenizer = str(tmp_path / "other.model")
    other_model(tmp_path / "other.model")
    refused(lambda: prepare_text(config, workdir), "tokenizer: ", str(workdir))
    config.tokenizer = None
    shutil.rmtree(workdir / "data")  # without the dataset the text decides, which is another now
    text = (tmp_path / "text" / "0.jsonl").read_text()
    write(tmp_path / "text" / "0.jsonl", [{"text": f"other words {n}"} for n in range(40)])
    refused(lambda: prepare_text(config, workdir), "tokenizer: ", str(workdir))
    assert not (workdir / "tokenizer.model").exists()
    (tmp_path / "text" / "0.jsonl").write_text(text)
    prepare_text(config, workdir)
    assert (workdir / "tokenizer.model").read_bytes() == own


def test_a_published_tokenizer_is_known_by_its_ids_too(tmp_path):
    folder = hf_examples.folder(tmp_path / "hf", hf_examples.gpt2())
    record_tokenizer(folder, load_tokenizer(folder).fingerprint)
    load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    refused(lambda: load_tokenizer(folder), "tokenizer: ", str(folder))
    (folder / "tokenizer.fingerprint").write_text("")
    refused(lambda: load_tokenizer(folder), "tokenizer.fingerprint is damaged", "delete it")


def test_a_run_of_an_earlier_version_is_compared_with_its_dataset(run):
    config, workdir = run
    (workdir / "tokenizer.fingerprint").unlink()
    for record in workdir.glob("data/*/input.json"):
        record.unlink()
    own = (workdir / "tokenizer.model").read_bytes()
    other_model(workdir / "tokenizer.model")
    refused(lambda: load_tokenizer(workdir), "tokenizer: ")
    (workdir / "tokenizer.model").write_bytes(own)
    tokenizer, _, stages = prepare_text(config, workdir)
    assert not any(stages.values())  # what stands was taken
    assert (workdir / "tokenizer.fingerprint").read_text().strip() == tokenizer.fingerprint


# The input of a training run.


def edited(text):
    path = text / "0.jsonl"
    content, stat = path.read_text(), path.stat()
    path.write_text(content.replace("0 ", "9 ", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time of the edit say nothing


def grown(text):
    with (text / "1.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")


@pytest.mark.parametrize(
    "change, said",
    [
        (edited, "0.jsonl"),
        (grown, "1.jsonl has another size"),
        (lambda text: write(text / "2.jsonl", LINES[:1]), "2.jsonl is new"),
        (lambda text: (text / "0.jsonl").unlink(), "0.jsonl is gone"),
        (lambda text: (text / "0.jsonl").rename(text / "9.jsonl"), "9.jsonl is new"),
    ],
    ids=["edited", "grown", "added", "removed", "renamed"],
)
def test_a_changed_input_is_refused(run, tmp_path, change, said):
    config, workdir = run
    change(tmp_path / "text")
    before = state(workdir)
    refused(lambda: prepare_text(config, workdir), f"data.input='{tmp_path}/text' changed", said, "put it back", "--workdir")
    assert state(workdir) == before


def test_the_same_content_with_other_times_goes_on(run, tmp_path):
    config, workdir = run
    shutil.copytree(tmp_path / "text", tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "text")
    (tmp_path / "copy").rename(tmp_path / "text")
    for _ in range(2):
        assert not any(prepare_text(config, workdir)[2].values())


def test_an_input_that_is_gone_is_said_and_the_run_goes_on(run, tmp_path, capsys):
    config, workdir = run
    shutil.rmtree(tmp_path / "text")
    prepare_text(config, workdir)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "is no longer there" in said[0] and str(tmp_path / "text") in said[0]


def test_of_an_input_that_is_read_in_part_only_that_part_counts(tmp_path):
    (tmp_path / "text").mkdir()
    write(tmp_path / "text" / "0.jsonl", LINES)
    config, workdir = run_config(tmp_path, max_bytes=20_000), tmp_path / "run"
    prepare_text(config, workdir)
    with (tmp_path / "text" / "0.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    prepare_text(config, workdir)
    edited(tmp_path / "text")
    refused(lambda: prepare_text(config, workdir), "data.input=", "changed")


# Damage.


def test_only_the_tokenizer_was_deleted(run):
    config, workdir = run
    own, before = (workdir / "tokenizer.model").read_bytes(), state(workdir / "data")
    (workdir / "tokenizer.model").unlink()
    prepare_text(config, workdir)
    assert (workdir / "tokenizer.model").read_bytes() == own and state(workdir / "data") == before


def test_a_dataset_without_its_record_is_prepared_anew(run, capsys):
    config, workdir = run
    [folder] = workdir.glob("data/*")
    expected = prepared(folder)
    (folder / "dataset.json").unlink()
    prepare_text(config, workdir)
    assert "its record is missing" in capsys.readouterr().err and prepared(folder) == expected


@pytest.mark.parametrize("file", ["packed_text/*/*/*train.array_record*", "packed_text/*/*/features.json"])
def test_rows_that_cannot_be_read_are_one_line(run, file):
    """Of the size that was written, so that only reading them finds it."""
    _, workdir = run
    [folder] = workdir.glob("data/*")
    [hurt] = folder.glob(file)
    hurt.write_bytes(bytes(hurt.stat().st_size))
    refused(lambda: TextBatches(folder, "train", batch_size=4).batch(0), str(hurt.parent), "damaged", f"delete {folder}")


def torn(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def other_json(path):
    path.write_text("[1, 2]")


@pytest.mark.parametrize("damage", [torn, emptied, other_json, lambda path: path.write_bytes(b"\xff\xfe{")])
@pytest.mark.parametrize("file", ["dataset.json", "packed_text/*/*/*array_record*"])
def test_a_damaged_dataset_is_set_aside_and_prepared_anew(run, tmp_path, capsys, file, damage):
    config, workdir = run
    [folder] = workdir.glob("data/*")
    expected, rows = prepared(folder), TextBatches(folder, "train", batch_size=4).batch(0)
    hurt = sorted(folder.glob(file))[0]
    damage(hurt)
    refused(lambda: TextBatches(folder, "train", batch_size=4), str(hurt), "damaged")
    capsys.readouterr()
    prepare_text(config, workdir)
    said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(said) == 1 and str(hurt) in said[0] and "set aside" in said[0]
    assert prepared(folder) == expected
    for name, values in TextBatches(folder, "train", batch_size=4).batch(0).items():
        np.testing.assert_array_equal(values, rows[name])
    assert len(list(workdir.glob("data/.*.damaged"))) == 1
    damage(hurt)  # and again, now without its input, or with another
    shutil.move(tmp_path / "text", tmp_path / "away")
    refused(lambda: prepare_text(config, workdir), str(hurt), "no longer there")
    shutil.move(tmp_path / "away", tmp_path / "text")
    grown(tmp_path / "text")
    refused(lambda: prepare_text(config, workdir), "data.input=", "changed")


# Alignment.


ROWS = [{"prompt": f"{n} of them", "chosen": f"b {n}", "rejected": "c"} for n in range(30)]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "tokenizer.model"
    return train(corpus(), path, vocab_size=400, sample_bytes=1 << 18, seed=0, threads=2)


def test_changed_examples_are_refused(own, tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    config = configured(path)
    first = prepare_examples(config, tmp_path / "run", own, "pair").counts
    os.utime(path, (1, 1))
    assert prepare_examples(config, tmp_path / "run", own, "pair").counts == first
    content = path.read_text()
    path.write_text(content.replace("b 7", "d 7"))
    refused(lambda: prepare_examples(config, tmp_path / "run", own, "pair"), f"data.input='{path}' changed", "--workdir")
    path.write_text(content + content)
    refused(lambda: prepare_examples(config, tmp_path / "run", own, "pair"), "has another size")


def test_changed_tasks_are_refused(own, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": f"{n}?", "answer": str(n)} for n in range(30)])
    config, workdir = configured(path, **{"data.valid_fraction": 0.3}), tmp_path / "run"
    prepare_tasks(config, own, workdir=workdir)
    write(path, [{"prompt": f"{n}?", "answer": str(n + 1)} for n in range(30)])
    prepare_tasks(config, own, workdir=workdir)  # nothing was made of it yet
    record_tasks(config, workdir)
    first = prepare_tasks(config, own, workdir=workdir)
    os.utime(path, (1, 1))
    assert prepare_tasks(config, own, workdir=workdir) == first
    write(path, [{"prompt": f"{n}?", "answer": str(n + 2)} for n in range(30)])
    refused(lambda: prepare_tasks(config, own, workdir=workdir), f"data.input='{path}' changed")


@pytest.mark.parametrize(
    "file, damage",
    [("counts.json", torn), ("counts.json", emptied), ("counts.json", other_json)]
    + [(f"train/{name}.npy", damage) for name in ("tokens", "margin") for damage in (torn, emptied, os.remove)],
)
def test_damaged_examples_are_set_aside_and_made_anew(own, tmp_path, capsys, file, damage):
    config = configured(write(tmp_path / "a.jsonl", ROWS))
    first = prepare_examples(config, tmp_path / "run", own, "pair")
    [folder] = (tmp_path / "run" / "data").iterdir()
    tokens = np.array(first.train["tokens"])
    damage(folder / file)
    capsys.readouterr()
    again = prepare_examples(config, tmp_path / "run", own, "pair")
    said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(said) == 1 and str(folder / file) in said[0]
    assert again.counts == first.counts and np.array_equal(again.train["tokens"], tokens)
