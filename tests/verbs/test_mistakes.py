"""Ninety mistakes of a new user: each is answered in one line with the cure, before JAX loads, and nothing is written."""

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
QUIZ = EVALUATE.replace("mmlu", "W/quiz")
ASSISTANT = "-m lm.assistant --model=W/run --workdir=W/new --chats=W/chats.jsonl"
GENERATE = "-m lm.generate --checkpoint=W/run"
SERVE = "serve.py --config=configs/serve/default.py --workdir=W/new"


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
        f"{SERVE} --config.checkpoint=W/tuned --config.port=PORT",
        ("port=PORT", "in use", "use another --config.port"),
    ),
    # An assistant of one's own.
    Mistake(
        "a bot in the chats",
        ASSISTANT.replace("chats.j", "bot.j"),
        ("W/bot.jsonl:2", "role 'bot'", "system developer user assistant tool", "did you mean assistant?"),
    ),
    Mistake(
        "a bot for align.py",
        f"{SFT.replace('chats', 'bot')} --config.init_from=W/run",
        ("W/bot.jsonl:2", "role 'bot'", "did you mean assistant?"),
    ),
    Mistake(
        "a misspelt role", ASSISTANT.replace("chats.j", "role.j"), ("W/role.jsonl:1", "'asistant'", "did you mean assistant?")
    ),
    Mistake("no chats", "-m lm.assistant --model=W/run --workdir=W/new", ("--chats is missing", "--chats=chats.jsonl")),
    Mistake("chats without --chats", "-m lm.assistant W/chats.jsonl", ("did you mean --chats=W/chats.jsonl?",)),
    Mistake("data for chats", ASSISTANT.replace("--chats", "--dataset"), ("--dataset", "did you mean --chats?")),
    Mistake(
        "an empty file", ASSISTANT.replace("chats.j", "empty.j"), ("--chats=W/empty.jsonl", "empty", "one JSON object a line")
    ),
    Mistake(
        "an empty file for align.py",
        f"{SFT.replace('chats', 'empty')} --config.init_from=W/run",
        ("data.input=W/empty.jsonl", "the file is empty", "one JSON object a line"),
    ),
    Mistake(
        "questions alone",
        ASSISTANT.replace("chats.j", "column.j"),
        ("W/column.jsonl:1", "'question'", "known are messages", "a prompt without an answer"),
    ),
    Mistake("chats as CSV", ASSISTANT.replace("chats.jsonl", "chats.csv"), ("--chats='W/chats.csv'", "JSON lines (.jsonl)")),
    Mistake(
        "chats as a text",
        ASSISTANT.replace("chats.jsonl", "text/a.txt"),
        ("--chats='W/text/a.txt'", ".jsonl", "train.py --config=configs/train/tiny.py --config.data.input=W/text/a.txt"),
    ),
    Mistake("a missing file", ASSISTANT.replace("chats", "chatz").replace("--chatz", "--chats"), ("chatz", "'W/chats.jsonl'")),
    Mistake("a file as workdir", ASSISTANT.replace("W/new", "W/plain"), ("--workdir=W/plain", "is a file; name a folder")),
    Mistake(
        "chats without answers",
        ASSISTANT.replace("chats.j", "unanswered.j"),
        ("0 conversations are too few", "5 more have no answer", "role assistant"),
    ),
    Mistake("a misspelt model", ASSISTANT.replace("W/run", "W/tund"), ("--model=W/tund", "did you mean W/tuned?")),
    # Code of one's own.
    Mistake(
        "no function of an objective",
        f"{TRAIN} --config.objective=W/loss.py",
        ("objective=W/loss.py names no function", "FILE.py:FUNCTION", "--config.objective=W/loss.py:focal"),
    ),
    Mistake(
        "a misspelt objective", f"{TRAIN} --config.objective=W/loss.py:fokal", ("'fokal'", "did you mean W/loss.py:focal?")
    ),
    Mistake(
        "no file of an objective", f"{TRAIN} --config.objective=W/lost.py:focal", ("no file W/lost.py", "W/loss.py:focal?")
    ),
    Mistake("a module as objective", f"{TRAIN} --config.objective=W/loss:focal", ("no file W/loss", "W/loss.py:focal?")),
    Mistake("an objective's syntax", f"{TRAIN} --config.objective=W/reward.py:good", ("W/reward.py", "expected ':'", "line 1")),
    Mistake(
        "no function of an optimizer",
        f"{TRAIN} --config.optimizer.name=W/loss.py",
        ("optimizer.name=W/loss.py names no function", "FILE.py:FUNCTION"),
    ),
    Mistake(
        "no such optimizer",
        f"{TRAIN} --config.optimizer.name=W/loss.py:sgd",
        ("no function 'sgd'", "only focal", "FILE.py:FUNCTION"),
    ),
    Mistake("adam", f"{TRAIN} --config.optimizer.name=adam", ("'adam'", "normuon, muon, adamw, lion", "did you mean adamw?")),
    Mistake("an optimizer as a section", f"{TRAIN} --config.optimizer=muon", ("did you mean --config.optimizer.name=muon?",)),
    Mistake("a misspelt reward", f"{GRPO} --config.rewards=W/rewards.py:god", ("'god'", "did you mean W/rewards.py:good?")),
    # Pages, completions and comparisons.
    Mistake("no model to chat with", "-m lm.chat --checkpoint=W/text", ("W/text", "no config.json", "name a workdir")),
    Mistake("a misspelt run to chat with", "-m lm.chat --checkpoint=W/tunde", ("W/tunde", "did you mean W/tuned?")),
    Mistake(
        "a question for lm.chat", "-m lm.chat --checkpoint=W/tuned --prompt=a?", ("--prompt", "python -m lm.generate --chat")
    ),
    Mistake("a misspelt run to serve", f"{SERVE} --config.checkpoint=W/tunde", ("checkpoint=W/tunde", "did you mean W/tuned?")),
    Mistake("a folder of runs", f"{SERVE} --config.checkpoint=W/runs", ("checkpoint=W/runs", "did you mean W/runs/base?")),
    Mistake("a verb as config", "serve.py --config=serve --workdir=W/new", ("did you mean configs/serve/default.py?",)),
    Mistake("a key without config", f"{SERVE} --port=8001", ("--port", "did you mean --config.port?")),
    Mistake("a misspelt start", f"{SFT} --config.init_from=W/runs/bas", ("init_from=W/runs/bas", "did you mean W/runs/base?")),
    Mistake("a misspelt config of align.py", "align.py --config=stf", ("--config=stf", "did you mean configs/align/sft.py?")),
    Mistake("max_tokens", f"{GENERATE} --prompt=a --max_tokens=9", ("--max_tokens", "did you mean --max_new_tokens?")),
    Mistake("workdir of lm.generate", "-m lm.generate --workdir=W/run --prompt=a", ("--workdir", "did you mean --checkpoint?")),
    Mistake("a decimal comma", f"{GENERATE} --prompt=a --temperature=0,5", ("--temperature=0,5", "a number, such as 0.8")),
    Mistake("a prompt without quotes", f"{GENERATE} --prompt Once upon a time", ("'upon'", "quotes around a value")),
    Mistake("one run to compare", "-m lm.compare W/run", ("two runs or more", "python -m lm.compare runs/a runs/b")),
    Mistake("a misspelt run to compare", "-m lm.compare W/run W/runs/bas", ("W/runs/bas", "did you mean W/runs/base?")),
    Mistake("an evaluation to compare", "-m lm.compare W/run W/eval", ("W/eval", "python -m lm.evals.compare")),
    # A quiz of one's own.
    Mistake("a quiz without keys", f"{QUIZ}/bare.yaml", ("doc_to_text, doc_to_target, metric_list", "lm/evals/tasks/specs")),
    Mistake("a misspelt key of a quiz", f"{QUIZ}/quiz.yaml", ("task quiz", "doc_to_txt", "did you mean doc_to_text?")),
    Mistake("the data of a quiz", f"{QUIZ}/quiz.jsonl", ("quiz.jsonl", "data, not a task", "name W/quiz/quiz.yaml")),
    Mistake("the folder of a quiz", QUIZ, ("a folder, not a task", "name W/quiz/bare.yaml or W/quiz/quiz.yaml")),
    Mistake("a misspelt task", EVALUATE.replace("mmlu", "mmlo"), ("'mmlo'", "did you mean mmlu?")),
]


def chats(role: str) -> str:
    """Return a line with a question and its answer, which has this role."""
    return json.dumps({"messages": [{"role": "user", "content": "a?"}, {"role": role, "content": "b"}]}) + "\n"


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
        "chats.jsonl": chats("assistant"),
        "pairs.jsonl": '{"prompt": "a?", "chosen": "b", "rejected": "c"}\n',
        "bot.jsonl": chats("assistant") + chats("bot"),
        "role.jsonl": chats("asistant"),
        "unanswered.jsonl": 5 * chats("user"),
        "empty.jsonl": "",
        "column.jsonl": '{"question": "a?"}\n',
        "chats.csv": "question,answer\na?,b\n",
        "plain": "",
        "loss.py": "def focal():\n    return None\n",
        "rewards.py": "def good(prompts, completions, **columns):\n    return [1.0]\n",
        "quiz/bare.yaml": "kind: choice\n",
        "quiz/quiz.yaml": "kind: choice\ndata: quiz.jsonl\ndoc_to_txt: question\n",
        "quiz/quiz.jsonl": '{"question": "a?", "answer": "b"}\n',
        "eval/config.json": '{"checkpoint": "W/run", "tasks": "mmlu"}',
        "runs/base/config.json": json.dumps(tiny.get_config().to_dict()),
        "runs/base/checkpoints/20/meta": "",
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


def test_there_are_ninety_and_nothing_is_written(answers):
    assert len(MISTAKES) == len({mistake.name for mistake in MISTAKES}) == 90
    assert answers["unchanged"]
