"""Staged weights of train.py: what is read, what is recorded and reported, and a resumed run on another mesh."""

import json
import signal

import pytest

from data.sources.source import Document, Source
from data.text.batches import TextBatches
from data.text.dataset import prepare
from data.text.sentencepiece_tokenizer import train
from data.text.split import survey
from data.text.weights import Weights, parse_weights
from tests.verbs import runs

WEIGHTS = "0: many=3,few=1; 0.5: few=1"


@pytest.fixture(scope="module")
def dataset(text, tmp_path_factory) -> str:
    """A dataset of two sources of very different size, as curate.py writes it."""
    folder = tmp_path_factory.mktemp("sources")
    texts = [path.read_text() for path in sorted(text.iterdir())]
    tokenizer = train(texts, folder / "tokenizer", vocab_size=384, sample_bytes=1 << 20, seed=0, threads=1)
    parts = {"many": texts[:30], "few": texts[30:]}
    sources = [
        Source(name, lambda some=some: (Document(str(n), text, "here") for n, text in enumerate(some)))
        for name, some in parts.items()
    ]
    kept = survey(sources, valid_fraction=0.1, seed=0, max_valid_bytes=1 << 20)
    prepare(folder / "dataset", sources, tokenizer, sequence_length=32, survey=kept, processes=1)
    tokenizer.save(folder / "dataset")
    return str(folder / "dataset")


@pytest.fixture(scope="module")
def staged(dataset, tmp_path_factory):
    """(workdir, weights.json) of a finished run with staged weights, the first of which come from a file."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "weights.json").write_text(json.dumps({"many": 3, "few": 1}))
    weights = WEIGHTS.replace("many=3,few=1", str(folder / "weights.json"))
    runs.train(folder / "run", data__input=dataset, data__weights=weights, steps=40)
    return folder / "run", folder / "weights.json"


def test_each_stage_reads_its_sources_and_the_report_says_so(staged, dataset):
    workdir, _ = staged
    batches = TextBatches(dataset, batch_size=8, seed=0, weights=Weights(parse_weights(WEIGHTS), 40))
    ids = [line["ids"] for line in runs.lines(workdir / "ids.jsonl")]
    assert ids == [batches.global_row_ids(n).tolist() for n in range(40)]
    few = [sum(id_ in batches.ranges["few"] for id_ in step) for step in ids]
    assert sum(few[:20]) == 40 and few[20:] == [8] * 20
    report = json.loads((workdir / "report.json").read_text())["mixture"]
    assert [(stage["step"], stage["shares"]) for stage in report["stages"]] == [
        (0, {"many": 0.75, "few": 0.25}),
        (20, {"few": 1.0}),
    ]
    rows = {name: sum(id_ in batches.ranges[name] for step in ids for id_ in step) for name in ("many", "few")}
    assert {name: row["epochs"] for name, row in report["sources"].items()} == {
        name: pytest.approx(rows[name] / len(batches.ranges[name])) for name in rows
    }
    tokens = sum(row["tokens"] for row in report["sources"].values())
    assert tokens == pytest.approx(json.loads((workdir / "report.json").read_text())["training"]["tokens"], rel=0.02)
    assert json.loads((workdir / "config.json").read_text())["data"]["weights"] == "0.0: many=3.0,few=1.0; 0.5: few=1.0"


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_its_stage(staged, dataset, tmp_path):
    workdir, _ = staged
    settings = dict(data__input=dataset, data__weights=WEIGHTS, steps=40, checkpoint_every=0)
    process = runs.start(runs.line(tmp_path / "run", **settings))
    runs.wait(process, lambda: len(runs.training(tmp_path / "run")) >= 5)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert runs.steps_saved(tmp_path / "run")[0] < 40
    runs.train(tmp_path / "run", **settings)
    assert runs.lines(tmp_path / "run" / "ids.jsonl") == runs.lines(workdir / "ids.jsonl")


@pytest.mark.slow
def test_a_source_that_is_read_often_is_named(dataset, tmp_path):
    weights, steps = "epochs: few=6,many=0.02", 60
    done = runs.run(runs.line(tmp_path / "run", data__input=dataset, data__weights=weights, steps=steps, checkpoint_every=0))
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"warning: data.weights: {steps} steps read the sources" in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())["mixture"]
    assert report["warnings"] and all(f"warning: {line}" in done.stdout for line in report["warnings"])
    assert ("few is read" in done.stdout) == (report["sources"]["few"]["epochs"] > 4)


def test_an_unknown_source_ends_the_run_in_one_line(dataset, tmp_path):
    done = runs.run(runs.line(tmp_path / "run", data__input=dataset, data__weights="much=1"))
    assert done.returncode == 2
    assert "data.weights.much: no such source with training text; the nearest is 'many'" in done.stderr
