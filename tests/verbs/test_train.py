"""train.py from end to end: what it reads, what it leaves behind, what it does with a run that diverges."""

import gzip
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from data.text.batches import TextBatches
from tests.slow import all_but
from tests.verbs import runs


def test_a_run_leaves_its_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "ids.jsonl", "tokenizer.model", "report.html", "report.json"}
    assert not [path for path in finished.rglob("*") if path.name.endswith((".new", ".tmp"))]
    config = json.loads((finished / "config.json").read_text())
    assert config["steps"] == runs.STEPS and config["model"]["embed_dim"] == 32
    report = json.loads((finished / "report.json").read_text())
    assert report["finished"] is True and {"steps", "data.input"} <= set(report["provenance"]["changed"])
    assert report["provenance"]["command"].startswith("python train.py --config=configs/train/tiny.py --workdir=")
    assert runs.steps_saved(finished) == [runs.STEPS - 20, runs.STEPS]  # keep_last=2


def test_how_far_it_is_where_there_is_no_terminal(text, tmp_path):
    done = runs.run(runs.line(tmp_path / "run", data__input=text, steps=2, valid_every=0, checkpoint_every=0))
    assert done.returncode == 0, done.stderr[-4000:]
    said = runs.plain_lines(done.stderr)
    assert "train: 0/2, compiling…" in said
    for stage in ("survey", "tokenizer", "dataset", "n-gram baselines"):
        assert any(line.startswith(f"{stage}: ") and "B/s" in line for line in said), said
    assert any(line.startswith("train: 2/2, loss ") and line.endswith("/s") for line in said)


def test_metrics(finished):
    lines = runs.training(finished)
    assert [line["step"] for line in lines] == list(range(1, runs.STEPS + 1))
    for line in lines:
        assert line.keys() >= {"step", "loss", "tokens", "tokens_per_second", "grad_norm", "learning_rate"}
        assert all(np.isfinite(value) for value in line.values())
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5

    validations = runs.validation(finished)
    assert [line["step"] for line in validations] == [40, 80]
    assert all(line.keys() == {"step", "valid_loss", "valid_bits_per_byte"} for line in validations)
    report = json.loads((finished / "report.json").read_text())
    assert report["validation"]["loss"] == validations[-1]["valid_loss"]
    assert report["training"]["tokens"] == lines[-1]["tokens"]


def test_tokens_and_ids_are_those_of_the_batches(finished):
    """`tokens` counts what was trained on since step 0, and ids.jsonl names the rows of the whole batch."""
    dataset = next(path for path in (finished / "data").iterdir() if path.is_dir() and not path.name.startswith("."))
    batches = TextBatches(dataset, "train", batch_size=8, seed=0)
    logged, tokens = runs.lines(finished / "ids.jsonl"), 0
    assert len(logged) == runs.STEPS
    for line, ids in zip(runs.training(finished), logged):
        batch = batches.batch(line["step"] - 1)
        tokens += int(batch["weights"].sum())
        assert line["tokens"] == tokens
        assert ids == {"step": line["step"], "ids": batch["ids"].tolist()}


def test_the_line_of_a_finished_run_again(finished, text, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    runs.train(workdir, data__input=text)
    for name in ("metrics.jsonl", "ids.jsonl", "config.json", "tokenizer.model"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name
    assert runs.steps_saved(workdir) == runs.steps_saved(finished)
    before, after = (json.loads((folder / "report.json").read_text()) for folder in (finished, workdir))
    assert after["validation"] == before["validation"] and after["training"] == before["training"]


def as_glob(text: Path, folder: Path) -> str:
    return f"{text}/*.txt"


def as_jsonl(text: Path, folder: Path) -> str:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": file.read_text()}) + "\n" for file in sorted(text.iterdir())))
    return str(path)


def as_jsonl_gz(text: Path, folder: Path) -> str:
    path = folder / "text.jsonl.gz"
    path.write_bytes(gzip.compress(Path(as_jsonl(text, folder)).read_bytes()))
    return str(path)


def as_parquet(text: Path, folder: Path) -> str:
    table = pyarrow.table({"text": [file.read_text() for file in sorted(text.iterdir())]})
    pyarrow.parquet.write_table(table, folder / "text.parquet")
    return str(folder / "text.parquet")


def as_tfds(text: Path, folder: Path) -> str:
    """A dataset that lies prepared in $TFDS_DATA_DIR."""
    with tfds.core.registered.skip_registration():

        class VerbText(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            url_infos = None
            pkg_dir_path = folder

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                yield from ((file.name, {"text": file.read_text()}) for file in sorted(text.iterdir()))

    VerbText(data_dir=folder, file_format="array_record").download_and_prepare()
    return "verb_text"


@pytest.mark.parametrize("form", all_but([as_jsonl_gz], [as_glob, as_jsonl, as_jsonl_gz, as_parquet, as_tfds]))
def test_inputs(form, text, finished, tmp_path):
    """The same text in any form trains, with a tokenizer that is given."""
    given = finished / "tokenizer.model"
    variables = {"TFDS_DATA_DIR": str(tmp_path)} if form is as_tfds else {}
    runs.train(tmp_path / "run", variables, data__input=form(text, tmp_path), tokenizer=given, steps=2)
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == given.read_bytes()
    counts, expected = (
        json.loads((folder / "report.json").read_text())["data"]["sources"] for folder in (tmp_path / "run", finished)
    )
    (counts,), (expected,) = counts.values(), expected.values()
    assert {key: counts[key] for key in ("documents", "bytes")} == {key: expected[key] for key in ("documents", "bytes")}


def test_which_checkpoints_stay(fresh, text):
    runs.train(fresh, data__input=text, steps=22, checkpoint_every=4, keep_last=1, keep_every=8)
    assert runs.steps_saved(fresh) == [8, 16, 22]


@pytest.mark.parametrize("clip_norm", [1.0, pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_divergence(fresh, text, clip_norm):
    settings = {"optimizer__learning_rate": 1e17, "optimizer__warmup": 1, "optimizer__clip_norm": clip_norm}
    command = runs.line(fresh, data__input=text, max_skipped_in_row=4, **settings)
    done = runs.run(command)
    assert done.returncode == 1, done.stderr
    (message,) = runs.complaint(done.stderr)
    assert "max_skipped_in_row" in message and "learning_rate" in message
    lines = runs.training(fresh)  # null, not NaN: `runs.lines` refuses that
    assert [line["skipped"] for line in lines[-4:]] == [1, 2, 3, 4] and lines[-5]["skipped"] == 0
    assert all(line["loss"] is None or line["grad_norm"] is None for line in lines[-4:])
    assert lines[-1]["tokens"] == lines[-5]["tokens"]  # a skipped step trains on nothing


@pytest.mark.slow
def test_parameters_of_no_use_are_not_saved(finished, text, tmp_path):
    """A learning rate of 1e38 on a trained model: the next loss and gradient norm are finite, the parameters are not."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    settings = dict(data__input=text, steps=runs.STEPS + 6, checkpoint_every=1, keep_last=1, valid_every=0)
    done = runs.run(runs.line(workdir, optimizer__learning_rate=1e38, **settings))
    assert done.returncode == 1, done.stderr
    (message,) = runs.complaint(done.stderr)
    assert "learning_rate" in message and f"step {runs.STEPS + 1}" in message and f"from step {runs.STEPS}" in message
    assert runs.STEPS in runs.steps_saved(workdir)
    for step in runs.steps_saved(workdir):
        assert all(np.isfinite(x).all() for x in runs.arrays(workdir, step).values()), step
    runs.train(workdir, **settings)
    assert runs.training(workdir)[-1]["loss"] < 1.1 * runs.training(finished)[-1]["loss"]


def test_help_teaches():
    done = runs.run([sys.executable, "train.py", "--help"])
    assert done.returncode == 0 and not done.stderr
    for word in ("text -> tokenizer", "configs/train/tiny.py", "--workdir", "resumes", "metrics.jsonl"):
        assert word in done.stdout
    with_keys = runs.run([sys.executable, "train.py", "--config=configs/train/tiny.py", "--help"])
    assert "--config.optimizer.warmup=20" in with_keys.stdout
