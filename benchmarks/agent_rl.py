"""Does reinforcement learning in an environment teach a small model to make the right calls, one after the other?

python -m benchmarks.agent_rl [--seeds=0,1,2] [--items=256] [--out=runs/agent_rl] [--config.KEY=VALUE …]

Of each seed, a model of 0.9 M parameters is trained on text, tuned on demonstrations that answer too early or add instead of
multiplying (configs/align/agent.py:sft), and then trained with GRPO in the environment (agent.py:grpo): once with the
environment's rewards, and once with rewards that are dealt at random. Before and after, it answers held-out questions, greedily
and at temperature 1. Each question needs three look-ups and a calculation. Other options are keys of the GRPO runs.

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

from data.tasks.stockroom import stockroom
from lm import saving

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
TEXT = 8000  # records of the text that the model begins with


def dealt_at_random(prompts, completions, **columns) -> list[float]:
    """Return rewards that have nothing to do with what was done: 1 for one in four rollouts."""
    return [float(random.Random(str(rollout.logps)).random() < 0.25) for rollout in columns["rollouts"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--items", type=int, default=256, help="held-out questions")
    parser.add_argument("--out", type=Path, default=Path("runs/agent_rl"))
    parser.add_argument("--control-steps", type=int, default=40, help="steps with rewards at random")
    options, keys = parser.parse_known_args()
    if wrong := [key for key in keys if not key.startswith("--config.")]:
        parser.error(f"unknown options: {' '.join(wrong)}")
    out = options.out.resolve()
    records = list(itertools.islice(stockroom("valid", 1), options.items))
    found = {}
    for seed in map(int, options.seeds.split(",")):
        base, sft, grpo, control = (out / f"{name}-{seed}" for name in ("base", "sft", "grpo", "random"))
        text = out / f"text-{seed}.jsonl"
        if not text.exists():
            run("-m", "data.tasks", "stockroom_text", f"--seed={seed}", f"--count={TEXT}", f"--out={text}")
        settings = {"data.input": text, "dtype": "float32", "steps": 1500, "optimizer.learning_rate": 1.2e-3, "samples": "()"}
        settings |= {"valid_every": 1000, "checkpoint_every": 1000, "data.max_bytes": 4_000_000, "seed": seed}
        verb("train", "train/tiny.py", base, settings | {f"model.{key}": value for key, value in MODEL.items()})
        verb("align", "align/agent.py:sft", sft, {"init_from": base, "seed": seed, "valid_first": False})
        verb("align", "align/agent.py:grpo", grpo, {"init_from": sft, "seed": seed}, keys)
        dealt = {
            "rewards": f"{REPO / 'benchmarks/agent_rl.py'}:dealt_at_random=1,environment=0",
            "steps": options.control_steps,
        }
        verb("align", "align/agent.py:grpo", control, {"init_from": sft, "seed": seed} | dealt)
        found[seed] = {name: success(place, records) for name, place in (("before", sft), ("after", grpo), ("random", control))}
        print(f"seed {seed}: {found[seed]}", flush=True)
    from lm.reports.page import machine

    line = json.dumps({"success": found, "questions": len(records), "machine": machine()})
    saving.write(out / "agent_rl.json", line + "\n")
    print(line)


def success(workdir: Path, records: list[dict]) -> dict[str, float]:
    """Return the share of held-out questions that a model answers, greedily and sampled."""
    import lm
    from data.chat.template import encode_chat
    from lm.align.rl.rollouts import RolloutSettings, roll_out
    from lm.align.rl.stockroom import Stockroom

    model, tokenizer = lm.load(workdir)
    tasks = []
    for record in records:
        prompt = [{"role": "user", "content": record["prompt"]}]
        ids = encode_chat(tokenizer, prompt, add_generation_prompt=True).ids
        tasks.append(record | {"prompt": prompt, "prompt_ids": ids})
    found = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        rollouts = roll_out(
            model, tokenizer, tasks, RolloutSettings(32, temperature, environment=Stockroom, max_turns=7), seed=1
        )
        found[name] = sum(rollout.episode_return or 0.0 for rollout in rollouts) / len(rollouts)
    return found


def verb(name: str, config: str, workdir: Path, settings: dict, keys: list[str] = ()) -> None:
    values = [f"--config.{key}={value}" for key, value in settings.items()]
    run(f"{name}.py", f"--config=configs/{config}", f"--workdir={workdir}", *values, *keys)


def run(*arguments) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], cwd=REPO, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)


if __name__ == "__main__":
    main()
