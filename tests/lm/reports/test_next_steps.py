"""The next commands of a report: commands that the verbs accept, for each kind of run."""

import re
import runpy
import shlex

import pytest

from lm.reports.next_steps import next_steps

TRAINED = {"model": {}, "dtype": "float32", "steps": 9, "data": {"input": "corpus"}}
ALIGNED = {**TRAINED, "method": "sft", "init_from": "runs/base"}
EVALUATED = {"checkpoint": "runs/sft", "tasks": "mmlu", "data_dir": "items", "limit": None}
CURATED = {"stages": "", "rules": {}, "tokenizer": ""}
RUNS = {
    "train": ({"config": TRAINED}, ["lm.generate", "align.py"]),
    "sft": ({"config": ALIGNED}, ["lm.chat", "evaluate.py", "serve.py"]),
    "grpo": ({"config": ALIGNED | {"method": "rl"}}, ["lm.chat", "serve.py"]),
    "reward": ({"config": ALIGNED | {"method": "reward"}}, ["align.py"]),
    "best_of": ({"config": ALIGNED, "best_of": {"kept": 5}}, ["lm.chat", "align.py", "align.py"]),
    "safety": ({"config": ALIGNED | {"method": "safety", "safety": {"prompts": "p"}}}, ["lm.chat", "align.py"]),
    "evaluate": ({"config": EVALUATED}, ["evaluate.py", "evaluate.py"]),
    "curate": ({"config": CURATED}, ["train.py"]),
}


def next_commands(report, workdir):
    return [step["command"] for step in next_steps(report, workdir)]


def program(command: str) -> str:
    first, second, third, *_ = [*shlex.split(command), ""]
    assert first == "python"
    return third if second == "-m" else second


@pytest.mark.parametrize("kind", RUNS)
def test_the_commands_of_a_run_exist_and_name_it(kind, tmp_path):
    report, programs = RUNS[kind]
    (run := tmp_path / "runs" / "my run").mkdir(parents=True)
    if "evaluate.py" in programs and kind == "sft":
        (run / "quiz.yaml").touch()  # of its held-out examples
    commands = next_commands(report, run)
    assert [program(command) for command in commands] == programs
    for command in commands:
        parts = shlex.split(command)
        assert any("runs/my run" in part for part in parts)
        if config := next((part.removeprefix("--config=") for part in parts if part.startswith("--config=")), None):
            keys = runpy.run_path(config)["get_config"]()
            for key in re.findall(r" '?--config\.([a-z_.]+)=", command):
                section = keys
                for name in key.split("."):
                    assert name in section, key
                    section = section.get(name)


def test_a_reward_model_becomes_the_reward_of_the_model_that_it_started_from():
    (command,) = next_commands(RUNS["reward"][0], "runs/reward")
    for part in ("--config.rewards=reward_model:runs/reward", "--config.init_from=runs/base", "--config.data.input=corpus"):
        assert part in shlex.split(command)


def test_a_tokenized_corpus_is_trained_on_as_it_is():
    config = CURATED | {"tokenizer": "runs/base", "dataset": {"sequence_length": 256}}
    (command,) = next_commands({"config": config}, "corpus")
    assert {"--config.data.input=corpus/dataset", "--config.sequence_length=256"} <= set(shlex.split(command))


def test_the_failures_of_an_evaluation_are_saved_by_its_own_command():
    typed = "python evaluate.py --config=mine.py --workdir=eval --config.checkpoint=run '--config.options=a: 1'"
    save, compare = next_commands({"config": EVALUATED, "provenance": {"command": typed}}, "eval")
    assert save == f"{typed} --config.export_failures=eval-failures"
    assert shlex.split(compare) == [
        *("python", "evaluate.py", "--config=mine.py", "--config.options=a: 1", "--workdir=OTHER-eval"),
        *("--config.checkpoint=OTHER", "--config.compare=eval"),
    ]


def test_a_safety_loop_in_which_nothing_failed_leads_to_the_model_that_it_attacked():
    config = ALIGNED | {"method": "safety", "safety": {"prompts": "p"}}
    nothing = {"config": config, "safety": {"model": "runs/base", "failing": 0}}
    assert next_commands(nothing, "runs/safe") == ["python -m lm.chat --checkpoint=runs/base"]
    cured = {"config": config, "safety": {"model": "runs/safe/round-1/sft", "failing": 0}}
    assert [program(command) for command in next_commands(cured, "runs/safe")] == ["lm.chat", "serve.py"]
    failing = {"config": config, "safety": {"model": "runs/base", "failing": 3}}
    assert "--config.init_from=runs/base" in shlex.split(next_commands(failing, "runs/safe")[1])


def test_answers_that_all_score_alike_make_no_pairs():
    report = {"config": ALIGNED, "best_of": {"kept": 5, "pairs": 0}}
    assert [program(command) for command in next_commands(report, "r")] == ["lm.chat", "align.py"]


def test_an_unfinished_run_is_resumed_by_its_own_command():
    report = {"config": TRAINED, "finished": False, "provenance": {"command": "python train.py --workdir=r"}}
    assert next_steps(report, "r") == [{"what": "Resume it", "command": "python train.py --workdir=r"}]
    assert next_commands(report | {"provenance": None}, "r") == []


@pytest.mark.parametrize("report", [{}, {"config": None}, {"config": {"model_type": "llama"}}, {"config": {"a": 1}}])
def test_of_an_unknown_run_nothing_is_said(report):
    assert next_commands(report, "r") == []
