"""align.py as a user runs it: every method leaves a run like any other, and one that is killed ends as if it had not been."""

import functools
import json
import random
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lm
from lm.convert.to_workdir import write_workdir
from lm.train.step import model_config_of
from tests.lm.align.cross.byte_level import byte_level
from tests.lm.evals.judges.test_judges import completion, send, server
from tests.lm.examples import parameters, tiny_config
from tests.verbs import runs
from tests.verbs.test_hosts import ends, start_all, start_both

STEPS = 8
SETTINGS = {
    "steps": STEPS,
    "batch_size": 8,
    "sequence_length": 64,
    "dtype": "float32",
    "checkpoint_every": 2,
    "valid_every": 4,
    "valid_batches": 1,
    "samples_every": 4,
    "num_samples": 2,
    "data.max_examples": 60,
    "data.max_valid_examples": 12,
    "optimizer.learning_rate": 0.01,
    "optimizer.warmup": 2,
    "rollout.max_new_tokens": 6,
    "rollout.max_prompt_tokens": 56,
}
SUMS, PAIRS = "builtin:arithmetic", "builtin:preferred_style"
AHEAD = {"rl.correction": "token", "rl.minibatches": 2, "rl.max_lag": 1}
# Each method, its data and what else it needs; of those on rollouts the reward is one that a model of noise gets sometimes.
METHODS = {
    "sft": ("sft", {"data.input": SUMS, "sft.neftune_alpha": 5.0, "rewards": "answer=1"}),
    "lora": ("sft", {"data.input": SUMS, "model.adapter.rank": 2}),
    "dpo": ("dpo", {"data.input": PAIRS}),
    "kto": ("kto", {"data.input": PAIRS}),
    "orpo": ("orpo", {"data.input": PAIRS}),
    "reward": ("reward", {"data.input": PAIRS}),
    "grpo": ("grpo", {"data.input": SUMS, "rewards": "{here}/rewards.py:vowels=1", "rl.group_size": 4, "rl.beta": 0.1}),
    "ahead": ("grpo", {"data.input": SUMS, "rewards": "{here}/rewards.py:vowels=1", "rl.group_size": 4} | AHEAD),
    "ppo": ("ppo", {"data.input": SUMS, "rewards": "{here}/rewards.py:vowels=1", "rl.epochs": 2, "rl.minibatches": 2}),
    "distill": ("distill", {"data.input": SUMS, "distill.teacher": "{start}"}),
    "on_policy": ("distill", {"data.input": SUMS, "distill.teacher": "{start}", "distill.kind": "on_policy"}),
    "across": ("distill", {"data.input": SUMS, "distill.teacher": "{here}/teacher"}),
    "across_on_policy": ("distill", {"data.input": SUMS, "distill.teacher": "{here}/teacher", "distill.kind": "on_policy"}),
}
QUICK = ("grpo",)  # the others are slow tests
methods = pytest.mark.parametrize(
    "method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
REWARD = """
def vowels(prompts, completions, *, rollouts, **columns):
    return [sum(x in "aeiou" for x in text) / 6 - len(r.tokens) / 100 for text, r in zip(completions, rollouts)]
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("align")
    (folder / "rewards.py").write_text(REWARD)
    other = model_config_of(tiny_config(vocab_size=320))  # a teacher with a byte-level vocabulary
    write_workdir(folder / "teacher", other, parameters(other, seed=7, scale=4.0))
    byte_level(folder / "tokenizer", ["What is 3 + 4? 7", "9 - 2 = 7"] * 9, 300).save(folder / "teacher")
    return folder


def command(method: str, workdir: Path, start: Path, here: Path, **settings) -> list[str]:
    config, own = METHODS[method]
    keys = SETTINGS | own | {key.replace("__", "."): value for key, value in settings.items()} | {"init_from": start}
    values = [f"--config.{key}={str(value).format(here=here, start=start)}" for key, value in keys.items()]
    return [sys.executable, "align.py", f"--config=configs/align/{config}.py", f"--workdir={workdir}", *values]


def aligned(*arguments, variables=None, **settings) -> None:
    done = runs.run(command(*arguments, **settings), **(variables or {}))
    assert done.returncode == 0, done.stderr[-4000:]
    runs.plain_lines(done.stderr)


@pytest.fixture(scope="module")
def undisturbed(finished, here, tmp_path_factory) -> Callable[[str], Path]:
    """Returns the workdir of a method's run."""

    @functools.cache
    def made(method: str) -> Path:
        workdir = tmp_path_factory.mktemp(method) / "run"
        aligned(method, workdir, finished, here)
        return workdir

    return made


def measured(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without what tells the time, and without what the machine did meanwhile."""
    clocks = ("tokens_per_second", "tflops", "seconds/", "goodput", "system_")
    return [
        {name: value for name, value in values.items() if not name.startswith(clocks)}
        for values in runs.lines(workdir / "metrics.jsonl")
    ]


@methods
def test_a_run_leaves_its_files_and_a_kill_changes_nothing(method, finished, undisturbed, here, tmp_path):
    whole, killed = undisturbed(method), tmp_path / "killed"
    for name in ("config.json", "tokenizer.model", "report.html", "report.json", "metrics.jsonl"):
        assert (whole / name).is_file()
    lines = runs.training(whole)
    assert [values["step"] for values in lines] == list(range(1, STEPS + 1))
    assert all(values["grad_norm"] > 0 for values in lines[1:])
    model, tokenizer = lm.load(whole)
    start = runs.arrays(finished)
    changed = [name for name, x in runs.arrays(whole, STEPS).items() if name in start and not np.array_equal(x, start[name])]
    assert changed or method == "lora"
    assert np.isfinite(model(np.arange(5)[None] + 20)).all() and tokenizer.vocab_size <= model.config.vocab_size

    target = random.Random(method).randint(1, STEPS * 2 // 3)
    process = runs.start(command(method, killed, finished, here))
    runs.wait(process, lambda: any(values["step"] >= target for values in runs.training(killed)))
    process.kill()
    process.wait()
    aligned(method, killed, finished, here)
    assert measured(killed) == measured(whole)
    if (whole / "samples.jsonl").exists():
        assert (killed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    ours, theirs = runs.arrays(killed, STEPS), runs.arrays(whole, STEPS)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("lag", [1, 4])
def test_five_kills_change_nothing_where_rollouts_are_sampled_ahead(lag, finished, here, tmp_path):
    """At random moments of a step, so that sampling or training is under way."""
    keys, draw = {"steps": 24, "checkpoint_every": 3, "rl.max_lag": lag}, random.Random(lag)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    aligned("ahead", whole, finished, here, **keys)
    lines = runs.training(whole)
    assert [line["sample/staleness_max"] for line in lines] == [min(line["step"] - 1, lag) for line in lines]
    a_step = sorted(line["seconds/rollout"] + line["seconds/update"] for line in lines[1:])[12]
    for target in sorted(draw.sample(range(1, 22), 5)):
        process = runs.start(command("ahead", killed, finished, here, **keys))
        assert runs.wait(process, lambda: any(line["step"] >= target for line in runs.training(killed)))  # noqa: B023
        end = time.monotonic() + draw.random() * a_step
        assert runs.wait(process, lambda: time.monotonic() > end)  # noqa: B023
        process.kill()
        process.wait()
    aligned("ahead", killed, finished, here, **keys)
    assert measured(killed) == measured(whole)
    ours, theirs = runs.arrays(killed, 24), runs.arrays(whole, 24)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.slow
def test_two_processes_sample_ahead_on_devices_of_their_own(finished, here, tmp_path):
    """Of each process's three devices one samples, with half of the weights. One process is killed between two saves."""
    own = {"rl.sampling_devices": 1, "rl.sampling_tensor": 2, "rl.group_size": 2, "checkpoint_every": 2, "valid_every": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(workdir):
        return start_all([command("ahead", workdir, finished, here, **own)] * 2, tmp_path, devices=3)

    assert ends(start(whole), tmp_path)[0] == [0, 0]
    processes = start(killed)
    assert runs.wait(processes[0], lambda: any(line["step"] == 3 for line in runs.training(killed)))
    processes[1].kill()
    (first, _), (said, _) = ends(processes, tmp_path)
    assert first == 75 and "process 1 was lost" in said[-1], said
    codes, said = ends(start(killed), tmp_path)
    assert codes == [0, 0], said
    assert measured(killed) == measured(whole)
    assert {line["sample/staleness_max"] for line in runs.training(whole)} == {0, 1}
    ours, theirs = runs.arrays(killed, STEPS), runs.arrays(whole, STEPS)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_teacher_without_a_tokenizer_is_one_line(finished, here, tmp_path):
    shutil.copytree(here / "teacher", tmp_path / "teacher")
    (tmp_path / "teacher" / "tokenizer.json").unlink()
    arguments = command("across", tmp_path / "run", finished, here, **{"distill.teacher": tmp_path / "teacher"})
    done = runs.run(arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "run").exists()
    assert f"distill.teacher={tmp_path}/teacher: tokenizer: " in done.stderr.strip().splitlines()[-1]


def test_chats_of_ones_own_need_no_other_keys(finished, tmp_path):
    """The plan follows from the data; the report has answers before and after, and the next command runs as printed."""
    chats = [[("user", f"Who is {i}?"), ("assistant", f"It is {i}.")] for i in range(40)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"init_from": finished, "data.input": tmp_path / "chats.jsonl", "data.valid_fraction": 0.2, "sequence_length": 160}
    workdir = tmp_path / "run"
    line = [sys.executable, "align.py", "--config=sft", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in keys.items())]
    done = runs.run(line)
    assert done.returncode == 0, done.stderr[-4000:]
    config, report = (json.loads((workdir / name).read_text()) for name in ("config.json", "report.json"))
    steps = config["steps"]
    assert config["epochs"] == 3 and config["batch_size"] == 1 and f"{steps} steps of 1 row are 3 epochs" in done.stdout
    answers = runs.lines(workdir / "samples.jsonl")
    assert {answer["step"] for answer in answers} == {0, steps} and len(answers) == 2 * 4
    assert "held-out answers" in report["verdict"] and "n = " in report["verdict"]
    again = runs.run(line)
    assert again.returncode == 0 and f"finished at step {steps}" in again.stdout
    (tmp_path / "chats.jsonl").rename(tmp_path / "gone.jsonl")
    longer = runs.run([*line, f"--config.steps={steps + 2}"])  # a resumed run needs its input no more
    assert longer.returncode == 0, longer.stderr[-2000:]
    assert {answer["step"] for answer in runs.lines(workdir / "samples.jsonl")} == {0, steps, steps + 2}
    quiz = next(text for text in done.stdout.splitlines() if "evaluate.py" in text and "quiz.yaml" in text)
    asked = runs.run([sys.executable, *shlex.split(quiz)[1:]])
    assert asked.returncode == 0 and "quiz: acc" in asked.stdout, asked.stderr


def test_rollouts_are_reported_as_trl_names_them(undisturbed):
    workdir = undisturbed("grpo")
    line = runs.training(workdir)[-1]
    for name in (
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/vowels/mean",
        "rewards/vowels/std",
        "kl",
        "entropy",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "completions/mean_length",
        "completions/clipped_ratio",
        "sampling/sampling_logp_difference/mean",
        "seconds/rollout",
    ):
        assert name in line, sorted(line)
    assert line["sampling/sampling_logp_difference/max"] < 1e-4  # the sampler's and the trainer's, float32
    sample = runs.lines(workdir / "samples.jsonl")[0]
    assert {"step", "prompt", "completion", "rewards", "reward", "tokens", "ended"} <= sample.keys()
    report = json.loads((workdir / "report.json").read_text())
    assert {"reward", "rewards/vowels"} <= report["after"].keys() and report["method"] == "grpo"


@pytest.mark.slow
@pytest.mark.parametrize("temperature", (1.0, 0.7))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_sampler_and_trainer_are_equal_in_a_thousand_steps(dtype, temperature, finished, here, tmp_path):
    keys = {"rl.require_equal": True, "dtype": dtype, "rollout.temperature": temperature, "optimizer.learning_rate": 1e-4}
    rare = {"steps": 1000, "checkpoint_every": 500, "valid_every": 0, "samples_every": 0}
    aligned("grpo", tmp_path / "run", finished, here, **keys, **rare)
    lines = runs.training(tmp_path / "run")
    assert len(lines) == 1000 and lines[-1]["kl"] > 0
    for line in lines:
        assert line["sampling/sampling_logp_difference/max"] == 0 and line["ratio"] == 1


def test_a_run_whose_sampler_and_trainer_differ_ends_at_once(finished, here, tmp_path):
    line = command("grpo", tmp_path / "run", finished, here, **{"rl.require_equal": True, "valid_first": False})
    done = runs.run([*line, "--kernels=attention=blocks"])
    assert done.returncode == 1, done.stderr[-3000:]
    said = [text for text in runs.plain_lines(done.stderr) if "rl.require_equal" in text]
    assert len(said) == 1 and "in step 1 " in said[0] and "nats" in said[0], done.stderr[-3000:]


ASKING = """
import os

from lm.evals.judges.endpoint import endpoint

chat = endpoint(os.environ["REWARD_URL"], "judge", retries=0)


def asked(prompts, completions, **columns):
    replies = chat([[{"role": "user", "content": f"{os.getpid()} {n} {c}"}] for n, c in enumerate(completions)])
    return [float(reply.text) for reply in replies]
"""


@pytest.mark.slow
def test_of_two_hosts_one_asks_for_rewards(finished, tmp_path, monkeypatch):
    """Reinforcement learning by its default config, to the report, though no two answers are alike."""
    (tmp_path / "rewards.py").write_text(ASKING)

    def reply(handler, body, call, _):
        send(handler, completion(str(call % 5)))

    sizes = ("batch_size", "sequence_length", "data.max_examples", "data.max_valid_examples", "rollout.max_new_tokens")
    keys = {key: SETTINGS[key] for key in (*sizes, "rollout.max_prompt_tokens")} | {"steps": 2, "init_from": finished}
    keys |= {"data.input": SUMS, "rewards": f"answer=1,{tmp_path}/rewards.py:asked=1"}
    values = [f"--config.{key}={value}" for key, value in keys.items()]
    line = [sys.executable, "align.py", "--config=configs/align/grpo.py", f"--workdir={tmp_path / 'run'}", *values]
    with server(reply) as (url, calls):
        monkeypatch.setenv("REWARD_URL", url)
        codes, said = ends(start_both(line, tmp_path), tmp_path)
    assert codes == [0, 0], said
    assert (tmp_path / "run" / "report.html").exists()
    askers = {body["messages"][0]["content"].split()[0] for _, _, body in calls}
    assert len(askers) == 1 and len(calls) >= 2 * 8
    assert [values["step"] for values in runs.training(tmp_path / "run")] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "ahead"])  # which needs more devices, as above
def test_two_hosts_end_with_a_report(method, finished, here, tmp_path):
    codes, said = ends(start_both(command(method, tmp_path / "run", finished, here, steps=2), tmp_path), tmp_path)
    assert codes == [0, 0], said
    assert [values["step"] for values in runs.training(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_two_hosts_roll_out_as_one(finished, here, tmp_path):
    aligned("grpo", tmp_path / "one", finished, here, steps=3)
    codes, said = ends(start_both(command("grpo", tmp_path / "two", finished, here, steps=3), tmp_path), tmp_path)
    assert codes == [0, 0], said
    one, two = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert [values.keys() for values in one] == [values.keys() for values in two]
    for ours, theirs in zip(one, two, strict=True):
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    "config, settings, words",
    [
        ("sft", {"init_from": None}, ["init_from is missing"]),
        ("sft", {"data.input": "builtin:arithmetik"}, ["arithmetik", "arithmetic"]),
        ("sft", {"sequence_length": 4}, ["sequence_length=4", "no example is left"]),
        ("dpo", {"preference.loss": "dop"}, ["preference.loss='dop'", "dpo"]),
        ("grpo", {"rewards": "anser=1"}, ["anser", "answer"]),
        ("grpo", {"rl.group_size": 3}, ["batch_size=8", "group_size=3"]),
        ("grpo", {"sequence_length": 20}, ["sequence_length=20", "max_new_tokens"]),
        pytest.param("grpo", {"rollout.tools": "('hammer',)"}, ["hammer", "calculator"], marks=pytest.mark.slow),
        pytest.param("sft", {"chat_template": "nowhere.jinja"}, ["chat_template", "nowhere.jinja"], marks=pytest.mark.slow),
    ],
)
def test_mistakes(config, settings, words, finished, tmp_path):
    keys = SETTINGS | {"data.input": SUMS, "init_from": finished} | settings
    values = [f"--config.{key}={value}" for key, value in keys.items() if value is not None]
    workdir = tmp_path / "run"
    done = runs.run([sys.executable, "align.py", f"--config=configs/align/{config}.py", f"--workdir={workdir}", *values])
    said = [text for text in runs.complaint(done.stderr) if "examples:" not in text and not text.startswith("records")]
    assert done.returncode == 2 and len(said) == 1, done.stderr[-3000:]
    assert all(word in said[0] for word in words), said
    assert not (workdir / "config.json").exists()
