"""curate.py as a user runs it: to its report, through hostile files and kills, and into train.py."""

import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.verbs import runs
from tests.verbs.test_bad_input import refused
from tests.verbs.test_hosts import ends, start_both


def command(workdir: Path, source: Path | str, *keys: str, recipe: str = "gopher") -> list[str]:
    line = [
        sys.executable,
        "curate.py",
        f"--config=configs/curate/{recipe}.py",
        f"--workdir={workdir}",
        f"--config.input={source}",
        "--config.processes=1",
    ]
    return [*line, *(f"--config.{key}" for key in keys)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """Prose in several formats, beside files that nobody can read."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("pages")
    texts = [topics[name] for name in sorted(topics)][:40]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:20]))
    with gzip.open(folder / "more.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts[20:30])
    for k, text in enumerate(texts[30:]):
        paragraphs = "".join(f"<p>{paragraph}</p>" for paragraph in text.split("\n\n"))
        (folder / f"page-{k}.html").write_text(f"<html><body><nav>Home</nav><main>{paragraphs}</main></body></html>")
    (folder / "broken.jsonl.gz").write_bytes((folder / "more.jsonl.gz").read_bytes()[:5000])
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 50)
    os.mkfifo(folder / "fifo.txt")
    (folder / "zero.txt").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder)
    return folder


def read(workdir: Path, name: str = "documents") -> list[dict]:
    return [row for path in sorted((workdir / name).iterdir()) for row in pq.read_table(path).to_pylist()]


def test_from_files_to_a_report(pages, tmp_path):
    done = runs.run(command(tmp_path / "corpus", f"web={pages}", "rules.gopher_letter_words=(0.3,1)"))
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())
    page = (tmp_path / "corpus" / "report.html").read_text()
    kept, dropped = read(tmp_path / "corpus"), read(tmp_path / "corpus", "dropped")
    assert len(kept) > 3 and len(dropped) > 3 and {row["source"] for row in kept} == {"web"}
    assert f"{len(kept)} of {len(kept) + len(dropped)} documents that could be read were kept" in done.stdout
    assert "1 file was read in part: " in done.stdout and "files gave no document: " in done.stdout
    assert not any("Home" == row["text"].split("\n")[0] for row in kept)
    faults = {Path(one["path"]).name: one["reason"] for one in report["figures"]["quarantined"]}
    assert {"broken.jsonl.gz", "binary.txt", "fifo.txt", "zero.txt"} <= set(faults) and all(faults.values())
    assert "gopher_stop_words" in page and "<svg" in page and "What could not be read" in page
    assert all(f"<bdi>{pages / name}</bdi>" in page for name in ("broken.jsonl.gz", "binary.txt"))
    browsed = (tmp_path / "corpus" / "browse.html").read_text()
    assert f"{len(kept) + len(dropped)} of {len(kept) + len(dropped)} documents" in browsed and "browse.html#id=" in page


@pytest.mark.slow
def test_tokens_for_training(pages, finished, tmp_path):
    """JAX is not loaded: its threads would forbid to fork workers, which then would load everything anew for each pass."""
    keys = [
        "rules.gopher_letter_words=(0.3,1)",
        f"tokenizer={finished}",
        "dataset.sequence_length=32",
        "dataset.valid_fraction=0.1",
    ]
    done = runs.run(command(tmp_path / "corpus", f"web={pages}", *keys, "processes=2"), **runs.NO_JAX)
    assert done.returncode == 0, done.stderr[-4000:]
    dataset = tmp_path / "corpus" / "dataset"
    made = json.loads((dataset / "dataset.json").read_text())
    assert made["sources"]["web"]["train"]["rows"] > 0
    before = (dataset / "dataset.json").stat().st_mtime_ns
    assert runs.run(command(tmp_path / "corpus", f"web={pages}", *keys)).returncode == 0
    assert (dataset / "dataset.json").stat().st_mtime_ns == before
    runs.train(tmp_path / "run", data__input=dataset, steps=4)
    refused(runs.line(tmp_path / "other", data__input=dataset, sequence_length=16), "sequence_length=16", "rows of 32 tokens")
    assert runs.run(command(tmp_path / "corpus", f"web={pages}", *keys, "rules.gopher_words=(50,1000)")).returncode == 0
    refused(runs.line(tmp_path / "run", data__input=dataset, steps=8), "has changed since this run began")


@pytest.mark.slow
def test_the_installation_is_text_enough(tmp_path):
    line = [sys.executable, "curate.py", "--config=configs/curate/demo.py", f"--workdir={tmp_path / 'corpus'}"]
    done = runs.run([*line, "--config.read.max_bytes=100000", "--config.processes=1"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert {row["source"] for row in read(tmp_path / "corpus")} == {"code", "docstrings", "docs"}
    # What stays is what train.py reads.
    runs.train(tmp_path / "run", data__input=tmp_path / "corpus", steps=2, data__weights="code=2,docs=1,docstrings=1")


@pytest.mark.slow
def test_two_processes_train_on_its_tokens(pages, finished, tmp_path):
    keys = [
        "rules.gopher_letter_words=(0.3,1)",
        f"tokenizer={finished}",
        "dataset.sequence_length=32",
        "dataset.valid_fraction=0.1",
    ]
    assert runs.run(command(tmp_path / "corpus", f"web={pages}", *keys)).returncode == 0
    line = runs.line(tmp_path / "run", data__input=tmp_path / "corpus" / "dataset", steps=4)
    codes, said = ends(start_both(line, tmp_path), tmp_path)
    assert codes == [0, 0], said
    assert json.loads((tmp_path / "run" / "report.json").read_text())["finished"]


def test_a_workdir_of_another_verb(pages, finished, tmp_path):
    refused(command(finished, pages), "is that of a run of train.py, not of a corpus")


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_minus_9(pages, tmp_path, kills):
    keys = ["stages=gopher_quality,gopher_repetition,near_duplicates", "processes=2", "rules.gopher_letter_words=(0.3,1)"]
    whole = time.monotonic()
    assert runs.run(command(tmp_path / "whole", pages, *keys)).returncode == 0
    whole, draw = time.monotonic() - whole, random.Random(kills)
    for _ in range(kills):
        process = runs.start(command(tmp_path / "killed", pages, *keys))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(0.2, 0.9) * whole)
        process.kill()
        process.wait()
    assert runs.run(command(tmp_path / "killed", pages, *keys)).returncode == 0
    assert written(tmp_path / "killed") == written(tmp_path / "whole")


def written(workdir: Path) -> dict[str, bytes]:
    paths = [path for name in ("documents", "dropped") for path in (workdir / name).rglob("*") if path.is_file()]
    return {path.relative_to(workdir).as_posix(): path.read_bytes() for path in [*paths, workdir / "manifest.json"]}


@pytest.mark.parametrize(
    "keys, words",
    [
        (["stages=gopher_qualty"], ["stages", "did you mean gopher_quality?"]),
        (["rules.gopher_words=(5,1)"], ["rules.gopher_words", "above the most"]),
        (["rules.gopher_wrds=(5,9)"], ["rules.gopher_wrds", "did you mean rules.gopher_words?"]),
        (["stages=pii"], ["rules.gopher_", "no stage of the recipe measures it"]),
        (["browse.documents=-5"], ["browse.documents=-5", "use 0 or more"]),
        (["runner=spark"], ["runner='spark'", "local or beam"]),
        (["input=/no/such/place"], ["input='/no/such/place'"]),
        (["read.format=docx"], ["format='docx'", "warc"]),
        (["tokenizer=/no/such/place"], ["tokenizer", "/no/such/place"]),
    ],
)
def test_faults(pages, tmp_path, keys, words):
    refused(
        [part for part in command(tmp_path / "run", pages, *keys) if not keys[0].startswith("input") or str(pages) not in part],
        *words,
    )
    assert not (tmp_path / "run").exists()
