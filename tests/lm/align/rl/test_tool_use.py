"""A model of half a million parameters learns to call the calculator, and then answers what it cannot answer without."""

import contextlib
import itertools
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest

import lm
from data.chat.template import encode_chat
from data.tasks.answers import same_answer
from data.tasks.arithmetic import CALCULATOR, calculator
from lm.align.rl.rollouts import RolloutSettings, roll_out
from lm.align.rl.tools import Tool, open_tools
from lm.infer.calls import Answer
from lm.infer.engine.local import LocalEngine
from tests.verbs.runs import REPOSITORY, environment

SEED = 0
HELD_OUT = 96  # products
MODEL = {
    "vocab_size": 512,
    "num_layers": 3,
    "embed_dim": 160,
    "num_heads": 5,
    "num_kv_heads": 5,
    "head_dim": 32,
    "mlp_dim": 160,
    "qk_norm": "head",
    "rope.theta": 100.0,
}
COMMON = {
    "seed": SEED,
    "dtype": "float32",
    "batch_size": 16,
    "model.scan_layers": False,
    "model.remat": "none",
    "samples": "()",
    "valid_every": 1000,
    "checkpoint_every": 1000,
}
TUNED = {
    "data.max_examples": 8000,
    "data.max_valid_examples": 32,
    "sequence_length": 176,
    "optimizer.learning_rate": 1e-3,
    "valid_first": False,
    "samples_every": 0,
}
TOLD = 1029384756  # no product of the questions


def write_text(path, count=9000):
    """What questions and calls look like, and numbers said again; nothing that tells a product.

    Many of the numbers are of two or three digits, so that where a number goes on is learnt by place: of five digits in a row
    some stand twice in most products.
    """
    rng = random.Random(SEED)

    def number():
        return "".join(rng.choices(rng.sample("0123456789", rng.choice((2, 3, 10))), k=rng.choice((9, 10))))

    with path.open("w") as file:
        for n, record in enumerate(itertools.islice(calculator("train", SEED), count)):
            call = record["messages"][1]["tool_calls"][0]["function"]
            asked = f"{record['prompt']}\nA={json.dumps(call)}"
            said = "".join(f"\n={n}\nA{n}" for n in (number(), number(), number()))
            text = asked + said if n % 8 else f"The assistant may call these tools:\n{json.dumps(CALCULATOR)}\n{asked}"
            file.write(json.dumps({"text": text}) + "\n")


def run(name, config, workdir, **settings):
    values = [f"--config.{key.replace('__', '.')}={value}" for key, value in (COMMON | settings).items()]
    command = [sys.executable, f"{name}.py", f"--config=configs/{config}.py", f"--workdir={workdir}", *values]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True)
    assert not done.returncode, done.stderr[-4000:]


def products(text):
    """The pairs that a text asks for or calls with."""
    return {tuple(sorted(map(int, pair))) for pair in re.findall(r"\b(\d{5}) (?:×|\*|by|and) (\d{5})\b", text)}


def learnt_from(workdir, tokenizer):
    """All that a run could learn from, as text."""
    return tokenizer.decode(np.concatenate([np.load(path) for path in workdir.glob("data/*/train/tokens.npy")]).tolist())


def answered(workdir, records, tools=()):
    """Greedy rollouts, one for each record, and the share of right answers."""
    model, tokenizer = lm.load(workdir)
    tasks = []
    for record in records:
        prompt = [{"role": "user", "content": record["prompt"]}]
        ids = encode_chat(tokenizer, prompt, tools=record["tools"] if tools else None, add_generation_prompt=True).ids
        tasks.append({"prompt": prompt, "prompt_ids": ids})
    settings = RolloutSettings(40, temperature=0.0, tools=tools, max_turns=2 if tools else 1)
    with contextlib.closing(LocalEngine(tokenizer)) as engine:
        rollouts = roll_out(model, tokenizer, tasks, settings, engine)
    right = sum(same_answer(rollout.completion, record["answer"]) for rollout, record in zip(rollouts, records, strict=True))
    return rollouts, right / len(records)


@pytest.mark.slow
def test_a_model_answers_with_the_calculator_what_it_cannot_answer_without(tmp_path):
    base, called, direct = (tmp_path / name for name in ("base", "called", "direct"))
    write_text(tmp_path / "text.jsonl")
    run(
        "train",
        "train/tiny",
        base,
        steps=250,
        data__input=tmp_path / "text.jsonl",
        optimizer__learning_rate=1.2e-3,
        **{f"model.{key}": value for key, value in MODEL.items()},
    )
    run("align", "align/sft", called, init_from=base, data__input="builtin:calculator", steps=200, **TUNED)
    # As many examples a step, since four without the tool fill a row.
    run(
        "align",
        "align/sft",
        direct,
        init_from=base,
        data__input="builtin:calculator?tool=false",
        steps=200,
        **TUNED | {"batch_size": 4},
    )

    records = list(itertools.islice(calculator("valid", SEED + 1), HELD_OUT))
    asked = products("\n".join(record["prompt"] for record in records))
    assert len(asked) == HELD_OUT
    tokenizer = lm.load(base)[1]
    for text in ((tmp_path / "text.jsonl").read_text(), learnt_from(called, tokenizer), learnt_from(direct, tokenizer)):
        assert len(products(text)) >= 7000 and not products(text) & asked

    tools = open_tools(["calculator"])
    rollouts, with_tool = answered(called, records, tools)
    _, taken_away = answered(called, records)
    _, without = answered(direct, records)
    print(f"held-out products: {with_tool:.0%} with the tool, {taken_away:.0%} when it is gone, {without:.0%} of the twin")
    assert with_tool >= 0.6
    assert taken_away < 0.05 and without < 0.05
    assert np.mean([rollout.tool_calls == 1 for rollout in rollouts]) >= 0.9

    liar = Tool(CALCULATOR, lambda calls: [Answer(str(TOLD))] * len(calls))
    misled, right = answered(called, records, (liar,))
    assert right == 0 and np.mean([rollout.completion == str(TOLD) for rollout in misled]) >= 0.6  # it says what it is told
