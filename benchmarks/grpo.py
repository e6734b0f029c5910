"""Steps a minute of GRPO beside TRL's, on the same tiny models, prompts and rewards, on this machine.

python -m benchmarks.grpo [--steps=20 --rounds=2 --loads=small/16/64,large/16/64]

8 completions to a prompt, one update, no reference. `large/128/64` is the model of 1 million parameters, 128 tokens a
completion, 64 completions a step; `256/8` is what TRL does unless it is told otherwise. Each competitor runs in float32 and in
bfloat16, each time in a process of its own, in turns; figures are medians over all steps but the first three, of the type in
which it is faster. lmcraft sees every core as a device of its mesh.
The last line is one JSON object.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).parent.parent
GROUP, WARM = 8, 3
LOADS = "small/16/64,large/16/64,small/128/64,large/128/64,small/256/8,large/256/8"
DTYPES = ("float32", "bfloat16")
MODELS = {
    "small": dict(vocab_size=512, num_layers=2, embed_dim=64, num_heads=2, num_kv_heads=2, mlp_dim=176),
    "large": dict(vocab_size=512, num_layers=4, embed_dim=128, num_heads=4, num_kv_heads=4, mlp_dim=352),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each competitor in each round")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each competitor")
    parser.add_argument("--loads", default=LOADS, help="models, tokens of a completion, completions of a step")
    parser.add_argument("--worker", choices=("lmcraft", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=DTYPES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        measure = {"lmcraft": ours, "trl": theirs}[options.worker]
        tokens, completions = map(int, options.loads.split("/"))
        print(json.dumps(measure(Path(options.folder), tokens, completions, options.steps + WARM, options.dtype)))
        return
    from lm.runs.provenance import machine

    found = {}
    for load in options.loads.split(","):
        name, size = load.split("/", 1)
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), MODELS[name])
            found[load] = compared(folder, size, options.steps, options.rounds)
        print(f"{load}: {json.dumps(found[load])}", flush=True)
    print(json.dumps({"models": MODELS, "loads": found, "machine": machine()}))


def compared(folder: str, size: str, steps: int, rounds: int) -> dict:
    """What both did with completions of a size, "tokens/completions a step"."""
    tokens, completions = map(int, size.split("/"))
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    devices = f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}"
    for _, name, dtype in itertools.product(range(rounds), ("lmcraft", "trl"), DTYPES):
        flags = [f"--worker={name}", f"--dtype={dtype}", f"--folder={folder}", f"--steps={steps}", f"--loads={size}"]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.grpo", *flags],
            cwd=REPO,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}"},
        )
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        for key, values in json.loads(done.stdout.splitlines()[-1]).items():
            found.setdefault((name, dtype), {}).setdefault(key, []).extend(values)
    every = {" ".join(kind): round(rate(times), 1) for kind, times in found.items()}
    best = {name: max(DTYPES, key=lambda dtype, name=name: rate(found[name, dtype])) for name in ("lmcraft", "trl")}
    rolled = {name: statistics.median(found[name, dtype]["rollout"]) for name, dtype in best.items()}
    rates = {name: rate(found[name, dtype]) for name, dtype in best.items()}
    return {
        "ratio": round(rates["lmcraft"] / rates["trl"], 2),
        "steps_per_minute": every,
        "share_generating": {name: round(rolled[name] * rates[name] / 60, 3) for name in rates},
        "rollout_tokens_per_second": {name: round(completions * tokens / seconds) for name, seconds in rolled.items()},
    }


def rate(times: dict[str, list[float]]) -> float:
    """Steps a minute."""
    return 60 / statistics.median(times["step"])


def prompts(count: int = 512) -> list[dict]:
    from data.tasks import TASKS

    return list(itertools.islice(TASKS["arithmetic"]("train", 0), count))


def prepare(folder: Path, model: dict) -> None:
    """A random model and its tokenizer, as a workdir and as a Hugging Face folder."""
    import jax

    from data.text.sentencepiece_tokenizer import train
    from lm.config import ModelConfig
    from lm.convert.to_published import to_published
    from lm.convert.to_workdir import write_workdir
    from lm.model.transformer import build

    (folder / "workdir").mkdir()
    texts = [record["prompt"] + " " + record["completion"] for record in prompts(2000)]
    train(texts, folder / "workdir" / "tokenizer.model", vocab_size=512, sample_bytes=1 << 20, seed=0, threads=2)
    config = ModelConfig(**model, dtype="float32")
    write_workdir(folder / "workdir", config, jax.jit(lambda: build(config, 0))())
    to_published(folder / "workdir", folder / "published")


def reward(prompts, completions, **columns) -> list[float]:
    """Something that differs from answer to answer: the share of digits in it."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(x.isdigit() for x in text) / max(1, len(text)) for text in texts]


def ours(
    folder: Path, tokens: int, completions: int, steps: int, dtype: str, lag: int = 0, epochs: int = 1
) -> dict[str, list[float]]:
    """The step of align.py (lm.align.rl.stream and lm.align.rl.objective); layers unrolled, nothing computed twice."""
    import jax

    from configs.align import grpo
    from data.chat.examples import prepare_tasks
    from data.text.tokenizer import load_tokenizer
    from lm.align.rl import objective as rl
    from lm.align.rl.rewards import Rewards
    from lm.align.rl.rollouts import sampler_of
    from lm.align.rl.stream import RolloutStream
    from lm.model.transformer import skeleton
    from lm.parallel.mesh import make_mesh
    from lm.train.start import adopt, initial_params
    from lm.train.step import model_config_of

    config = grpo.get_config()
    config.init_from, config.batch_size, config.sequence_length = str(folder / "workdir"), completions, 256
    config.dtype, config.rl.group_size, config.model.scan_layers, config.model.remat = dtype, GROUP, False, "none"
    config.rollout.max_new_tokens, config.steps, config.optimizer.warmup = tokens, steps, 0
    config.rl.max_lag, config.rl.epochs, config.rl.correction = lag, epochs, "token" if lag else "none"
    config.data.input, config.data.max_examples, config.data.max_valid_examples = "builtin:arithmetic", 512, 1
    adopt(config, None)
    tokenizer = load_tokenizer(config.tokenizer)
    tasks, _, _ = prepare_tasks(config, tokenizer)
    config.sequence_length = max(len(task["prompt_ids"]) for task in tasks) + tokens - 1
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        trainer, _ = rl.trainer(config, tokenizer, mesh)
        graph, _ = skeleton(model_config_of(config))
        sampler = sampler_of(config, graph, tokenizer, tasks)
        stream = RolloutStream(config, mesh, sampler, tasks, Rewards(("digits",), (reward,), (1.0,)))
        stream.start(0)
        state = jax.jit(trainer.init)(initial_params(config, mesh))
        step = jax.jit(trainer.step, donate_argnums=0)
        ends, rollouts, updates, losses = [], [], [], []

        def wait() -> float:
            jax.block_until_ready(losses)
            return time.perf_counter()

        for n in range(1, steps + 1):
            batch, measured = stream.next(n, state.params, wait)
            ends.append(time.perf_counter())
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
            rollouts.append(measured["seconds/rollout"])
            updates.append(measured.get("seconds/update"))
        wait()
        stream.close()
        sampler.close()
    times = [later - end for end, later in zip(ends, ends[1:])]
    return {"step": times[WARM:], "rollout": rollouts[WARM:], "update": updates[WARM:]}


def theirs(folder: Path, tokens: int, completions: int, steps: int, dtype: str) -> dict[str, list[float]]:
    """trl.GRPOTrainer without gradient checkpointing."""
    import datasets
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    times, rollouts, began = [], [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            began.append(time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            times.append(time.perf_counter() - began[-1])

    class Timed(GRPOTrainer):
        def _generate(self, *args, **kwargs):
            begin = time.perf_counter()
            try:
                return super()._generate(*args, **kwargs)
            finally:
                rollouts.append(time.perf_counter() - begin)

    rows = [{"prompt": [{"role": "user", "content": record["prompt"]}]} for record in prompts()]
    trainer = Timed(
        model=str(folder / "published"),
        reward_funcs=reward,
        train_dataset=datasets.Dataset.from_list(rows),
        callbacks=[Clock()],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=completions,
            num_generations=GROUP,
            max_completion_length=tokens,
            max_steps=steps,
            bf16=dtype == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=True,
            learning_rate=1e-6,
            logging_steps=10**6,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    trainer.train()
    return {"step": times[WARM:], "rollout": rollouts[WARM:]}


if __name__ == "__main__":
    main()
