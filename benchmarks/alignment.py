"""Does every method of align.py do what it is for? On tasks with held-out answers, with a model of half a million parameters.

python -m benchmarks.alignment [--only=sft,dpo,reward,grpo,lag1,lag4,rloo,ppo,shuffled] [--seeds=0,1,2] [--out=runs/alignment]
    [--chosen_rates]     # the learning rates that configs without one get (lm/train/rates.py)

A tiny model is pretrained on sentences about letters and things (benchmarks/letters.py), and from it:

    sft       learns to do what it is told in the form it is told
    dpo       learns from pairs to prefer a style, after it was tuned on answers of all styles: builtin:preferred_style
    reward    a reward model learns the same preference
    grpo      after it was tuned on answers of all styles, learns the style that a verifier asks for: polite at both ends, no
    rloo      filler word, and still what it was told to say
    ppo
    lag1      GRPO whose rollouts are sampled one step or four steps ahead
    lag4
    shuffled  GRPO with the same rewards dealt out at random among the answers of a step: learns nothing, or a leak is found

Runs are those of the verbs, in workdirs under OUT; the same line goes on where it was stopped. Prints a table; the last line is
one JSON object, which also goes to OUT/alignment.json.
"""

import argparse
import functools
import hashlib
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import letters
from lm.align.rl.reward_functions import style
from lm.files import saving

RATE = "optimizer.learning_rate"
CHOSEN_RATES = False  # set by --chosen_rates
MODEL = dict(vocab_size=512, num_layers=2, embed_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=384)
STYLES = "builtin:preferred_style?part=answers"
VERIFIER = "style?least=1.85"
# What each method must reach on held-out examples: (measure, how it must compare, value); see `measured`.
AIMS = {
    "sft": (("before", "<=", 0.05), ("after", ">=", 0.95), ("format", ">=", 0.95)),
    "dpo": (("after", ">=", 0.90), ("wins", ">=", 0.70)),
    "reward": (("after", ">=", 0.95),),
    "grpo": (("before", "<=", 0.25), ("after", ">=", 0.85)),
    "lag1": (("before", "<=", 0.25), ("after", ">=", 0.85)),
    "lag4": (("before", "<=", 0.25), ("after", ">=", 0.85)),
    "rloo": (("before", "<=", 0.25), ("after", ">=", 0.85)),
    "ppo": (("before", "<=", 0.25), ("after", ">=", 0.85)),
    "shuffled": (("gain", "<", 0.05),),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(AIMS), help="methods, with commas between them")
    parser.add_argument("--seeds", default="0,1,2", help="of each method; what it starts from is the same for all")
    parser.add_argument("--out", type=Path, default=Path("runs/alignment"))
    parser.add_argument("--chosen_rates", action="store_true", help="leave learning rates to lm/train/rates.py")
    options = parser.parse_args()
    global CHOSEN_RATES
    CHOSEN_RATES = options.chosen_rates
    methods, seeds = options.only.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := set(methods) - set(AIMS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))} among {', '.join(AIMS)}")

    import jax

    # Runs that differ in a number that is compiled in share the rest.
    jax.config.update("jax_compilation_cache_dir", str(options.out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict]] = {}
    for method in methods:
        for seed in seeds:
            begin = time.perf_counter()
            result = measured(method, seed, options.out)
            result |= {"seed": seed, "seconds": round(time.perf_counter() - begin, 1)}
            result["reached"] = all(compares(result[name], how, value) for name, how, value in AIMS[method])
            results.setdefault(method, []).append(result)
            print(f"{method} {json.dumps(result)}", flush=True)
    print(table(results))
    from lm.runs.provenance import machine

    summary = json.dumps({"results": results, "model": MODEL, "machine": machine()})
    saving.write(options.out / "alignment.json", summary + "\n")
    print(summary)


def measured(method: str, seed: int, out: Path) -> dict:
    """before, after: shares of held-out examples, of right greedy answers (sft and the reinforced), or of pairs told right
    (dpo, reward). And: format, the share in the form asked for; wins, against the start; kl to it; gain = after − before."""
    workdir = out / f"{method}-{seed}"
    if method == "sft":
        found = align("sft", workdir, instructions(seed, out))
        share = "rewards/answer"
        extra = {"format_before": found["before"]["rewards/format"], "format": found["after"]["rewards/format"]}
    elif method in ("dpo", "reward"):
        begin = all_styles(out)
        found = align(method, workdir, PREFERENCES[method](seed, begin))
        share = "accuracy" if method == "reward" else "rewards/accuracies"
        extra = {"loss_before": found["before"]["loss"]} | ({} if method == "reward" else against(workdir, begin))
    else:
        found = align("ppo" if method == "ppo" else "grpo", workdir, REINFORCED[method](seed, all_styles(out)))
        share, extra = "rewards/style", {}
    before, after = found["before"][share], found["after"][share]
    numbers = {"before": before, "after": after, "gain": after - before} | extra
    return {name: round(value, 4) for name, value in numbers.items()}


# The recipes.


def start(out: Path) -> Path:
    """The pretrained model."""
    from configs.train import default
    from train import train

    workdir = out / "base"
    if not (workdir / "report.json").exists():
        rng = random.Random(0)
        saving.write_lines(out / "text" / "sentences.jsonl", (letters.document(rng) for _ in range(4000)))
        config = default.get_config()
        config.data.input, config.data.max_valid_bytes = str(out / "text"), 100_000
        config.steps, config.batch_size, config.sequence_length, config.dtype = 300, 32, 128, "float32"
        config.optimizer.learning_rate, config.optimizer.warmup = 4e-3, 30
        config.model.update(MODEL, scan_layers=False, remat="none")
        config.valid_every, config.checkpoint_every, config.samples = 0, 0, ()
        train(config, workdir)
    return workdir


def tuned(seed: int, begin: Path, task: str, **settings) -> dict:
    """Supervised tuning on a task, of every parameter."""
    return {
        "seed": seed,
        "init_from": str(begin),
        "data.input": task,
        "data.max_examples": 16_000,
        "steps": 300,
        "batch_size": 16,
        "sequence_length": 128,
        "optimizer.learning_rate": 4e-3,
        "optimizer.warmup": 20,
        "rollout.max_new_tokens": 24,
        **settings,
    }


def instructions(seed: int, out: Path) -> dict:
    """Held out are prompts: other operations on these letters, or other forms, are trained on."""
    path, rng = out / "instructions.jsonl", random.Random(0)
    if not path.exists():
        saving.write_lines(path, (letters.instruction(rng) for _ in range(16_000)))
    return tuned(seed, start(out), str(path), rewards="answer=1,format=0")


def all_styles(out: Path) -> Path:
    """A model that says what it is told to, in any style."""
    align("sft", out / "all_styles", tuned(0, start(out), STYLES))
    return out / "all_styles"


def dpo(seed: int, begin: Path) -> dict:
    return {
        "seed": seed,
        "init_from": str(begin),
        "data.input": "builtin:preferred_style",
        "data.max_examples": 2000,
        "steps": 120,
        "batch_size": 32,
        "sequence_length": 64,
        "optimizer.learning_rate": 3e-4,
        "rollout.max_new_tokens": 40,
        "preference.nll_weight": 1.0,  # without it both answers of a pair become unlikely, and what is said is neither (RPO)
    }


def reward(seed: int, begin: Path) -> dict:
    return {
        "seed": seed,
        "init_from": str(begin),
        "data.input": "builtin:preferred_style",
        "data.max_examples": 4000,
        "steps": 100,
        "batch_size": 32,
        "sequence_length": 64,
        "optimizer.learning_rate": 1e-3,
    }


def grpo(seed: int, begin: Path) -> dict:
    return {
        "seed": seed,
        "init_from": str(begin),
        "data.input": STYLES,
        "data.max_examples": 4000,
        "rewards": f"{VERIFIER}=1,overlong?limit=32&buffer=6=1",
        "steps": 64,
        "batch_size": 128,
        "sequence_length": 80,
        "rollout.max_new_tokens": 32,
        "optimizer.learning_rate": 3e-4,
    }


def rloo(seed: int, begin: Path) -> dict:
    return grpo(seed, begin) | {"rl.algorithm": "rloo"}


def ahead(lag: int, seed: int, begin: Path) -> dict:
    return grpo(seed, begin) | {"rl.max_lag": lag, "rl.correction": "token"}


def ppo(seed: int, begin: Path) -> dict:
    return grpo(seed, begin) | {"steps": 96, "rl.beta": 0.0, "rl.epochs": 2}


def shuffled_grpo(seed: int, begin: Path) -> dict:
    return grpo(seed, begin) | {"rewards": f"benchmarks/alignment.py:shuffled=1,{VERIFIER}=0"}


PREFERENCES: dict[str, Callable[[int, Path], dict]] = {"dpo": dpo, "reward": reward}
REINFORCED: dict[str, Callable[[int, Path], dict]] = {
    "grpo": grpo,
    "lag1": functools.partial(ahead, 1),
    "lag4": functools.partial(ahead, 4),
    "rloo": rloo,
    "ppo": ppo,
    "shuffled": shuffled_grpo,
}


def shuffled(prompts, completions, **columns) -> list[float]:
    """The right rewards of these completions, dealt out among them at random: a pure function of the completions."""
    rewards = style(prompts, completions, least=1.85, **columns)
    digest = hashlib.sha256("\0".join(completions).encode()).digest()
    return [rewards[i] for i in np.random.default_rng(list(digest)).permutation(len(rewards))]


# What the runs need.


def align(name: str, workdir: Path, settings: dict) -> dict:
    """align.py's run with configs/align/NAME.py and these settings; see lm.align.run.run."""
    import importlib

    from lm.align.run import run
    from lm.reports.align import write_run

    config = importlib.import_module(f"configs.align.{name}").get_config()
    config.dtype, config.data.max_valid_examples = "float32", 256
    config.valid_every, config.checkpoint_every, config.samples_every = 0, 0, 0
    config.update_from_flattened_dict({key: value for key, value in settings.items() if key != RATE or not CHOSEN_RATES})
    return run(config, workdir, write_run)


def against(workdir: Path, begin: Path) -> dict:
    """How sampled answers to held-out prompts fare under the rule against those of the start, and how far they moved.

    wins: share of prompts at which the tuned model's answer scores higher, ties counted half. kl: mean over its answers of
    Σ log π − log π₀, in nats an answer. words: mean length.
    """
    import jax

    import lm
    from data.chat.conversations import read_examples
    from data.chat.example_encoding import Encoder
    from data.tasks.style import style
    from lm.align.logprobs import logprobs_of
    from lm.align.rl.rollouts import RolloutSettings, arrays, roll_out
    from lm.infer.engine.local import LocalEngine
    from lm.model.inputs import inputs_of

    (tuned, tokenizer), (reference, _) = lm.load(workdir), lm.load(begin)
    encoder = Encoder(tokenizer)
    held_out = list(read_examples("builtin:preferred_style", "task", "valid", valid_fraction=0.0, seed=0))
    tasks = [{"prompt": task.prompt, "prompt_ids": encoder.prompt_ids(task.prompt)} for task in held_out]
    rollouts = {
        name: roll_out(model, tokenizer, tasks, RolloutSettings(40), LocalEngine(tokenizer), seed=seed)
        for seed, (name, model) in enumerate((("start", reference), ("tuned", tuned)))
    }
    scores = {
        name: np.asarray([style(r.completion, task.columns["statement"]) for r, task in zip(rolled, held_out)])
        for name, rolled in rollouts.items()
    }
    batch = arrays(rollouts["tuned"], 96, tokenizer.pad_id)
    states = jax.jit(lambda batch: reference.hidden(inputs_of(batch)).x_BTD)(batch)
    before_BT = np.asarray(logprobs_of(reference, states, batch["targets"])[0])
    kl_B = np.sum((batch["sampler_logps"] - before_BT) * batch["weights"], axis=1)
    return {
        "wins": float(np.mean(0.5 + 0.5 * np.sign(scores["tuned"] - scores["start"]))),
        "kl": float(kl_B.mean()),
        "score_before": float(scores["start"].mean()),
        "score": float(scores["tuned"].mean()),
        "words": float(np.mean([len(rollout.completion.split()) for rollout in rollouts["tuned"]])),
    }


def table(results: dict[str, list[dict]]) -> str:
    lines = ["| method | before | after | seeds | aim reached | seconds a run |", "| --- | --- | --- | --- | --- | --- |"]
    for method, runs in results.items():
        before, after = (" ".join(f"{run[name]:.3f}" for run in runs) for name in ("before", "after"))
        reached = f"{sum(run['reached'] for run in runs)} of {len(runs)}"
        seconds = statistics.median(run["seconds"] for run in runs)
        lines.append(f"| {method} | {before} | {after} | {len(runs)} | {reached} | {seconds:.0f} |")
    return "\n".join(lines)


def compares(value: float, how: str, aim: float) -> bool:
    return {"<": value < aim, "<=": value <= aim, ">=": value >= aim}[how]


if __name__ == "__main__":
    main()
