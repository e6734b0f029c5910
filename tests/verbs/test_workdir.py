"""One job at a time writes a workdir, and what a run is does not change from one start to the next."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

import lm
from configs.curate import default as curation
from lm.convert.source import open_source
from lm.convert.to_published import to_published
from lm.errors import UserError
from lm.runs.lock import locked
from lm.runs.workdir import check_record, read_config, recorded, save_record
from tests.verbs import runs
from tests.verbs.test_bad_input import contents, refused
from tests.verbs.test_hosts import ends, start_both

HOLD = """
import os, sys
from pathlib import Path
from lm.runs.lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    print(os.getpid(), child, flush=True) if child else None
    os.read(0, 1)  # until the test closes the pipe
"""
SFT = {
    "data.input": "builtin:arithmetic",
    "data.max_examples": 40,
    "batch_size": 4,
    "sequence_length": 64,
    "steps": 2,
    "dtype": "float32",
    "valid_batches": 1,
    "samples_every": 0,
}


def align(workdir: Path, method: str = "sft", **settings) -> list[str]:
    keys = SFT | {key.replace("__", "."): value for key, value in settings.items()}
    values = [f"--config.{key}={value}" for key, value in keys.items()]
    return [sys.executable, "align.py", f"--config=configs/align/{method}.py", f"--workdir={workdir}", *values]


def evaluate(workdir: Path, checkpoint: Path, folder: Path, **settings) -> list[str]:
    (folder / "perplexity").mkdir(exist_ok=True)
    (folder / "perplexity" / "text.txt").write_text("A text that nobody has read before. " * 9)
    keys = {"checkpoint": checkpoint, "tasks": "perplexity", "data_dir": folder} | settings
    values = [f"--config.{key}={value}" for key, value in keys.items()]
    return [sys.executable, "evaluate.py", "--config=configs/evaluate/default.py", f"--workdir={workdir}", *values]


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# One job at a time.


def test_a_second_run_is_refused_and_a_killed_one_holds_nothing(fresh, text, tmp_path):
    """Whatever the second one is: another verb, one process or two. Readers are welcome."""
    long = runs.line(fresh, data__input=text, steps=10**6, checkpoint_every=50, keep_last=10**6)
    short = runs.line(fresh, data__input=text, steps=5, checkpoint_every=0)
    process = runs.start(long)
    try:
        assert runs.wait(process, lambda: runs.steps_saved(fresh)), runs.said_by(long).read_text()
        process.send_signal(signal.SIGSTOP)  # it waits meanwhile, and holds what it holds
        words = (f"{fresh} is in use", f"process {process.pid} on ", "--workdir")
        refused(short, *words)
        codes, said = ends(start_both(short, tmp_path), tmp_path)
        assert codes == [2, 2], said
        for lines in said:
            assert [line for line in lines if line.startswith("train.py: ") and all(word in line for word in words)], said
        done = runs.run([sys.executable, "-m", "lm.generate", f"--checkpoint={fresh}", "--prompt=a", "--max_new_tokens=2"])
        assert done.returncode == 0, done.stderr[-2000:]
        process.send_signal(signal.SIGCONT)
        reached = len(runs.training(fresh))
        runs.wait(process, lambda: len(runs.training(fresh)) > reached + 5)  # nobody disturbed it
    finally:
        process.kill()
        process.wait()
    runs.train(fresh, data__input=text, steps=5, checkpoint_every=0)
    assert not (fresh / ".lock").exists()


def test_a_lock_dies_with_its_process_and_not_with_its_children(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=runs.REPOSITORY,
        env=runs.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    pid, child = map(int, holder.stdout.readline().split())
    with pytest.raises(UserError, match=f"run is in use by another run, process {pid} on "), locked(tmp_path / "run"):
        pass
    os.kill(pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "run"):
        os.kill(child, 0)  # it still lives
    holder.stdin.close()  # which ends the child


@pytest.mark.parametrize("verb", ["safety", pytest.param("best_of", marks=pytest.mark.slow), "evaluate"])
def test_every_verb_holds_its_workdir(verb, finished, tmp_path):
    workdir = tmp_path / "run"
    line = evaluate(workdir, finished, tmp_path) if verb == "evaluate" else align(workdir, verb, init_from=finished)
    with locked(workdir):
        refused(line, f"{workdir} is in use", f"process {os.getpid()} on ")
        assert [path.name for path in workdir.iterdir()] == [".lock"]
    assert not workdir.exists()


# One run in a workdir.


@pytest.mark.parametrize(
    "key, value",
    [
        ("data.input", "README.md"),
        ("data.max_bytes", 1000),
        ("data.valid_fraction", 0.2),
        ("seed", 1),
        ("sequence_length", 64),
        ("init_from", "{other}"),
        ("tokenizer", "{other}"),
        ("model.embed_dim", 64),
    ],
)
def test_what_a_run_is_does_not_change(key, value, finished, tmp_path):
    value = value.format(other=tmp_path / "other") if isinstance(value, str) else value
    with pytest.raises(UserError, match=f"^{key} is .* in {finished} and {value} in this config.*another --workdir"):
        check_record(saved(finished, **{key: value}), finished)


def saved(workdir: Path, **changes) -> ml_collections.ConfigDict:
    """The config of the run in a workdir, with other values."""
    config = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def of(kind: str, name: str, **settings) -> ml_collections.ConfigDict:
    """A config file's config, with other values."""
    config = importlib.import_module(f"configs.{kind}.{name}").get_config()
    config.update_from_flattened_dict({key.replace("__", "."): str(value) for key, value in settings.items()})
    return config


def test_the_same_paths_and_files_may_have_other_names(finished, text, tmp_path, monkeypatch):
    monkeypatch.chdir(text.parent)
    shutil.copy(finished / "tokenizer.model", tmp_path / "own.model")
    named = {"data.input": f"../{text.parent.name}/{text.name}", "tokenizer": f"{tmp_path}/own.model"}
    check_record(saved(finished, **named), finished)


def test_before_there_are_weights_the_model_may_change(finished, tmp_path):
    shutil.copy(finished / "config.json", tmp_path)
    check_record(saved(finished, **{"model.embed_dim": 64, "sequence_length": 64}), tmp_path)
    with pytest.raises(UserError, match="^data.input is "):  # the tokenizer was trained on it
        check_record(saved(finished, **{"data.input": "README.md"}), tmp_path)


def test_a_workdir_whose_record_has_keys_that_are_gone_goes_on(tmp_path):
    config = curation.get_config()
    save_record(config, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(record | {"against": "", "index": True}))
    check_record(config, tmp_path)


def test_a_finished_run_says_so_and_keeps_its_report(copy, text):
    before = contents(copy)
    done = runs.run(runs.line(copy, data__input=text, valid_every=7))
    assert done.returncode == 0 and f"{copy} is finished at step {runs.STEPS}: raise steps" in done.stdout
    words = ("optimizer.learning_rate: 0.002 → 0.0001", "batch_size: 8 → 16", "use another --workdir", "set the old values")
    refused(runs.line(copy, data__input=text, optimizer__learning_rate=1e-4, batch_size=16), "train.py: ", *words)
    assert contents(copy) == before


def test_a_workdir_of_another_kind_is_refused(finished, tmp_path):
    for name, config in (("sft", {"method": "sft"}), ("evaluation", {"checkpoint": "x", "tasks": "y"}), ("import", {})):
        (tmp_path / name).mkdir()
        config = config if "tasks" in config else {"dtype": "float32", "model": {}, **config}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text('{"model_type": "llama"}')
    sft = of("align", "sft", init_from=finished)
    for config, workdir, words in (
        (sft, finished.parent, f"init_from={finished} lies in --workdir={finished.parent}"),
        (sft, finished, f"init_from={finished} is the workdir itself"),
        (sft, finished / "data" / "sft", f"lies in {finished}/data"),
        (of("align", "sft", init_from="elsewhere"), finished, "a run of train.py, not of a run of align.py"),
        (of("align", "best_of", init_from="elsewhere"), finished, "a run of train.py, not of a run of align.py"),
        (of("align", "safety", init_from="elsewhere"), finished, "a run of train.py, not of a run of align.py"),
        (of("align", "dpo", init_from=finished), tmp_path / "sft", "method is sft in "),
        (of("train", "tiny"), tmp_path / "sft", "a run of align.py, not of a run of train.py"),
        (of("train", "tiny"), tmp_path / "evaluation", "an evaluation, not of a run of train.py"),
        (of("train", "tiny"), tmp_path / "import", "an imported model: name a new folder, and --config.init_from="),
        (of("train", "tiny"), tmp_path / "published", "a Hugging Face checkpoint"),
        (of("evaluate", "default", checkpoint=finished), tmp_path / "sft", "a run of align.py, not of an evaluation"),
        (of("evaluate", "default", checkpoint=finished), finished, f"checkpoint={finished} is the workdir itself"),
        (of("evaluate", "default", checkpoint=finished), tmp_path / "evaluation", "checkpoint is x in "),
    ):
        with pytest.raises(UserError, match=words):
            check_record(config, workdir, adopted=False)
    check_record(sft, finished / "sft", adopted=False)  # inside of what it starts from is a place of its own


def test_a_run_that_starts_from_its_own_workdir_writes_nothing(copy, finished):
    before = contents(copy)
    refused(align(copy, init_from=copy), f"init_from={copy} is the workdir itself")
    assert contents(copy) == before


def test_best_of_goes_on_in_its_workdir(finished, tmp_path):
    config = of("align", "best_of", init_from=finished)
    (tmp_path / "run").mkdir()
    save_record(recorded(config, tmp_path / "run"), tmp_path / "run")
    check_record(config, tmp_path / "run")
    check_record(config, Path(shutil.move(tmp_path / "run", tmp_path / "moved")))


# Records that are damaged.

DAMAGES = {"empty": "", "truncated": '{"steps": 1', "no_object": "[1, 2]", "no_config": '{"steps": 3}'}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_config_is_mended_by_the_newest_checkpoint(damage, copy, finished, capsys):
    (copy / "config.json").write_text(DAMAGES[damage])
    whole = json.loads((finished / "config.json").read_text())
    assert read_config(copy) == whole and (copy / "config.json").read_text() == DAMAGES[damage]  # a reader writes nothing
    with pytest.raises(UserError, match="^model.num_layers is 1 in .* and 2 in this config"):
        check_record(saved(finished, **{"model.num_layers": 2}), copy)
    with locked(copy):
        assert f"{copy}/config.json is damaged: it is now config.json.damaged" in capsys.readouterr().out
    assert json.loads((copy / "config.json").read_text()) == whole
    assert (copy / "config.json.damaged").read_text() == DAMAGES[damage]


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_config_that_is_no_file_is_mended_too(kind, copy, finished):
    (copy / "config.json").unlink()
    (copy / "config.json").symlink_to("config.json") if kind == "link" else os.mkfifo(copy / "config.json")
    with locked(copy):
        assert (copy / "config.json").read_text() == (finished / "config.json").read_text()


def test_readers_of_a_damaged_config_go_on_by_the_checkpoint(copy, tmp_path):
    (copy / "config.json").write_text("")
    assert lm.load(copy)[0].config.num_layers == 1
    to_published(copy, tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_hidden_layers"] == 1


def test_a_damaged_config_without_a_checkpoint_is_one_line(fresh, text):
    (fresh / "config.json").write_text('{"steps"')
    before = contents(fresh)
    cure = (f"{fresh}/config.json cannot be read as JSON", "delete it to start again")
    refused(runs.line(fresh, data__input=text), *cure)
    for read in (lm.load, open_source):
        with pytest.raises(UserError, match=".*".join(cure)):
            read(fresh)
    assert contents(fresh) == before


def test_changed_settings_and_damaged_records_are_named(copy, text):
    for name in ("stages.json", "report.json"):
        (copy / name).write_text("{")
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('[1]\n{"step": "x"}\n{"st')
    (baselines,) = copy.glob("data/*/baselines.json")
    baselines.write_text("")
    done = runs.run(runs.line(copy, data__input=text, steps=runs.STEPS + 1, optimizer__learning_rate=1e-3))
    assert done.returncode == 0, done.stderr[-2000:]
    said = [row for row in done.stdout.splitlines() if row.startswith("changed: ")]
    assert said == ["changed: optimizer.learning_rate: 0.002 → 0.001", f"changed: steps: {runs.STEPS} → {runs.STEPS + 1}"]
    assert all(f"{path} is damaged" in done.stdout for path in (copy / "stages.json", baselines))
    assert [row["step"] for row in runs.training(copy)] == list(range(1, runs.STEPS + 2))
    now = json.loads((copy / "config.json").read_text())
    assert now["steps"] == runs.STEPS + 1 and now["optimizer"]["learning_rate"] == 1e-3
    assert json.loads((copy / "report.json").read_text())["finished"] is True
