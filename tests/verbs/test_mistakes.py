"""Forty mistakes of a new user: each is answered in one line with the cure, before JAX loads, and nothing is written."""

import json
import shlex
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from configs.align import sft
from configs.train import tiny
from tests.verbs import runs
from tests.verbs.conftest import made_once

TRAIN = "train.py --config=configs/train/tiny.py --workdir=W/new"
SFT = "align.py --config=configs/align/sft.py --workdir=W/new --config.data.input=W/chats.jsonl"
DPO = f"{SFT.replace('sft', 'dpo')} --config.init_from=W/run"
GRPO = "align.py --config=configs/align/grpo.py --workdir=W/new --config.init_from=W/run --config.data.input=builtin:arithmetic"
EVALUATE = "evaluate.py --config=configs/evaluate/default.py --workdir=W/new --config.checkpoint=W/tuned --config.tasks=mmlu"


class Mistake(NamedTuple):
    """command: W is a folder with files of a user (`world`), PORT a port in use. answer: parts of the line, in order."""

    name: str
    command: str
    answer: tuple[str, ...]


MISTAKES = [
    # Configs.
    Mistake("no flags", "train.py", ("--config is missing", "train.py --config=configs/train/tiny.py --workdir=runs/mine")),
    Mistake("a config without --config", "train.py configs/train/tiny.py", ("did you mean --config=configs/train/tiny.py?",)),
    Mistake(
        "a config of align.py", "train.py --config=configs/align/sft.py", ("python align.py --config=configs/align/sft.py",)
    ),
    Mistake("a config of train.py", "evaluate.py --config=configs/train/tiny.py", ("python train.py --config=configs/train/",)),
    Mistake("a misspelt config", "train.py --config=tyni", ("--config=tyni", "did you mean configs/train/tiny.py?")),
    Mistake("a record as config", "train.py --config=W/run/config.json", ("JSON", "the same --config and --workdir again")),
    Mistake("no stage of a config", "align.py --config=configs/align/agent.py", ("no stage ''", "agent.py:sft")),
    Mistake(
        "an unknown stage", "align.py --config=configs/align/demo.py:dpo", ("no stage 'dpo'", "demo.py:sft or demo.py:grpo")
    ),
    Mistake("an unknown kind", "train.py --config=configs/train/domain.py:lora", ("domain.py:lora", "domain.py:adapter")),
    Mistake("an unknown sense", "align.py --config=configs/align/senses.py:eyes", ("'eyes' is none of images, audio",)),
    # Names of other programs, and values.
    Mistake("a flag of nanoGPT", f"{TRAIN} --lr=1e-3", ("--lr", "did you mean --config.optimizer.learning_rate?")),
    Mistake("lr", f"{TRAIN} --config.lr=1e-3", ("--config.lr", "did you mean optimizer.learning_rate?")),
    Mistake("max_steps", f"{TRAIN} --config.max_steps=9", ("--config.max_steps", "did you mean steps?")),
    Mistake("block_size", f"{TRAIN} --config.block_size=9", ("--config.block_size", "did you mean sequence_length?")),
    Mistake("model", f"{TRAIN} --config.model=gpt2", ("--config.model=gpt2", "did you mean --config.init_from=gpt2?")),
    Mistake("output_dir", f"{TRAIN} --config.output_dir=x", ("--config.output_dir", "did you mean --workdir?")),
    Mistake("beta of DPO", f"{DPO} --config.beta=0.1", ("--config.beta", "did you mean preference.beta?")),
    Mistake("bf16", f"{TRAIN} --config.bf16=True", ("--config.bf16", "did you mean dtype=bfloat16?")),
    Mistake("1e3 steps", f"{TRAIN} --config.steps=1e3", ("--config.steps=1e3", "int", "write 1000")),
    Mistake("no dashes", f"{TRAIN} steps=9", ("'steps=9'", "write --config.steps=9")),
    # Text.
    Mistake("a glob without quotes", f"{TRAIN} --config.data.input W/text/a.txt W/text/b.txt", ("quote it", "FOLDER/*.txt")),
    Mistake(
        "chats for train.py", f"{TRAIN} --config.data.input=W/chats.jsonl", ("no 'text'", "align.py --config=configs/align/sft")
    ),
    Mistake(
        "pairs for train.py", f"{TRAIN} --config.data.input=W/pairs.jsonl", ("'chosen'", "align.py --config=configs/align/dpo")
    ),
    Mistake("another key", f"{TRAIN} --config.data.input=W/body.jsonl", ("'title' 'body'", "--config.data.text_key=body")),
    Mistake("PDFs", f"{TRAIN} --config.data.input=W/papers", ("W/papers", ".jsonl", "pdftotext")),
    Mistake("Latin-1", f"{TRAIN} --config.data.input=W/latin1.txt", ("latin1.txt", "byte 3", "UTF-8", "iconv")),
    Mistake("no gzip", f"{TRAIN} --config.data.input=W/plain.jsonl.gz", ("plain.jsonl.gz", "gzip", "rename it")),
    Mistake(
        "a dataset of the hub", f"{TRAIN} --config.data.input=a/b", ("hf download a/b --repo-type=dataset --local-dir=DIR",)
    ),
    Mistake(
        "a workdir in the input",
        f"{TRAIN.replace('new', 'text/new')} --config.data.input=W/text",
        ("--workdir=W/text/new lies in data.input=W/text",),
    ),
    Mistake(
        "text for align.py",
        f"{SFT.replace('chats', 'text')} --config.init_from=W/run",
        ("'text'", "train.py --config=configs/train/tiny.py"),
    ),
    Mistake("chats for DPO", DPO, ("no preference pair", "'messages'", "align.py --config=configs/align/sft.py")),
    # Models.
    Mistake("no model", SFT, ("init_from is missing", "a Hugging Face folder")),
    Mistake("a model of the hub", f"{SFT} --config.init_from=gpt2", ("init_from=gpt2", "hf download gpt2 --local-dir=DIR")),
    Mistake("pickled weights", f"{SFT} --config.init_from=W/pickled", ("W/pickled", "from_pretrained", "save_pretrained")),
    Mistake(
        "an adapter", f"{SFT} --config.init_from=W/adapter", ("python -m lm.convert import --from=W/adapter --base=MODEL",)
    ),
    Mistake("a step of a run", f"{SFT} --config.init_from=W/run/checkpoints/20", ("it lies in the run W/run: name that",)),
    Mistake(
        "its own start",
        f"{SFT.replace('new', 'run')} --config.init_from=W/run",
        ("init_from=W/run is the workdir itself", "use another --workdir"),
    ),
    Mistake("a chat with a base model", "-m lm.chat --checkpoint=W/run", ("base model", "python -m lm.generate", "align.py")),
    # Rewards, evaluations, exports, servers.
    Mistake("a reward of TRL", f"{GRPO} --config.rewards=accuracy", ("'accuracy'", "'answer'", "path/file.py:function")),
    Mistake("a reward's syntax", f"{GRPO} --config.rewards=W/reward.py:good", ("W/reward.py", "expected ':'", "line 1")),
    Mistake("the folder of one task", f"{EVALUATE} --config.data_dir=W/bench/mmlu", ("set --config.data_dir=W/bench",)),
    Mistake(
        "no server of a judge",
        f"{EVALUATE} --config.data_dir=W/bench --config.judge=openai:http://127.0.0.1:9/v1",
        ("start it",),
    ),
    Mistake("ONNX", "-m lm.convert export --workdir=W/run --to=W/new.onnx", ("--to=W/new.onnx", "a new folder or NAME.gguf")),
    Mistake(
        "a port in use",
        "serve.py --config=configs/serve/default.py --workdir=W/new --config.checkpoint=W/tuned --config.port=PORT",
        ("port=PORT", "in use", "use another --config.port"),
    ),
]


def make_world(folder: Path) -> None:
    """Write files of a user: text, records, and folders of models without weights, which no mistake comes to read."""
    folder.mkdir()
    write = {
        "text/a.txt": "one\n",
        "text/b.txt": "two\n",
        "papers/a.pdf": "%PDF-1.7",
        "plain.jsonl.gz": '{"text": "one"}\n',
        "text.jsonl": '{"text": "one"}\n',
        "body.jsonl": '{"title": "one", "body": "one and two"}\n',
        "chats.jsonl": '{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}\n',
        "pairs.jsonl": '{"prompt": "a?", "chosen": "b", "rejected": "c"}\n',
        "reward.py": "def good(prompts, completions, **columns)\n    return [1.0]\n",
        "bench/mmlu/maths_test.csv": "1 + 1?,1,2,3,4,B\n",
        "run/config.json": json.dumps(tiny.get_config().to_dict()),
        "run/checkpoints/20/meta": "",
        "tuned/config.json": json.dumps(sft.get_config().to_dict()),
        "tuned/checkpoints/20/meta": "",
        "pickled/config.json": '{"model_type": "llama"}',
        "pickled/pytorch_model.bin": "",
        "adapter/adapter_config.json": "{}",
    }
    for name, text in write.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "latin1.txt").write_bytes(b"caf\xe9\n")


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def make_answers(file: Path) -> None:
    """Run all commands, two at a time, where JAX cannot be imported; write their exit codes and what they printed."""
    world = file.with_name("world")
    make_world(world)
    before = tree(world)
    with socket.socket() as taken, ThreadPoolExecutor(2) as pool:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])

        def answer(mistake: Mistake) -> dict:
            words = shlex.split(mistake.command.replace("W/", f"{world}/").replace("=W ", f"={world} ").replace("PORT", port))
            words = [f"{word[:-1]}{world}" if word.endswith("=W") else word for word in words]
            done = runs.run([sys.executable, *words], **runs.NO_JAX)
            line = done.stderr.replace(str(world), "W").replace(port, "PORT")
            return {"code": done.returncode, "printed": done.stdout, "line": line}

        answers = {mistake.name: found for mistake, found in zip(MISTAKES, pool.map(answer, MISTAKES))}
    file.write_text(json.dumps({"answers": answers, "unchanged": tree(world) == before}))


@pytest.fixture(scope="module")
def answers(shared) -> dict:
    file = made_once(shared / "mistakes" / "answers.json", make_answers)
    return json.loads(file.read_text())


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "_"))
def test_a_mistake_is_answered_with_its_cure(mistake, answers):
    given = answers["answers"][mistake.name]
    lines = given["line"].splitlines()
    assert given["code"] == 2 and len(lines) == 1 and not given["printed"], given
    at = 0
    for part in mistake.answer:
        assert part in lines[0][at:], lines[0]
        at = lines[0].index(part, at) + len(part)


def test_there_are_forty_and_nothing_is_written(answers):
    assert len(MISTAKES) == len({mistake.name for mistake in MISTAKES}) == 44
    assert answers["unchanged"]
