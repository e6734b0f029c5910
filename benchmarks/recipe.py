"""What do equal tokens teach? Recipes of pretraining, scored in bits per byte of one held-out text over paired seeds.

python -m benchmarks.recipe [--arms=adamw,default] [--sizes=1M,3M,10M] [--seeds=5] [--steps=550] [--nanochat=FOLDER]

The first arm is the base. An arm is a name in ARMS, FILE.py:FUNCTION, or `nanochat` with --nanochat; the function gets a config
of train.py with the model's sizes, and returns it with a recipe. ARM@0.5 has half the steps, the same first rows and its own
whole schedule; ARM@0.5s has the steps that half of the base's processor seconds pay for. Controls: `adamw:again` starts from
other weights, `ARM:shuffled` learns from shuffled targets.

An arm is kept if it is lower at each size with p < 0.01, and discarded if it is higher at one of them with p < 0.05.

All runs of a seed read the same rows in the same order: those of `make demo`, or of --data. Each arm first takes the best
of its learning rates (FACTORS times its own, and lower or higher ones while that helps) on a seed that is not scored. A run
is a process. OUT/runs.jsonl keeps its score, so the same line resumes. The last line is one JSON object.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

REPO = Path(__file__).parent.parent
SIZES = {
    "0.15M": dict(num_layers=2, embed_dim=48, num_heads=3, num_kv_heads=3, head_dim=16, mlp_dim=128),
    "0.3M": dict(num_layers=2, embed_dim=64, num_heads=2, num_kv_heads=2, head_dim=32, mlp_dim=176),
    "0.6M": dict(num_layers=3, embed_dim=96, num_heads=3, num_kv_heads=3, head_dim=32, mlp_dim=256),
    "1M": dict(num_layers=3, embed_dim=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=344),
    "3M": dict(num_layers=4, embed_dim=192, num_heads=6, num_kv_heads=3, head_dim=32, mlp_dim=512),
    "10M": dict(num_layers=6, embed_dim=320, num_heads=10, num_kv_heads=5, head_dim=32, mlp_dim=864),
}
FACTORS = (0.5, 1.0, 2.0)
NANOCHAT_FACTORS = (2.0, 4.0, 8.0, 16.0)  # its rates are for batches of 524,288 tokens
FLAT = 0.005  # a share of bits per byte that no other rate is tried for
MAX_BYTES = 60_000_000  # of --data
FORM = "FILE.py:FUNCTION"
RATE_SEED = 1000  # on which rates are chosen
FROZEN = ("steps", "seed", "batch_size", "sequence_length", "data", "tokenizer")  # keys that a recipe may not change


def adamw(config):
    """Return the config with the former default: AdamW with a cosine. Frozen here, whatever configs/ hold."""
    config.model.update(qk_norm="none", init="gpt2", tie_embeddings=False)
    config.optimizer.update(name="adamw", learning_rate=4e-3, embedding_rate=1.0, schedule="cosine", final=0.1)
    config.optimizer.warmup = config.steps // 11
    config.optimizer.update(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0, z_loss=1e-4)
    return config


def default(config):
    """Return the config with the recipe of configs/train/default.py, at the chosen turns and rates."""
    from lm.train.optimizers.turns import choose_turns
    from lm.train.rates import choose_rate

    choose_turns(config)
    choose_rate(config)
    return config


def all_layers(config):
    """Return the default with an update of every layer in each step."""
    config.optimizer.turns = 1
    return default(config)


def speedrun(config):
    """Return the config with the recipe of configs/train/speedrun.py, at the chosen rates."""
    from configs.train.speedrun import recipe

    return default(recipe(config))


ARMS: dict[str, Callable[[Any], Any]] = {"adamw": adamw, "default": default, "all_layers": all_layers, "speedrun": speedrun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--data", help="text, as config.data.input, or `python`, this installation; default: `make demo`'s")
    parser.add_argument("--arms", default="adamw,default", help="comma-separated; the first is the base")
    parser.add_argument("--sizes", default="1M,3M,10M", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=550, help="of the base, 4,096 tokens each")
    parser.add_argument("--nanochat", type=Path, help="a checkout of github.com/karpathy/nanochat, for the arm `nanochat`")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # JSON of one run, made in this process
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.run:
        print(json.dumps(scored(json.loads(options.run), options)))
        return
    runs, arms, report = Runs(options), options.arms.split(","), {}
    for size in options.sizes.split(","):
        base = arms_scores(runs, arms[0], size, options)
        report[size] = {arms[0]: summary(base)}
        for arm in arms[1:]:
            report[size][arm] = compared(base, arms_scores(runs, arm, size, options, base))
            print(f"{size} {arms[0]} → {arm}: {report[size][arm]}", flush=True)
    for arm in arms[1:]:
        report[f"{arm} is"] = judged([report[size][arm] for size in options.sizes.split(",")])
        print(f"{arms[0]} → {arm}: {report[f'{arm} is']}")
    print(json.dumps(report))


def arms_scores(runs: "Runs", arm: str, size: str, options: argparse.Namespace, base: list[dict] | None = None) -> list[dict]:
    """Return the scores of an arm by seed, at its best rate."""
    name, _, share = arm.partition("@")
    recipe = name.partition(":")[0] if name.endswith((":again", ":shuffled")) else name
    best = best_of_rates(
        runs, NANOCHAT_FACTORS if recipe == "nanochat" else FACTORS, arm=recipe, size=size, steps=options.steps
    )
    steps = options.steps
    if share.endswith("s"):
        assert base is not None, "the base cannot have a share of its own seconds"
        steps *= statistics.median(score["cpu_per_step"] for score in base) / best["cpu_per_step"]
    steps = round(steps * float(share.removesuffix("s") or 1))
    return [runs(arm=name, size=size, seed=seed, factor=best["factor"], steps=steps) for seed in range(options.seeds)]


def best_of_rates(runs: Callable[..., dict], factors: Sequence[float], **run: Any) -> dict[str, Any]:
    """Return the score at the best of the factors (ascending), and beyond them while the last one is better by FLAT."""

    def bits(factor: float) -> float:
        score = runs(seed=RATE_SEED, factor=factor, **run)["bits_per_byte"]
        return score if math.isfinite(score) else math.inf

    found = {factor: bits(factor) for factor in factors}
    for first, second, times in ((factors[0], factors[1], 0.5), (factors[-1], factors[-2], 2.0)):
        while found[first] < (1 - FLAT) * found[second]:
            first, second = first * times, first
            found[first] = bits(first)
    return runs(seed=RATE_SEED, factor=min(found, key=found.__getitem__), **run)


def compared(base: list[dict], other: list[dict]) -> dict[str, Any]:
    """Return the summary of an arm, and its paired difference from the base."""
    from lm.compare.__main__ import paired_t

    verdict = paired_t(*([score["bits_per_byte"] for score in scores] for scores in (base, other)))
    return summary(other) | verdict._asdict()


def judged(of_sizes: Sequence[dict[str, Any]]) -> str:
    """Return the verdict on an arm, of its paired differences from the base at each size."""
    if any(one["difference"] > 0 and one["p"] is not None and one["p"] < 0.05 for one in of_sizes):
        return "discarded"
    kept = all(one["difference"] < 0 and one["p"] is not None and one["p"] < 0.01 for one in of_sizes)
    return "kept" if kept else "too few to tell"


def summary(scores: list[dict]) -> dict[str, Any]:
    """Return the mean of the scores, and what the runs have in common."""
    mean = statistics.fmean(score["bits_per_byte"] for score in scores)
    return {
        "bits_per_byte": round(mean, 4),
        "factor": scores[0]["factor"],
        "steps": scores[0]["steps"],
        "cpu_per_step": statistics.median(score["cpu_per_step"] for score in scores),
    }


class Runs:
    """The scores of runs, from OUT/runs.jsonl or from a new process."""

    def __init__(self, options: argparse.Namespace):
        self._options, self._file = options, options.out / "runs.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._done = {json.dumps(score["run"], sort_keys=True): score for score in map(json.loads, lines)}

    def __call__(self, **run: Any) -> dict[str, Any]:
        key = json.dumps(run, sort_keys=True)
        if key not in self._done:
            command = [sys.executable, "-m", "benchmarks.recipe", f"--out={self._options.out}", f"--run={key}"]
            command += [f"--data={self._options.data}"] if self._options.data else []
            command += [f"--nanochat={self._options.nanochat}"] if self._options.nanochat else []
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self._options.out / "cache")}
            done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{key} failed:\n{done.stderr[-3000:]}")
            self._done[key] = json.loads(done.stdout.splitlines()[-1]) | {"run": run, **run}
            with self._file.open("a") as f:
                f.write(json.dumps(self._done[key]) + "\n")
            print(f"{key}: {self._done[key]['bits_per_byte']:.4f} bits per byte", flush=True)
        return self._done[key]


# One run.


def scored(run: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train one recipe, and return {"bits_per_byte", "curve": [[step, bits per byte], …], "cpu_per_step"}."""
    from data.text.batches import TextBatches
    from data.text.pipeline import prepare_text
    from data.text.tokenizer import load_tokenizer

    config = sized(run["size"], corpus(options))
    config.data.max_bytes = MAX_BYTES if options.data else config.data.max_bytes
    dataset = prepare_text(config, options.out / "data")[1]
    train = TextBatches(dataset, "train", batch_size=config.batch_size, seed=run["seed"])
    valid = TextBatches(dataset, "valid", batch_size=config.batch_size, shuffle=False)
    name, _, control = run["arm"].partition(":") if run["arm"].endswith((":again", ":shuffled")) else (run["arm"], "", "")
    bytes_V = load_tokenizer(options.out / "data").bytes_per_token
    config.steps, config.seed = run["steps"], run["seed"] + (10_000 if control == "again" else 0)

    def batch(n: int) -> dict[str, Any]:
        rows = train.batch(n)
        return shuffled(rows, run["seed"], n) if control == "shuffled" else rows

    held_out = [valid.batch(n) for n in range(valid.num_batches)]
    if name == "nanochat":
        learner: Learner = Nanochat(options.nanochat, config, run["factor"])
    else:
        config = with_recipe(name, config)
        config.optimizer.learning_rate *= run["factor"]
        learner = Ours(config)
    curve, cpu = [], 0.0
    for n in range(1, config.steps + 1):
        if n == 6:  # what is compiled is compiled
            learner.wait()
            cpu = time.process_time()
        learner.step(batch(n - 1))
        if n % 50 == 0 or n == config.steps:
            learner.wait()
            begin = time.process_time()
            rows = held_out if n == config.steps else held_out[:4]
            curve.append([n, bits_per_byte(learner, rows, bytes_V)])
            cpu += time.process_time() - begin
    return {"bits_per_byte": curve[-1][1], "curve": curve, "cpu_per_step": (time.process_time() - cpu) / (config.steps - 5)}


def corpus(options: argparse.Namespace) -> str:
    """Return the text to train on; the corpus of `make demo` is made if it is not there."""
    if options.data:
        return options.data
    folder = options.out / "corpus"
    if not (folder / "manifest.json").is_file():
        command = [sys.executable, "curate.py", "--config=configs/curate/demo.py", f"--workdir={folder.absolute()}"]
        subprocess.run(command, cwd=REPO, stdout=subprocess.DEVNULL, check=True)
    return str(folder)


def sized(size: str, data: str):
    """Return the demo's config with a model of this size, before a recipe."""
    from configs.train import demo

    config = demo.get_config()
    config.data.input = None if data == "python" else data
    config.model.update(SIZES[size], scan_layers=False)
    config.accumulate = {"3M": 2, "10M": 4}.get(size, 1)
    return config


def shuffled(rows: dict[str, Any], seed: int, n: int) -> dict[str, Any]:
    """Return a batch whose weighted targets are permuted among themselves: nothing but their frequencies can be learnt."""
    import numpy as np

    targets, used = rows["targets"].copy(), rows["weights"] > 0
    targets[used] = np.random.default_rng((seed, n)).permutation(targets[used])
    return rows | {"targets": targets}


def with_recipe(name: str, config, frozen: Sequence[str] = FROZEN):
    """Return the config that a recipe makes of this one.

    Args: name: of ARMS, or FILE.py:FUNCTION. frozen: keys that the recipe may not change.
    Raises: UserError: there is no such recipe, it fails, or it changes a frozen key.
    """
    from lm.errors import UserError
    from lm.files.user_files import failing, from_file, is_own, parted

    before = {key: repr(attrgetter(key)(config)) for key in frozen}
    recipe = from_file(*parted("recipe", name, FORM), "recipe", FORM) if is_own(name) else ARMS[name]
    with failing(f"recipe: {name} fails"):
        config = recipe(config)
        changed = [key for key in frozen if repr(attrgetter(key)(config)) != before[key]]
    if changed:
        raise UserError(f"recipe: {name} changes {', '.join(changed)}, which must stay the same for all; leave it out")
    return config


def bits_per_byte(learner: "Learner", batches: Sequence[dict[str, Any]], bytes_V) -> float:
    """Return the bits per byte of the targets of batches. bytes_V: UTF-8 bytes of each token."""
    share = sum(float((x["weights"] * bytes_V[x["targets"]]).sum()) for x in batches)
    return sum(learner.nats(x) for x in batches) / math.log(2) / share


class Learner(Protocol):
    """A model and its optimizer."""

    def step(self, rows: dict[str, Any]) -> None:
        """Take one training step, or begin to."""

    def wait(self) -> None:
        """Wait for the last step."""

    def nats(self, rows: dict[str, Any]) -> float:
        """Return the sum of the weighted losses of a batch."""


class Ours:
    """A config of train.py: its step on one device."""

    def __init__(self, config):
        import jax

        from lm.parallel.mesh import make_mesh
        from lm.train.step import make_trainer, state_shardings, token_loss

        self._mesh = make_mesh({"data": 1}, jax.devices()[:1])
        with jax.set_mesh(self._mesh):
            trainer = make_trainer(config)
            self._state = jax.jit(trainer.init, out_shardings=state_shardings(trainer, self._mesh))()
            self._step = jax.jit(trainer.step, donate_argnums=0)

        def nats(params, rows):
            from flax import nnx

            return token_loss(nnx.merge(trainer.graph, params), rows, z_loss=0.0)[1]

        self._nats = jax.jit(nats)

    def step(self, rows: dict[str, Any]) -> None:
        import jax

        with jax.set_mesh(self._mesh):
            self._state, _ = self._step(self._state, self._placed(rows))

    def wait(self) -> None:
        """Wait for the last step."""
        import jax

        jax.block_until_ready(self._state)

    def nats(self, rows: dict[str, Any]) -> float:
        import jax

        from lm.train.update import averaged

        with jax.set_mesh(self._mesh):
            return float(self._nats(averaged(self._state), self._placed(rows)))

    def _placed(self, rows: dict[str, Any]) -> dict[str, Any]:
        from lm.parallel.mesh import place_rows

        rows = {name: x for name, x in rows.items() if name != "ids"}
        return dict(zip(rows, place_rows(*rows.values()), strict=True))


class Nanochat:
    """nanochat's model and optimizer with its schedules (scripts/base_train.py), in float32 on the CPU."""

    def __init__(self, folder: Path, config, factor: float):
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # its optimizer's fused kernels need a C++ compiler
        sys.path.insert(0, str(folder))
        import torch
        from nanochat.gpt import GPT, GPTConfig

        torch.manual_seed(config.seed)
        m, self._n, self._steps = config.model, 0, config.steps
        sizes = dict(n_layer=m.num_layers, n_head=m.num_heads, n_kv_head=m.num_kv_heads, n_embd=m.embed_dim, window_pattern="L")
        self._model = GPT(GPTConfig(sequence_len=config.sequence_length, vocab_size=m.vocab_size, **sizes))
        self._model.init_weights()
        batch, reference = config.batch_size * config.sequence_length, 2**19
        scale = factor * (batch / reference) ** 0.5
        rates = dict(unembedding_lr=0.008, embedding_lr=0.3, matrix_lr=0.02, scalar_lr=0.5)
        counts = self._model.num_scaling_params()
        d12 = 12 * 12 * 768**2 + 32768 * 768  # parameters of its reference, whose tokens are proportional
        self._decay = 0.28 * (batch / reference) ** 0.5 * d12 / (counts["transformer_matrices"] + counts["lm_head"])
        self._optimizer = self._model.setup_optimizer(**{key: rate * scale for key, rate in rates.items()})

    def step(self, rows: dict[str, Any]) -> None:
        n, steps = self._n, self._steps
        down = round(0.65 * steps)
        late = (n - (steps - down)) / down
        rate = 0.05 * late + 1 - late if late > 0 else min(1.0, (n + 1) / 40)
        momentum = 0.97 - 0.07 * late if late >= 0 and n >= 400 else 0.85 + 0.12 * min(1.0, n / 400)
        self._model.train()
        self._loss(rows).backward()
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = self._decay * 0.5 * (1 + math.cos(math.pi * n / steps))
        self._optimizer.step()
        self._model.zero_grad(set_to_none=True)
        self._n += 1

    def wait(self) -> None:
        """Do nothing: a step ends before it returns."""

    def nats(self, rows: dict[str, Any]) -> float:
        import torch

        with torch.no_grad():
            return float(self._loss(rows, "sum"))

    def _loss(self, rows: dict[str, Any], reduction: str = "mean"):
        import numpy as np
        import torch

        targets = np.where(rows["weights"] > 0, rows["targets"], -1)
        tokens, targets = (torch.from_numpy(np.ascontiguousarray(x, np.int64)) for x in (rows["tokens"], targets))
        return self._model(tokens, targets, loss_reduction=reduction)


if __name__ == "__main__":
    main()
