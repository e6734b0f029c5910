"""Make an assistant of your own: tune a small model on your chats with LoRA, and see how it answers before and after.

python -m lm.assistant --chats=chats.jsonl [--model=MODEL --workdir=runs/assistant]

chats.jsonl has one conversation a line: {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
or any other form that align.py reads. Ten conversations, a quarter at most, are held out. Length, batch and rate follow from
the data. The same command again resumes what was interrupted, or shows the answers once more.
"""

import math
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from data.chat.conversations import examples_of
from data.chat.example_encoding import Encoder
from data.chat.messages import Example
from data.chat.records import read_records
from data.text.hf_tokenizer import BASE_TEMPLATE
from data.text.tokenizer import load_tokenizer
from lm import cli
from lm.cli.config_files import HOME
from lm.errors import UserError, naming, runnable
from lm.train.checks import check_model, check_records
from lm.train.history import json_lines

FLAGS = flags.FLAGS
flags.DEFINE_string("chats", None, "Your conversations: files of JSONL, JSON or Parquet.")
flags.DEFINE_string("model", None, "The model to start from: a workdir, a Hugging Face folder or a GGUF file.")
flags.DEFINE_string("workdir", "runs/assistant", "Folder of the run.")

HELD_OUT = 10  # conversations, a quarter of all at most
MIN_CHATS = 4
LENGTHS = (256, 1024)  # fewest and most tokens of a row
ANSWER = 128  # most tokens of an answer to a held-out question
PASSES = 3  # over the data, as lm/align/length.py
PRODUCTS = 5  # passes of the model's products over each token: forward, backward of activations, adapters, validation (about)
NEVER = 1_000_000  # steps between samples


class Data(NamedTuple):
    """Numbers of the chats: conversations, trained tokens of their answers, all tokens, and tokens of the longest one."""

    chats: int
    answer_tokens: int
    tokens: int
    longest: int


def main() -> None:
    cli.parse_flags(sys.argv)
    for name in ("chats", "model"):
        if FLAGS[name].value is None:
            example = runnable("python -m lm.assistant --chats=chats.jsonl --model=MODEL")
            raise UserError(f"--{name} is missing: {example}")
    cli.check_folder(Path(FLAGS.workdir), "workdir")
    check_model("--model", FLAGS.model, Path(FLAGS.workdir))
    check_records("--chats", FLAGS.chats, 0, "conversation")
    data = measured(conversations(FLAGS.chats), FLAGS.model)
    command = tuning(data)
    print(
        f"{data.chats:,} chats, {data.answer_tokens:,} tokens of answers, the longest chat {data.longest:,} tokens: "
        f"{PASSES} passes over them take about {minutes(data):.0f} minutes on this machine\n"
        f"    {runnable(shlex.join(['python', *command]))}\n",
        flush=True,
    )
    begin = time.perf_counter()
    code = subprocess.run([sys.executable, str(HOME / command[0]), *command[1:]], check=False).returncode
    if code:
        sys.exit(code)
    print(f"\nit took {(time.perf_counter() - begin) / 60:.1f} minutes. Held-out questions, before and after:\n")
    samples = Path(FLAGS.workdir) / "samples.jsonl"
    if samples.exists():
        show_answers(json_lines(samples))
    else:
        print("none: no held-out question leaves room for an answer\n")
    show_next()


def conversations(chats: str) -> list[Example]:
    """Return all conversations of an input. Raises: UserError for records of another form, and for too few of them."""
    dropped: Counter = Counter()
    with naming("--chats"):
        found = list(examples_of(read_records(chats), "conversation", dropped))
    if len(found) < MIN_CHATS:
        why = "".join(f"; {n} more have {reason}" for reason, n in dropped.items())
        raise UserError(
            f"--chats={chats}: {len(found)} conversations are too few to learn from and to hold some out{why}; write "
            f"{MIN_CHATS} or more that end with a message of the role assistant"
        )
    return found


def measured(chats: Sequence[Example], model: str) -> Data:
    """Return the numbers of the chats under the model's tokenizer and chat template."""
    tokenizer = load_tokenizer(model)
    encoder = Encoder(tokenizer, None if tokenizer.chat_template else BASE_TEMPLATE)
    sequences = [encoder.conversation(chat) for chat in chats]
    lengths = [len(sequence.ids) for sequence in sequences] or [0]
    return Data(len(sequences), sum(int(sequence.trained.sum()) for sequence in sequences), sum(lengths), max(lengths))


def tuning(data: Data) -> list[str]:
    """Return the command of align.py, which can be given by hand as well."""
    fewest, most = LENGTHS
    length = min(most, max(fewest, 64 * math.ceil(data.longest / 64) + ANSWER))
    keys = {
        "init_from": FLAGS.model,
        "data.input": FLAGS.chats,
        "data.valid_fraction": 0.5,  # lowered to this number of prompts:
        "data.max_valid_examples": min(HELD_OUT, data.chats // 4),
        "sequence_length": length,
        "rollout.max_prompt_tokens": length + 1 - ANSWER,
        "rollout.max_new_tokens": ANSWER,
        "rollout.temperature": 0.0,
        "num_samples": HELD_OUT,
        "samples_every": NEVER,  # before the first step, and at the end
    }
    return ["align.py", "--config=configs/smollm2/sft.py", f"--workdir={FLAGS.workdir}"] + [
        f"--config.{key}={value}" for key, value in keys.items()
    ]


def minutes(data: Data) -> float:
    """Return an estimate: products of all tokens by the speed of one product of this machine, and a minute of compiling."""
    import jax
    import jax.numpy as jnp

    from lm.convert.source import open_source
    from lm.model import sizing

    parameters = sum(sizing.parameters(open_source(FLAGS.model).config)["active"].values())
    x, w = jnp.ones((512, 1024), jnp.float32), jnp.ones((1024, 4096), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, w).block_until_ready()
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        product(x, w).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    speed = 2 * 512 * 1024 * 4096 / float(np.median(seconds))
    answering = 2 * HELD_OUT * ANSWER
    return 1 + (PASSES * PRODUCTS * data.tokens + answering) * 2 * parameters / speed / 60


def show_answers(samples: Sequence[dict]) -> None:
    """Print the answers to each held-out question at the first and at the last step."""
    last = max((line["step"] for line in samples), default=0)
    before = {str(line["prompt"]): line["completion"] for line in samples if line["step"] == 0}
    for line in samples:
        if line["step"] == last:
            question = line["prompt"][-1]["content"]
            print(f"question  {question}\nbefore    {before.get(str(line['prompt']), '–')}\nafter     {line['completion']}\n")


def show_next() -> None:
    """Print the commands of the assistant: talk, the page with both models, and the exports."""
    workdir, name = FLAGS.workdir, Path(FLAGS.workdir).name
    page = ["serve.py", "--config=configs/serve/default.py", f"--workdir={workdir}-serve", f"--config.checkpoint={FLAGS.model}"]
    export = ["-m", "lm.convert", "export", f"--workdir={workdir}", f"--to={workdir}.gguf", "--merge", "--dtype=q8_0"]
    beside = f"a page where both models answer, at http://127.0.0.1:8000/?beside={name}"
    commands = {
        "talk to it": ["-m", "lm.chat", f"--checkpoint={workdir}"],
        beside: [*page, f"--config.adapters.load={name}={workdir}"],
        "export it for Ollama and llama.cpp": export,
    }
    print(f"report: {os.path.join(workdir, 'report.html')}")
    for what, command in commands.items():
        print(f"next: {what}\n    {runnable(shlex.join(['python', *command]))}")


if __name__ == "__main__":
    cli.run(main, __doc__)
