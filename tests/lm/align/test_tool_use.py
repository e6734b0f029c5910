"""A model of a million parameters learns to call the calculator, and then answers what it cannot answer without."""

import itertools
import json
import random
import subprocess
import sys

import pytest

import lm
from data.chat import encode_chat
from data.tasks.calculator import CALCULATOR, calculator
from lm.align.answers import same_answer
from lm.align.rollouts import roll_out
from lm.align.tools import Answer, Tool, open_tools
from tests.verbs.runs import REPOSITORY, environment

MODEL = {
    "vocab_size": 512, "num_layers": 3, "embed_dim": 160, "num_heads": 5, "num_kv_heads": 5, "head_dim": 32, "mlp_dim": 448,
    "qk_norm": "head", "rope.theta": 100.0,
}  # fmt: skip
TOLD = 1029384756  # no product of the questions


def write_text(path, count=12000):
    """What questions and calls look like, and numbers said again: nothing that tells a product."""
    rng = random.Random(0)
    with path.open("w") as file:
        for n, record in enumerate(itertools.islice(calculator("train", 0), count)):
            call = record["messages"][1]["tool_calls"][0]["function"]
            number = rng.randrange(10**8, 10**10)
            text = f"{record['prompt']}\nA={json.dumps(call)}\n={number}\nA{number}"
            file.write(json.dumps({"text": text if n % 8 else f"{json.dumps(CALCULATOR)}\n{text}"}) + "\n")


def verb(name, config, workdir, **settings):
    values = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
    command = [sys.executable, f"{name}.py", f"--config=configs/{config}", f"--workdir={workdir}", *values]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True)
    assert not done.returncode, done.stderr[-4000:]


def held_out(workdir, tools=(), count=100):
    """The greedy rollouts of held-out products, each with its record; share of right answers."""
    model, tokenizer = lm.load(workdir)
    records = list(itertools.islice(calculator("valid", 1), count))
    tasks = []
    for record in records:
        prompt = [{"role": "user", "content": record["prompt"]}]
        ids = encode_chat(tokenizer, prompt, tools=record["tools"] if tools else None, add_generation_prompt=True).ids
        tasks.append({"prompt": prompt, "prompt_ids": ids})
    rollouts = roll_out(model, tokenizer, tasks, max_new_tokens=40, temperature=0.0, tools=tools, max_turns=2 if tools else 1)
    return rollouts, sum(same_answer(r.completion, record["answer"]) for r, record in zip(rollouts, records)) / count


@pytest.mark.slow
def test_a_model_answers_with_the_calculator_what_it_cannot_answer_without(tmp_path):
    write_text(tmp_path / "text.jsonl")
    common = {"dtype": "float32", "checkpoint_every": 1000, "samples": "()"}
    tuned = common | {"valid_every": 1000, "valid_first": False, "data__max_valid_examples": 32, "samples_every": 0}
    verb(
        "train", "train/tiny.py", tmp_path / "base", steps=250, data__input=tmp_path / "text.jsonl",
        optimizer__learning_rate=3e-3, **common, **{f"model.{key}": value for key, value in MODEL.items()},
    )  # fmt: skip
    for name, query, steps in (("called", "", 400), ("direct", "?tool=false", 400)):
        verb(
            "align", "align/sft.py", tmp_path / name, init_from=tmp_path / "base", data__input=f"builtin:calculator{query}",
            data__max_examples=8000, steps=steps, batch_size=8, sequence_length=320 if name == "called" else 160,
            optimizer__learning_rate=2e-3, **tuned,
        )  # fmt: skip
    verb(
        "align", "align/grpo.py", tmp_path / "rewarded", init_from=tmp_path / "called", data__input="builtin:calculator",
        data__max_examples=2000, steps=20, batch_size=64, sequence_length=224, optimizer__learning_rate=3e-4,
        rollout__tools="('calculator',)", rollout__max_turns=2, rollout__max_new_tokens=40, **tuned,
    )  # fmt: skip

    tools = open_tools(["calculator"])
    _, imitated = held_out(tmp_path / "called", tools)
    rollouts, rewarded = held_out(tmp_path / "rewarded", tools)
    _, without = held_out(tmp_path / "rewarded")
    _, direct = held_out(tmp_path / "direct")
    print(f"held-out products: {imitated:.0%} after SFT, {rewarded:.0%} after GRPO; {without:.0%} without the tool; "
          f"{direct:.0%} of a model that was trained to answer at once")  # fmt: skip
    assert imitated >= 0.6 and rewarded >= max(0.9, imitated)
    assert without <= 0.02 and direct <= 0.05
    assert all(rollout.tool_calls == 1 for rollout in rollouts) and sum(rollout.tool_errors for rollout in rollouts) <= 2

    liar = Tool(CALCULATOR, lambda calls: [Answer(str(TOLD))] * len(calls))
    misled, right = held_out(tmp_path / "rewarded", (liar,))
    assert right == 0 and sum(rollout.completion == str(TOLD) for rollout in misled) >= 90  # it says what it is told
