"""Runs whose workdir, data and models lie in buckets: killed machines, several jobs, and every verb that reads a model."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import emulators
from tests.verbs import runs
from tests.verbs.test_hangs import slow
from tests.verbs.test_hosts import ends, start_both

CHATS = [
    {"messages": [{"role": "user", "content": f"Where is key {n}?"}, {"role": "assistant", "content": "Under the mat."}]}
    for n in range(40)
]


@pytest.fixture(scope="module")
def s3(text):
    with emulators.s3() as bucket:
        for path in text.iterdir():
            bucket.put(f"text/{path.name}", path.read_bytes())
        yield bucket


@pytest.fixture(scope="module")
def gs():
    with emulators.gs() as bucket:
        yield bucket


def machine(folder: Path, *buckets) -> dict[str, str]:
    """Variables of a machine whose cache is a folder, and which reaches the buckets."""
    variables = {"XDG_CACHE_HOME": str(folder)}
    for bucket in buckets:
        variables |= bucket.variables
    return variables


def fetched(bucket, name: str, to: Path) -> Path:
    """A local copy of a folder of a bucket."""
    for inside in bucket.names(name):
        (to / inside).parent.mkdir(parents=True, exist_ok=True)
        (to / inside).write_bytes(bucket.read(f"{name}/{inside}"))
    return to


def whole_steps(bucket, name: str) -> list[int]:
    names = bucket.names(name)
    return sorted(int(one.split("/")[1]) for one in names if one.endswith("/_CHECKPOINT_METADATA"))


def started(command: list[str], folder: Path, *buckets) -> subprocess.Popen:
    """A run on a machine of its own, whose cache and words are in a folder."""
    folder.mkdir()
    with open(os.devnull, "r+b") as nothing, open(folder / "said", "wb") as said:
        return runs.launch(command, runs.environment(**machine(folder, *buckets)), nothing, nothing, said)


@pytest.mark.slow
def test_a_machine_is_lost_and_another_one_goes_on(s3, text, tmp_path):
    """The end is bit for bit that of a run on one machine with files of its own. Steps are long: uploads take seconds."""
    settings = {"steps": 40, "checkpoint_every": 4, "valid_every": 0, "batch_size": 64, "sequence_length": 128}
    settings |= {"model.num_layers": 2, "model.embed_dim": 128, "model.mlp_dim": 512}
    command = runs.line("s3://bucket/lost", data__input="s3://bucket/text", **settings)
    process = started(command, tmp_path / "one", s3)
    assert runs.wait(process, lambda: whole_steps(s3, "lost")), (tmp_path / "one" / "said").read_text()
    process.kill()
    process.wait()
    assert 40 not in whole_steps(s3, "lost") and ".lock" in s3.names("lost")
    s3.system.rm_file("bucket/lost/.lock")  # the next machine would wait a minute for a sign of life

    done = runs.run(command, **machine(tmp_path / "two", s3))
    assert done.returncode == 0 and not runs.complaint(done.stderr), done.stderr
    assert "s3://bucket/lost: fetching" in done.stdout and "report  s3://bucket/lost/report.html" in done.stdout
    workdir = fetched(s3, "lost", tmp_path / "run")
    runs.train(tmp_path / "undisturbed", data__input=text, **settings)
    runs.assert_same_run(workdir, tmp_path / "undisturbed", step=40)
    assert runs.steps_saved(workdir) == runs.steps_saved(tmp_path / "undisturbed") and ".lock" not in s3.names("lost")
    report = (workdir / "report.json").read_text()
    assert json.loads(report)["config"]["data"]["input"] == "s3://bucket/text" and str(tmp_path) not in report


@pytest.mark.slow
def test_one_job_at_a_time_and_a_signal_uploads_before_the_end(s3, tmp_path):
    command = runs.line("s3://bucket/busy", data__input="s3://bucket/text/0*.txt", steps=1_000_000, checkpoint_every=0)
    process = started(slow(command, "time.sleep(0.1)"), tmp_path / "one", s3)  # which leaves the cores to the other job
    assert runs.wait(process, lambda: list(tmp_path.glob("one/lmcraft/buckets/runs/*/metrics.jsonl")))
    other = runs.run(command, **machine(tmp_path / "two", s3))
    assert other.returncode == 2 and f"in use by another run, process {process.pid} on" in other.stderr
    (line,) = runs.complaint(other.stderr)
    assert line.startswith("train.py: s3://bucket/busy is in use")
    assert not whole_steps(s3, "busy")
    process.send_signal(signal.SIGTERM)
    assert process.wait(runs.DEADLINE) == 143
    assert len(whole_steps(s3, "busy")) == 1 and ".lock" not in s3.names("busy")


@pytest.mark.slow
def test_models_of_a_bucket_are_tuned_evaluated_and_asked(s3, gs, finished, tmp_path):
    """Another tool has copied the base model into S3; the adapter goes to Google, and is read where its base has not been."""
    for path in filter(Path.is_file, finished.rglob("*")):
        s3.put(f"base/{path.relative_to(finished)}", path.read_bytes())
    s3.put("chats.jsonl", "".join(json.dumps(chat) + "\n" for chat in CHATS).encode())
    tuned = ["--config.init_from=s3://bucket/base", "--config.data.input=s3://bucket/chats.jsonl", "--config.steps=3"]
    tuned += ["--config.batch_size=4", "--config.sequence_length=64", "--config.model.adapter.rank=2", "--config.dtype=float32"]
    align = [sys.executable, "align.py", "--config=configs/align/sft.py", "--workdir=gs://bucket/chat", *tuned]
    done = runs.run(align, **machine(tmp_path / "one", s3, gs))
    assert done.returncode == 0, done.stderr
    assert whole_steps(gs, "chat") == [3]
    saved = json.loads(gs.read("chat/config.json"))
    assert saved["init_from"] == saved["tokenizer"] == "s3://bucket/base"

    said = {"config.checkpoint": "gs://bucket/chat", "config.tasks": "perplexity", "config.data_dir": tmp_path / "items"}
    (tmp_path / "items" / "perplexity").mkdir(parents=True)
    (tmp_path / "items" / "perplexity" / "texts.txt").write_text("A text that nobody has read before. " * 40)
    evaluate = [sys.executable, "evaluate.py", "--config=configs/evaluate/default.py", "--workdir=gs://bucket/eval"]
    two = machine(tmp_path / "two", s3, gs)
    done = runs.run([*evaluate, *(f"--{key}={value}" for key, value in said.items())], **two)
    assert done.returncode == 0, done.stderr
    assert json.loads(gs.read("eval/results.json"))["perplexity"]["bits_per_byte"] > 0
    assert json.loads(gs.read("eval/report.json"))["config"]["checkpoint"] == "gs://bucket/chat"

    ask = [sys.executable, "-m", "lm.generate", "--checkpoint=gs://bucket/chat", "--prompt=a", "--max_new_tokens=2"]
    done = runs.run(ask, **two)
    assert done.returncode == 0 and "fetching" not in done.stdout, done.stdout + done.stderr  # they are in the cache


def test_what_is_wrong_with_a_bucket_is_one_line(s3, gs, tmp_path):
    (tmp_path / "s3fs.py").write_text("raise ImportError('a machine without this package')\n")
    here = machine(tmp_path / "one", s3)
    for settings, variables, words in (
        ({"data__input": "s3://nobucket/text"}, here, "s3://nobucket/text/documents: there is no such bucket"),
        ({"data__input": "s3://bucket/none/"}, here, "data.input='s3://bucket/none/': no object there can be read"),
        ({"init_from": "s3://bucket/none"}, here, "s3://bucket/none: nothing is there"),
        ({"init_from": "s3://bucket/none"}, here | {"PYTHONPATH": str(tmp_path)}, "needs s3fs: pip install"),
    ):
        done = runs.run(runs.line(tmp_path / "run", **settings), **variables)
        assert done.returncode == 2, done.stderr
        (line,) = runs.complaint(done.stderr)
        assert words in line
        assert not (tmp_path / "run").exists()
    done = runs.run(runs.line("s3://nobucket/run", data__input="s3://bucket/text"), **here)
    assert done.returncode == 2 and len(runs.complaint(done.stderr)) == 1, done.stderr
    done = runs.run([sys.executable, "serve.py", "--config=configs/serve/default.py", "--workdir=s3://bucket/s"], **here)
    assert done.returncode == 2 and "only train, align, evaluate write into a bucket" in done.stderr


@pytest.mark.slow
def test_two_processes_share_a_mirror(s3, finished, tmp_path, monkeypatch):
    """The first uploads what both write. If one does not see the mirror of the other, all end with one line."""
    for name, value in machine(tmp_path / "cache", s3).items():
        monkeypatch.setenv(name, value)
    command = runs.line("s3://bucket/both", data__input="s3://bucket/text")
    codes, said = ends(start_both(command, tmp_path), tmp_path)
    assert codes == [0, 0], said
    assert any("/ocdbt.process_1/" in name for name in s3.names("both"))
    runs.assert_same_run(fetched(s3, "both", tmp_path / "run"), finished, tolerance=1e-5)

    elsewhere = ["env", f"XDG_CACHE_HOME={tmp_path / 'other'}", *command]
    codes, said = ends(start_both(command, tmp_path, elsewhere), tmp_path)
    assert codes == [2, 2] and all("process 1 does not see the folder" in lines[-1] for lines in said), said
