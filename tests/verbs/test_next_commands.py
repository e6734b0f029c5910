"""The commands that a run prints at its end run as printed, from a shell in which no environment is active.

Words in capitals, which only the user can name, are replaced. Keys are added to what would train for long, and a server gets a
free port.
"""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import httpx
import portpicker
import pytest

from lm.reports.page import BLANK
from tests import compiled
from tests.conftest import FAST_TO_COMPILE
from tests.verbs import runs
from tests.verbs.conftest import made_once

BARE = {"PATH": "/usr/bin:/bin"}  # of a shell without an environment: the commands then name their interpreter
CHEAP = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_TO_COMPILE, **compiled.variables()}
NEXT = re.compile(r"^next: (.*)\n {4}(.*)$", re.MULTILINE)
SHORT = ("steps=2", "sequence_length=160", "data.valid_fraction=0.2")
TASKS = (
    "data.input=builtin:arithmetic",
    "data.max_examples=8",
    "sequence_length=128",
    "rollout.max_prompt_tokens=56",
    "steps=2",
)
REWARD = "def long(prompts, completions, **columns):\n    return [1.0 + len(text) for text in completions]\n"
# The runs of align.py: config and keys; W is the folder of all runs. The first model is that of train.py.
ALIGNED = {
    "sft": ("sft", "data.input=W/chats.jsonl", *SHORT),
    "dpo": ("dpo", "data.input=W/pairs.jsonl", *SHORT),
    "reward": ("reward", "data.input=W/pairs.jsonl", *SHORT),
    "grpo": ("grpo", *TASKS, "rewards=W/reward.py:long", "rollout.max_new_tokens=4", "batch_size=8"),
    "best_of": ("best_of", *TASKS, "rewards=W/reward.py:long", "rollout.max_new_tokens=64", "best_of.n=32"),
    "safety": ("safety", "safety.limit=2", "safety.sft.steps=1", "safety.dpo.steps=1", "rollout.max_new_tokens=4"),
}
ATTACKS = ("safety.train_families=direct", "safety.held_out_families=leetspeak")
ALIGNED["safety"] += (*ATTACKS, "safety.judge=refusal", "init_from=W/sft")
ALIGNED["harmless"] = (*ALIGNED["safety"], "safety.judge=rules")  # no attack succeeds


class Next(NamedTuple):
    """A step that a run names. added: keys that end its training early. stdin: what is typed into it."""

    run: str
    what: str
    added: str = ""
    stdin: str = ""

    def __str__(self) -> str:
        return f"{self.run}-{self.what}".replace(" ", "_")


ASSISTANT = "--chats={folder}/chats.jsonl --model={model} --workdir={folder}/assistant"
PAGE = "a page where both models answer, at http://127.0.0.1:8000/?beside=assistant"
TALK, ASK, SERVE = "talk to it", "ask it the questions that were held out", "serve it behind OpenAI's API"
QUICK = [Next("train", "let it write"), Next("sft", TALK, stdin="Who is 1?\n"), Next("sft", ASK), Next("sft", SERVE)]
SLOW = [
    Next("curate", "train on it", "--config.steps=1"),
    Next("train", "teach it to chat"),
    *(Next("dpo", what, stdin="Who is 1?\n") for what in (TALK, ASK, SERVE)),
    Next("reward", "use it as the reward", "--config.steps=1 --config.rollout.max_new_tokens=4"),
    *(Next("grpo", what, stdin="1 + 1\n") for what in (TALK, SERVE)),
    Next("best_of", TALK, stdin="1 + 1\n"),
    Next("best_of", "fine-tune another model on the answers that were kept"),
    Next("best_of", "train it on pairs of its best and worst answers"),
    Next("safety", TALK, stdin="Hello\n"),
    Next("safety", "train on what still fails", " ".join(f"--config.{key}" for key in ALIGNED["safety"][1:-1])),
    Next("harmless", TALK, stdin="Hello\n"),
    *(Next("assistant", what, stdin="Who is 1?\n") for what in (TALK, ASK, SERVE, PAGE, "export it for Ollama and llama.cpp")),
    Next("evaluate", "save what it got wrong, as data for align.py"),
    Next("evaluate", "compare another model with it"),
]


@pytest.fixture(scope="module")
def folder(shared) -> Path:
    return made_once(shared / "next" / "runs", write_inputs)


def write_inputs(folder: Path) -> None:
    folder.mkdir()
    said = [(f"Who is {n}?", f"It is {n}.") for n in range(24)]
    chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in said]
    rows = {
        "chats": [{"messages": messages} for messages in chats],
        "pairs": [{"prompt": a, "chosen": b, "rejected": "No."} for a, b in said],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "reward.py").write_text(REWARD)


@pytest.fixture(scope="module")
def printed(folder, finished, text):
    """Return what a run printed, which is made once."""

    def command(name: str) -> list[str]:
        if name == "train":
            return runs.line(finished, data__input=text)
        if name == "assistant":
            return [sys.executable, "-m", "lm.assistant", *ASSISTANT.format(folder=folder, model=finished).split()]
        if name == "curate":
            keys = ("curate.py", "--config=configs/curate/default.py", f"--config.input={text}")
        elif name == "evaluate":
            keys = ("evaluate.py", "--config=default", f"--config.tasks={folder}/sft/quiz.yaml", "--config.chat_template=own")
            keys = (*keys, f"--config.checkpoint={folder}/sft")
        else:
            config, *own = ALIGNED[name]
            values = {"init_from": finished} | dict(key.replace("W/", f"{folder}/").split("=", 1) for key in own)
            keys = ("align.py", f"--config=configs/align/{config}.py", *(f"--config.{k}={v}" for k, v in values.items()))
        return [sys.executable, *keys, f"--workdir={folder / name}"]

    def make(name: str) -> Path:
        if name in ("evaluate", "safety", "harmless", "best_of"):
            make("sft")  # which they, or their next commands, start from
        return made_once(folder / f"{name}.printed", lambda file: file.write_text(stdout_of(command(name))))

    return lambda name: make(name).read_text()


def stdout_of(command: list[str]) -> str:
    done = runs.run(command, **BARE)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def start(command: str, **streams) -> subprocess.Popen:
    """Start `env -i PATH=/usr/bin:/bin HOME=$HOME sh -c command` with cheap compilation, in the folder of the repository."""
    variables = BARE | CHEAP | {"HOME": str(Path.home())}
    return subprocess.Popen(["sh", "-c", command], cwd=runs.REPOSITORY, env=variables, text=True, **streams)


def runs_as_printed(command: str, stdin: str = "") -> str:
    process = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate(stdin, timeout=runs.DEADLINE)
    assert process.returncode == 0, f"{command}\n{stderr[-4000:]}"
    return stdout


def serves_as_printed(command: str) -> None:
    """Start a server in the place of the shell, which would not pass signals on; ask it for its health, and stop it."""
    process = start(f"exec {command} --config.port={portpicker.pick_unused_port()}", stdout=subprocess.PIPE)
    try:
        url = next(found[1] for line in process.stdout if (found := re.search(r" answers at (http://\S+)/v1", line)))
        assert httpx.get(f"{url}/health", timeout=120).status_code == 200
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(runs.DEADLINE) == 0
    finally:
        process.kill()


@pytest.mark.parametrize("step", [*QUICK, *(pytest.param(step, marks=pytest.mark.slow) for step in SLOW)], ids=str)
def test_a_next_command_runs_as_printed(step, printed, folder, finished):
    command = dict(NEXT.findall(printed(step.run)))[step.what]
    for blank, own in {"CHATS.jsonl": "chats.jsonl", "OTHER": "other", "MODEL": "sft"}.items():
        command = command.replace(blank, str(folder / own))
    assert not BLANK.search(command), command
    if step.what.startswith("compare"):
        shutil.copytree(folder / "sft", folder / "other")
    if step.what in (SERVE, PAGE):
        serves_as_printed(command)
    else:
        stdout = runs_as_printed(f"{command} {step.added}", step.stdin)
        assert stdout.strip()


@pytest.mark.parametrize(
    "run",
    [
        "train",
        "sft",
        *(pytest.param(run, marks=pytest.mark.slow) for run in ("curate", "evaluate", "assistant", *ALIGNED) if run != "sft"),
    ],
)
def test_these_are_all_and_those_of_the_report(run, printed, folder, finished):
    commands = dict(NEXT.findall(printed(run)))
    assert set(commands) == {step.what for step in (*QUICK, *SLOW) if step.run == run}
    if run == "assistant":
        return  # it adds its own to those of align.py
    report = json.loads(((finished if run == "train" else folder / run) / "report.json").read_text())
    assert [shlex.split(step["command"])[1:] for step in report["next"]] == [shlex.split(c)[1:] for c in commands.values()]
