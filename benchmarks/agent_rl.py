"""Does reinforcement learning in an environment teach a small model to make the right calls, one after the other?

python -m benchmarks.agent_rl [--seeds=0,1,2] [--items=256] [--out=runs/agent_rl] [--config.KEY=VALUE …]
python -m benchmarks.agent_rl --init_from=SMOLLM2 --seeds=0 --items=64

Of each seed, a model of 0.9 M parameters is trained on text, tuned on demonstrations that answer too early or add instead of
multiplying (configs/align/agent.py:sft), and then trained with GRPO in the environment (agent.py:grpo): once with the
environment's rewards, and once with rewards that are dealt at random. Before and after, it answers held-out questions, greedily
and at temperature 1. Each question needs three look-ups and a calculation. Other options are keys of the GRPO runs.

--init_from: a ChatML model, such as the GGUF file of SmolLM2-135M-Instruct, is tuned in the small model's place, with LoRA in
both stages. As it comes, it answers with the tools in its system message, once as they are and once after a whole worked
question; then after the demonstrations, and after GRPO.

The runs are those of train.py and align.py, in folders under OUT; the same line goes on where it was stopped. The last line is
one JSON object, which also goes to OUT/agent_rl.json.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from data.tasks.stockroom import STOCKROOM_TOOLS, Stockroom, stockroom
from lm.files import saving

REPO = Path(__file__).parent.parent
MODEL = {
    "vocab_size": 512,
    "num_layers": 3,
    "embed_dim": 160,
    "num_heads": 5,
    "num_kv_heads": 5,
    "head_dim": 32,
    "mlp_dim": 320,
    "qk_norm": "head",
    "rope.theta": 100.0,
    "scan_layers": False,
    "remat": "none",
}
TURNS = 7
ROWS = 64  # questions at a time: 256 long ones need 29 GB where attention has no kernel of its own
TEXT = 8000  # records of the text that the model begins with
# Keys of both stages of a given model, and of each: short runs on two cores.
GIVEN = {
    "chat_template": REPO / "data/text/chatml_tools_template.jinja",
    "model.scan_layers": True,
    "dtype": "bfloat16",
    "sequence_length": 384,
    "accumulate": 2,
    "rollout.max_prompt_tokens": 64,
    "rollout.max_new_tokens": 48,
    "rollout.max_turns": 6,
    "valid_first": False,
    "valid_every": 0,
}
GIVEN_SFT = {
    "data.input": "builtin:stockroom?haste=0.7&skill=0.85",
    "data.max_examples": 1000,
    "steps": 30,
    "batch_size": 8,
    "model.adapter.rank": 16,  # the second stage trains the same adapter
    "model.adapter.alpha": 32,
}
GIVEN_GRPO = {"steps": 12, "batch_size": 64, "checkpoint_every": 4, "samples_every": 6, "optimizer.warmup": 2}


def dealt_at_random(prompts, completions, **columns) -> list[float]:
    """Return rewards that have nothing to do with what was done: 1 for one in four rollouts."""
    return [float(random.Random(str(rollout.logps)).random() < 0.25) for rollout in columns["rollouts"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--items", type=int, default=256, help="held-out questions")
    parser.add_argument("--out", type=Path, default=Path("runs/agent_rl"))
    parser.add_argument("--init_from", type=Path, help="a ChatML model to tune instead of the small one")
    parser.add_argument("--control-steps", type=int, default=40, help="steps with rewards at random")
    options, keys = parser.parse_known_args()
    if wrong := [key for key in keys if not key.startswith("--config.")]:
        parser.error(f"unknown options: {' '.join(wrong)}")
    out = options.out.resolve()
    records = list(itertools.islice(stockroom("valid", 1), options.items))
    found = {}
    if options.init_from:
        found["as it comes"] = success(options.init_from, records, declared=True)
        found["after a worked question"] = success(options.init_from, records, declared=True, worked=True)
        print(found, flush=True)
    for seed in map(int, options.seeds.split(",")):
        places = given_runs(options.init_from, seed, out, keys) if options.init_from else runs(seed, out, options, keys)
        found[seed] = {name: success(place, records) for name, place in places.items()}
        print(f"seed {seed}: {found[seed]}", flush=True)
    from lm.runs.provenance import machine

    line = json.dumps({"success": found, "questions": len(records), "machine": machine()})
    saving.write(out / "agent_rl.json", line + "\n")
    print(line)


def runs(seed: int, out: Path, options, keys: list[str]) -> dict[str, Path]:
    """Train the small model; return the workdirs to measure."""
    base, sft, grpo, control = (out / f"{name}-{seed}" for name in ("base", "sft", "grpo", "random"))
    text = out / f"text-{seed}.jsonl"
    if not text.exists():
        run("-m", "data.tasks", "stockroom_text", f"--seed={seed}", f"--count={TEXT}", f"--out={text}")
    settings = {"data.input": text, "dtype": "float32", "steps": 1500, "optimizer.learning_rate": 1.2e-3, "samples": "()"}
    settings |= {"valid_every": 1000, "checkpoint_every": 1000, "data.max_bytes": 4_000_000, "seed": seed}
    verb("train", "train/tiny.py", base, settings | {f"model.{key}": value for key, value in MODEL.items()})
    verb("align", "align/agent.py:sft", sft, {"init_from": base, "seed": seed, "valid_first": False})
    verb("align", "align/agent.py:grpo", grpo, {"init_from": sft, "seed": seed}, keys)
    dealt = {"rewards": f"{REPO / 'benchmarks/agent_rl.py'}:dealt_at_random=1,environment=0", "steps": options.control_steps}
    verb("align", "align/agent.py:grpo", control, {"init_from": sft, "seed": seed} | dealt)
    return {"before": sft, "after": grpo, "random": control}


def given_runs(init_from: Path, seed: int, out: Path, keys: list[str]) -> dict[str, Path]:
    """Tune a given model with LoRA; return the workdirs to measure."""
    sft, grpo = (out / f"given-{name}-{seed}" for name in ("sft", "grpo"))
    verb("align", "align/agent.py:sft", sft, GIVEN | GIVEN_SFT | {"init_from": init_from, "seed": seed})
    verb("align", "align/agent.py:grpo", grpo, GIVEN | GIVEN_GRPO | {"init_from": sft, "seed": seed}, keys)
    return {"before": sft, "after": grpo}


def success(path: Path, records: list[dict], declared: bool = False, worked: bool = False) -> dict[str, float]:
    """Return the share of held-out questions that a model answers, greedily and sampled, and its mean calls to a question.

    declared: whether the prompt lists the tools. worked: whether it begins with another question, its calls and its answer.
    """
    import lm
    from data.chat.template import encode_chat
    from lm.align.reward_model import chat_template_of
    from lm.align.rl.rollouts import RolloutSettings, roll_out
    from lm.infer.engine.local import LocalEngine
    from lm.train.fit import memory_of_device

    model, tokenizer = lm.load(path)
    template = GIVEN["chat_template"].read_text(encoding="utf-8") if declared else chat_template_of(str(path))
    example = next(stockroom("train", 0))["messages"] if worked else []
    extra = {"tools": STOCKROOM_TOOLS} if declared else {}
    tasks = []
    for record in records:
        prompt = [*example, {"role": "user", "content": record["prompt"]}]
        ids = encode_chat(tokenizer, prompt, template=template, add_generation_prompt=True, **extra).ids
        tasks.append(record | {"prompt": prompt, "prompt_ids": ids})
    turn = GIVEN["rollout.max_new_tokens"] * 2 if template else 32  # a model that was not tuned may think aloud
    longest = max(len(task["prompt_ids"]) for task in tasks) + TURNS * 2 * turn
    engine = LocalEngine(tokenizer, memory_of_device() / 6, min(ROWS, len(tasks)), longest)
    found = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        settings = RolloutSettings(turn, temperature, environment=Stockroom, max_turns=TURNS, template=template)
        rollouts = []
        for begin in range(0, len(tasks), ROWS):
            some = tasks[begin : begin + ROWS]
            rollouts += roll_out(model, tokenizer, some, settings, engine, seed=1 + begin)
        found[name] = sum(rollout.episode_return or 0.0 for rollout in rollouts) / len(rollouts)
        for what in ("tool_calls", "tool_errors"):
            found[f"{name} {what}"] = sum(getattr(rollout, what) for rollout in rollouts) / len(rollouts)
    engine.close()
    return found


def verb(name: str, config: str, workdir: Path, settings: dict, keys: list[str] = ()) -> None:
    values = [f"--config.{key}={value}" for key, value in settings.items()]
    run(f"{name}.py", f"--config=configs/{config}", f"--workdir={workdir}", *values, *keys)


def run(*arguments) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], cwd=REPO, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)


if __name__ == "__main__":
    main()
