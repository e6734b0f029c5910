"""How many of AdamW's steps does Muon need for the same validation loss? On the demo's text.

python -m benchmarks.optimizers [--out=runs/optimizers] [--input=FILES] [--steps=300]

Each optimizer first chooses its learning rate from RATES on seed 0, then runs with three seeds. Both have the same schedule and
number of steps, so Muon's learning rate is still high where it passes AdamW's last loss. Every run is a process of its own.
What is in OUT/runs.jsonl is not run again, so the same line resumes. The last line printed is one JSON object: for each seed
the first validated step at which Muon is at most at AdamW's last loss, as a fraction of all steps (null: it never is).
"""

import argparse
import functools
import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parent.parent
RATES = {"adamw": (1e-3, 2e-3, 3e-3, 4e-3), "muon": (2e-3, 4e-3, 8e-3, 1.6e-2)}
SEEDS = (0, 1, 2)
EVERY, BATCHES = 10, 8  # steps between validations, and batches of one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/optimizers"))
    parser.add_argument("--input", help="training text, as config.data.input; default: this Python installation")
    parser.add_argument("--steps", type=int, default=300, help="of each run, 2,048 tokens each")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # name, rate, seed: one run in this process
    options = parser.parse_args()
    if options.run:
        name, rate, seed = options.run
        print(json.dumps(curve(config_of(name, float(rate), int(seed), options), options.out)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(options)
    best = {name: min(rates, key=lambda rate: runs(name, rate, 0)[-1][1]) for name, rates in RATES.items()}
    found = {}
    for seed in SEEDS:
        target = runs("adamw", best["adamw"], seed)[-1][1]
        muon = runs("muon", best["muon"], seed)
        reached = next((step for step, loss in muon if loss <= target), None)
        found[seed] = {"adamw": target, "muon": muon[-1][1], "fraction": reached and reached / options.steps}
    losses = {name: {rate: runs(name, rate, 0)[-1][1] for rate in rates} for name, rates in RATES.items()}
    print(json.dumps({"rates": losses, "best": best, "seeds": found}))


class Runs:
    """The validation curves [(step, loss), …] of runs, from OUT/runs.jsonl or from a new process."""

    def __init__(self, options):
        self._options, self._file = options, options.out / "runs.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._done = {tuple(run["key"]): run["curve"] for run in map(json.loads, lines)}

    def __call__(self, name: str, rate: float, seed: int) -> list[tuple[int, float]]:
        key = (name, rate, seed, self._options.steps)
        if key not in self._done:
            command = [sys.executable, "-m", "benchmarks.optimizers", f"--out={self._options.out}", f"--steps={key[-1]}"]
            command += [f"--input={self._options.input}"] if self._options.input else []
            done = subprocess.run(
                [*command, "--run", *map(str, key[:3])], cwd=REPO, stdout=subprocess.PIPE, text=True, check=True
            )
            self._done[key] = json.loads(done.stdout.splitlines()[-1])
            with self._file.open("a") as f:
                f.write(json.dumps({"key": key, "curve": self._done[key]}) + "\n")
            print(f"{name} at {rate:g}, seed {seed}: loss {self._done[key][-1][1]:.4f}", flush=True)
        return self._done[key]


def config_of(name: str, rate: float, seed: int, options):
    """Return the demo's training config with a model of 0.5 M parameters."""
    from configs.train import demo

    config = demo.get_config()
    config.steps, config.seed, config.data.input = options.steps, seed, options.input
    config.batch_size, config.accumulate = 16, 1
    config.model.update(
        vocab_size=1024, num_layers=3, embed_dim=96, num_heads=3, num_kv_heads=3, head_dim=32, mlp_dim=256, remat="none"
    )
    config.optimizer.update(name=name, learning_rate=rate, warmup=options.steps // 10)
    return config


def curve(config, out: Path) -> list[tuple[int, float]]:
    """Train, and return [(step, validation loss in nats a token), …]. The data do not depend on the seed, their order does."""
    import jax

    from data.text.batches import TextBatches
    from data.text.pipeline import prepare_text
    from lm.parallel.mesh import make_mesh
    from lm.train.feed import Feed, summed
    from lm.train.step import make_trainer, state_shardings

    seed, config.seed = config.seed, 0
    dataset = prepare_text(config, out)[1]
    config.seed = seed
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        state = jax.jit(trainer.init, out_shardings=state_shardings(trainer, mesh))()
        step, evaluate = jax.jit(trainer.step, donate_argnums=0), jax.jit(trainer.evaluate)
        batches = TextBatches(dataset, "train", batch_size=config.batch_size, seed=seed)
        valid = Feed(TextBatches(dataset, "valid", batch_size=config.batch_size, shuffle=False), mesh)
        feed, found = Feed(batches, mesh), []
        for n in range(1, config.steps + 1):
            state, _ = step(state, feed.to_devices(batches.batch(n - 1)))
            if n % EVERY == 0 or n == config.steps:
                sums = summed(functools.partial(evaluate, state.params), valid.spread(BATCHES))
                found.append((n, sums["objective"] / sums["weight"]))
    return found


if __name__ == "__main__":
    main()
