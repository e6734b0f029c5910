"""Mistakes in values and paths are answered before JAX loads, sizes that no machine has before anything is computed."""

import collections
import json
import shutil
import sys
import types
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.align import dpo
from configs.train import default, tiny
from lm.align import losses, settings
from lm.align.checks import check_alignment
from lm.errors import UserError
from lm.evals.checks import settings_of
from lm.evals.run import task_results
from lm.evals.task import Outcome
from lm.kernels import divergence
from lm.parallel.mesh import make_mesh
from lm.train.checks import check_training
from lm.train.fit import check_memory
from lm.train.start import adopt
from tests.verbs import runs
from tests.verbs.test_bad_input import refused

TRAIN = ["train.py", "--config=configs/train/tiny.py"]
ALIGN = ["align.py", "--config=configs/align/sft.py", "--config.init_from={run}", "--config.data.input=builtin:arithmetic"]
EVALUATE = ["evaluate.py", "--config=configs/evaluate/default.py", "--config.checkpoint={run}", "--config.tasks=mmlu"]


@pytest.mark.parametrize(
    "line, argument, words",
    [
        (TRAIN, "data.input=/nowhere/text", ["data.input='/nowhere/text'"]),
        (TRAIN, "data.input=nowhere/*.txt", ["data.input='nowhere/*.txt'"]),
        (TRAIN, "data.input=lm2b", ["'lm2b'", "nearest: 'lm1b'"]),
        (TRAIN, "data.weights=code", ["data.weights='code'", "code=2,docs=1"]),
        (TRAIN, "init_from=nowhere", ["init_from=nowhere: no such folder"]),
        (TRAIN, "tokenizer=LICENSE", ["tokenizer", "LICENSE is not a SentencePiece model"]),
        (TRAIN, "steps=many", ["steps=many", "int"]),
        (TRAIN, "seed=9223372036854775808", ["seed=9223372036854775808", "at most 9223372036854775807"]),
        (TRAIN, "seed=-1", ["seed=-1", "at least 0"]),
        (TRAIN, "sequence_length=300000", ["sequence_length=300000", "model.max_positions=2048"]),
        (TRAIN, "batch_size=1000000000000", ["batch_size=1000000000000", "at most 2147483647"]),
        (TRAIN, "model.vocab_size=1000000000000", ["model.vocab_size=1000000000000", "at most 2147483647"]),
        (TRAIN, "model.num_layers=1000000000000", ["model.num_layers=1000000000000", "at most 10000"]),
        (TRAIN, "evals.tasks=mmmlu", ["evals: task 'mmmlu'", "did you mean mmlu?"]),
        (ALIGN, "data.input=nowhere.jsonl", ["data.input='nowhere.jsonl'"]),
        (ALIGN, "data.input=builtin:sums", ["builtin:sums: no such task"]),
        (ALIGN, "init_from=nowhere", ["init_from=nowhere: no such folder"]),
        (ALIGN, "method=stf", ["method='stf'", "safety"]),
        (ALIGN, "sft.loss=mle", ["sft.loss='mle'", "nll, dft"]),
        (ALIGN, "rewards=answr=1", ["'answr'", "the nearest is 'answer'"]),
        (ALIGN, "chat_template=nowhere", ["chat_template=nowhere: no such file"]),
        (EVALUATE, "checkpoint=nowhere", ["checkpoint=nowhere: no such folder"]),
        (EVALUATE, "tasks=mmmlu", ["task 'mmmlu'", "did you mean mmlu?"]),
        (EVALUATE, "data_dir=nowhere", ["data_dir=nowhere: no such folder"]),
        (EVALUATE, "limit=0", ["limit=0.0 must be above 0"]),
        (EVALUATE, "tasks=mmlu", ["task mmlu: --config.data_dir is missing"]),
        ([*EVALUATE[:3], "--config.data_dir=docs"], "tasks=bbq", ["docs/bbq: no file", "put the benchmark's files there"]),
        ([*EVALUATE[:3], "--config.data_dir=docs"], "tasks=xstest", ["docs/xstest: no file"]),
        (EVALUATE, "compare=nowhere", ["nowhere/results.json"]),
        (["-m", "lm.generate", "--prompt=a", "--checkpoint=nowhere"], "", ["--checkpoint=nowhere: no such folder"]),
        (["-m", "lm.convert", "export", "--to=x", "--workdir=nowhere"], "", ["nowhere: no such folder"]),
    ],
)
def test_mistakes_are_answered_without_jax(line, argument, words, finished, tmp_path):
    key = argument.split("=")[0]
    given = [part.format(run=finished) for part in line if not (key and part.startswith(f"--config.{key}="))]
    given += [f"--workdir={tmp_path}/run", f"--config.{argument}"] if argument else []
    refused([sys.executable, *given], *words, **runs.NO_JAX)
    assert not (tmp_path / "run").exists()


def test_a_run_that_stands_needs_neither_its_start_nor_its_text(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    config.data.input, config.init_from = str(tmp_path / "gone"), str(tmp_path / "gone too")
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    check_training(config, workdir)
    with pytest.raises(UserError, match="gone"):
        check_training(config, tmp_path / "new")


def test_names_of_settings_are_those_that_there_are():
    assert settings.CHOICES["preference.loss"] == (*losses.LOSSES, "kto")
    assert settings.CHOICES["distill.divergence"] == tuple(divergence.KINDS)
    config = dpo.get_config()
    config.init_from, config.data.input, config.preference.loss = "somewhere", "builtin:preferred_style", "dop"
    with pytest.raises(UserError, match="preference.loss='dop' is none of dpo, "):
        check_alignment(config, Path("nowhere"))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sequence_length": 500_000, "model.max_positions": 500_000}, "sequence_length=500000.*GiB for activations"),
        ({"batch_size": 2**30}, "batch_size=1073741824.*lower sequence_length or batch_size"),
        ({"model.vocab_size": 2**31 - 8}, "GiB for parameters, gradients and optimizer.*lower model sizes"),
    ],
)
def test_what_no_machine_can_hold_is_refused_with_the_numbers(changes, words):
    config = default.get_config()
    mesh = make_mesh(config.mesh)
    check_memory(config, mesh)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        check_memory(config, mesh)


def test_an_alignment_that_no_machine_can_hold_is_refused_before_its_data_are_read(finished, tmp_path):
    broken = tmp_path / "chats.jsonl"
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    broken.write_text(f"{json.dumps(chat)}\n" * 300 + "this is no JSON\n")
    keys = [f"--config.init_from={finished}", f"--config.data.input={broken}", "--config.sequence_length=64"]
    line = [sys.executable, "align.py", "--config=sft", f"--workdir={tmp_path / 'run'}", *keys]
    refused([*line, "--config.batch_size=16777216"], "batch_size=16777216", "GiB for activations", "raise accumulate")
    assert not (tmp_path / "run").exists()
    said = runs.run(line).stderr  # without it, the size of the batch follows from the data
    assert f"{broken}:301" in said and "GiB" not in said


def test_a_rotary_model_is_made_for_the_longest_sequences_that_it_is_trained_on(finished, tmp_path):
    config = tiny.get_config()
    config.init_from, config.sequence_length = str(finished), 4096
    adopt(config, tmp_path)
    assert config.model.max_positions == 4096


class Empty:
    """A task whose files hold nothing that can be scored."""

    name, versions = "empty", {}

    def run(self, subject) -> Outcome:
        return Outcome({"acc": None, "n": 0, "problems": {"malformed": {"n": 3, "examples": ["row 1: no answer"]}}}, [])


def test_a_task_without_an_item_is_an_error(tmp_path):
    (tmp_path / "tasks").mkdir()
    with pytest.raises(UserError, match=r"empty: no item was scored \(malformed: row 1: no answer\)"):
        task_results(Empty(), types.SimpleNamespace(stats=collections.Counter()), tmp_path, {})
    assert list((tmp_path / "tasks").iterdir()) == []


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_leaves_items(limit):
    from configs.evaluate.default import get_config

    config = get_config()
    config.limit = limit
    with pytest.raises(UserError, match="limit="):
        settings_of(config)


@pytest.mark.slow
def test_the_largest_seed_trains(fresh, text):
    workdir = fresh.parent / "seeded"
    runs.train(workdir, data__input=text, steps=1, seed=2**63 - 1)
