"""python -m data.filters.classifier as a user runs it, and its model in a recipe."""

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.curate import default
from data.recipe.run import run
from lm.errors import UserError
from tests.verbs import runs

ADVERTS = "offer cheap watches buy now click free money pills winner limited deal bonus order casino".split()


def command(*flags: str) -> subprocess.CompletedProcess:
    return runs.run([sys.executable, "-m", "data.filters.classifier", *flags])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Paragraphs of Python's help, and adverts made of the words above."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    prose = [part for name in sorted(topics) for part in topics[name].split("\n\n") if len(part) > 200][:400]
    adverts = [" ".join(rng.choice(ADVERTS, 40)) for _ in range(150)]
    for name, texts in (("good", prose), ("bad", [*adverts, *adverts[:20], prose[0]])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("models") / "prose"
    done = command(
        f"--good={files}/good.jsonl", f"--bad={files}/bad.jsonl", f"--out={out}", "--steps=100", "--bits=16", "--seed=2"
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_figures_are_printed_and_stored(trained):
    out, printed = trained
    about = json.loads((out / "classifier.json").read_text())
    assert about["test"]["auc"] > 0.99 and f"AUC {about['test']['auc']:.4f}" in printed
    assert about["documents"]["in_both"] == 1
    assert sum(about["documents"][part]["bad"] for part in ("train", "valid", "test")) == 150
    assert about["settings"] == {"ngrams": 2, "characters": 0, "bits": 16}
    assert {word for one in about["telling"]["bad"] for word in one["ngram"].split()} <= set(ADVERTS)
    assert "drop below" in printed and "most telling of bad" in printed and str(out) in printed


def test_the_same_flags_give_the_same_bytes(files, trained, tmp_path):
    out, _ = trained
    flags = (f"--good={files}/good.jsonl", f"--bad={files}/bad.jsonl", "--steps=100", "--bits=16", "--seed=2")
    assert command(*flags, f"--out={tmp_path}").returncode == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in out.iterdir()
    }


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--god=x"], "good"),
        (["--good=x", "--out=o"], "--bad is missing"),
        (["--good=/nowhere", "--bad=/nowhere", "--out=o"], "/nowhere"),
        (["--good=x", "--bad=y", "--out=o", "--bits=3"], "bits"),
        (["--good=x", "--bad=y", "--out=README.md"], "file"),
    ],
)
def test_faults_are_one_line(flags, told, tmp_path):
    done = command(*flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and told in done.stderr


def test_one_side_alone_is_refused(files, tmp_path):
    done = command(f"--good={files}/good.jsonl", f"--bad={files}/good.jsonl", f"--out={tmp_path}/m")
    assert done.returncode == 2 and "needs both" in done.stderr and not (tmp_path / "m").exists()


def test_help_teaches():
    done = command("--help")
    assert done.returncode == 0 and "--good=" in done.stdout and "--bits" in done.stdout


def config_of(files: Path, model: str) -> dict:
    config = default.get_config()
    config.input, config.stages, config.processes = f"{files}/bad.jsonl,{files}/good.jsonl", "classifier,gopher_quality", 1
    config.classifier.model = model
    config.rules.classifier_prose = (0.5, 1)
    return config.to_dict()


def test_a_recipe_drops_what_the_classifier_finds_bad(files, trained, tmp_path):
    out, _ = trained
    run(config_of(files, f"prose={out}"), tmp_path)
    kept = [row for path in (tmp_path / "documents").iterdir() for row in pq.read_table(path).to_pylist()]
    dropped = [row for path in (tmp_path / "dropped").iterdir() for row in pq.read_table(path).to_pylist()]
    assert min(row["classifier_prose"] for row in kept) >= 0.5
    assert {row["reason"] for row in dropped} == {"classifier_prose"} and 168 <= len(dropped) <= 175


def test_another_model_in_the_folder_makes_its_stage_anew(files, trained, tmp_path):
    model = tmp_path / "model"
    model.mkdir()

    def stages() -> set[str]:
        run(config_of(files, f"prose={model}"), tmp_path / "run")
        return {path.name for path in (tmp_path / "run" / "stages").iterdir() if path.is_dir()}

    for path in trained[0].iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    before = stages()
    flags = (f"--good={files}/good.jsonl", f"--bad={files}/bad.jsonl", f"--out={model}", "--steps=50", "--bits=16")
    assert command(*flags).returncode == 0
    after = stages()
    anew = {name.rsplit("-", 1)[0] for name in after - before}
    assert "classifier" in anew and not anew & {"read", "gopher_quality"}


def test_a_recipe_without_a_model_is_refused(files, tmp_path):
    with pytest.raises(UserError, match="classifier.model is empty"):
        run(config_of(files, ""), tmp_path)
