"""What does the spike guard cost a sound run, and what does it save of a troubled one? Small models, several seeds.

python -m benchmarks.guard [--seeds=6] [--input=FILES] [--out=runs/guard] [--kinds=clean,garbage]

Each run is the real loop (lm/train/loop.py) with 0.2 M parameters, 1,024 tokens a step and the demo's 550 steps and learning
rate. Trouble comes at steps that the seed draws, the same with the guard and without:

    clean     none: a skipped step is a false alarm
    garbage   8 single batches of random tokens
    shard     8 such batches in a row
    gradient  8 single steps whose gradient alone is 20 times as large, without clipping
    rate      the learning rate is 10 times as high, in the whole run
    minority  1 batch in 25 is of another kind, the text with its pieces renamed; its own loss is measured too

A finished run stays in OUT/runs.jsonl, so the same line resumes. Prints, for each kind with the guard off and on, sums over the
seeds: skipped steps, those of them that were trouble, all trouble, rewinds; then the mean of the validation's bits per byte
(minority: nats a token) and its difference from `off`, seed by seed, with a 95 % interval. The last line is one JSON object.
"""

import argparse
import functools
import json
import shutil
from pathlib import Path

import numpy as np

KINDS = ("clean", "garbage", "shard", "gradient", "rate", "minority")
STEPS, FIRST, TIMES, ROWS, VOCAB = 550, 200, 8, 8, 1024
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # of Student's t, by seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, choices=T95)
    parser.add_argument("--input", help="training text, as config.data.input; default: this Python installation")
    parser.add_argument("--out", type=Path, default=Path("runs/guard"))
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file, table = options.out / "runs.jsonl", {}
    runs = {tuple(run["key"]): run for run in map(json.loads, file.read_text().splitlines() if file.exists() else ())}
    for kind in options.kinds.split(","):
        for key in [(kind, arm, seed) for seed in range(options.seeds) for arm in ("off", "on")]:
            if key not in runs:
                runs[key] = {"key": key} | measured(*key, options)
                with file.open("a") as f:
                    f.write(json.dumps(runs[key]) + "\n")
        for arm in ("off", "on"):
            mine, off = ([runs[kind, name, seed] for seed in range(options.seeds)] for name in (arm, "off"))
            table[f"{kind}, {arm}"] = summary(mine, off)
            print(f"{kind}, {arm}: {table[f'{kind}, {arm}']}", flush=True)
    print(json.dumps(table))


def summary(mine: list[dict], off: list[dict]) -> dict:
    """Return sums and means over the seeds, and paired differences from the runs without a guard."""
    sums = {name: sum(run[name] for run in mine) for name in ("skipped", "caught", "trouble", "rewinds")}
    for name in ("bits_per_byte", "minority") if "minority" in mine[0] else ("bits_per_byte",):
        values, others = (np.array([run[name] for run in runs]) for runs in (mine, off))
        apart = values - others
        within = T95[len(apart)] * apart.std(ddof=1) / len(apart) ** 0.5
        sums |= {name: round(float(values.mean()), 4), f"{name} − off": f"{apart.mean():+.4f} ± {within:.4f}"}
    return sums


def config_of(kind: str, arm: str, text: str | None):
    from configs.train import demo
    from lm.train.rates import choose_rate

    config = demo.get_config()
    config.update(steps=STEPS, batch_size=ROWS, accumulate=1, dtype="float32", valid_every=0)
    config.data.input = text
    config.model.update(vocab_size=VOCAB, num_layers=2, embed_dim=64, num_heads=2, num_kv_heads=2, mlp_dim=192, remat="none")
    config.guard.on = arm == "on"
    if kind == "gradient":
        config.optimizer.clip_norm = float("inf")  # all norms are above the demo's limit, which would undo the fault
    choose_rate(config)
    config.optimizer.learning_rate *= 10 if kind == "rate" else 1
    return config


class Troubled:
    """The batches of a run, some of them spoilt. bad: their numbers from 0."""

    def __init__(self, batches, feed, kind: str, seed: int):
        self._batches, self._feed, self._kind = batches, feed, kind
        bad = np.random.default_rng(seed).choice(np.arange(FIRST, STEPS - 50), TIMES, replace=False)
        bad = bad[0] + np.arange(TIMES) if kind == "shard" else bad
        self.bad = {"clean": set(), "rate": set(), "minority": set(range(12, STEPS, 25))}.get(kind, set(bad.tolist()))

    def start(self, step):
        pass

    def next(self, step, params, wait):
        batch, spoilt = self._batches.batch(step - 1), step - 1 in self.bad
        if spoilt and self._kind in ("garbage", "shard"):
            random = np.random.default_rng(step - 1).integers(0, VOCAB, batch["tokens"].shape, np.int32)
            batch = batch | {"tokens": random, "targets": np.roll(random, -1, axis=1)}
        batch = renamed(batch) if spoilt and self._kind == "minority" else batch
        times = np.full(ROWS, 20 if spoilt and self._kind == "gradient" else 1, np.float32)
        return self._feed.to_devices(batch | {"times": times}), {}

    def ids(self, step):
        return [step - 1]

    def close(self):
        pass


def renamed(batch: dict) -> dict:
    """Return the batch in another alphabet: as learnable, and unknown to a model of the first one."""
    return batch | {name: (VOCAB - 1 - batch[name]).astype(batch[name].dtype) for name in ("tokens", "targets")}


@functools.cache
def trainer_of(kind: str, arm: str, text: str | None):
    """Return a trainer whose batches also say how many times too large the gradient is."""
    import jax
    import jax.numpy as jnp

    from lm.train.step import Objective, make_trainer, pretraining

    config = config_of(kind, arm, text)
    plain = pretraining(z_loss=config.optimizer.z_loss, mtp_loss=config.optimizer.mtp_loss)

    def loss(model, batch, frozen, **how):
        total, sums = plain.loss(model, batch, frozen, **how)
        if "times" in batch:  # not in a batch of the validation
            total = total + (jnp.max(batch["times"]) - 1) * (total - jax.lax.stop_gradient(total))
        return total, sums

    return make_trainer(config, Objective(loss, plain.weight))


def measured(kind: str, arm: str, seed: int, options) -> dict:
    """Train in a fresh workdir, and return the numbers of the run."""
    import jax

    from data.text.batches import TextBatches
    from data.text.pipeline import prepare_text
    from lm.model.transformer import build
    from lm.parallel.mesh import make_mesh
    from lm.train import events, loop
    from lm.train.events.validation import Evaluator, valid_batches
    from lm.train.feed import Feed
    from lm.train.step import model_config_of

    config = config_of(kind, arm, options.input)
    tokenizer, dataset, _ = prepare_text(config, options.out)
    workdir, mesh = options.out / "run", make_mesh(config.mesh)
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir()
    with jax.set_mesh(mesh):
        trainer = trainer_of(kind if kind in ("gradient", "rate") else "clean", arm, options.input)
        batches = TextBatches(dataset, "train", batch_size=ROWS, seed=seed)
        feed, valid = Feed(batches, mesh), valid_batches(dataset, ROWS)
        stream = Troubled(batches, feed, kind, seed)
        start = functools.partial(build, model_config_of(config), seed)
        validate = Evaluator(trainer, valid, mesh, tokenizer, VOCAB)
        result = loop.train(config, trainer, mesh, stream, workdir, events.usual(config, validate), start)
        found = {"bits_per_byte": float(result["valid"]["bits_per_byte"])}
        if kind == "minority":
            evaluate, held_out = jax.jit(trainer.evaluate), (one.batch(n) for one in valid.values() for n in range(8))
            sums = [evaluate(result["params"], feed.to_devices(renamed(batch))) for batch in held_out]
            found["minority"] = float(sum(one["objective"] for one in sums) / sum(one["weight"] for one in sums))
    steps = [row for row in map(json.loads, (workdir / "metrics.jsonl").open()) if "grad_norm" in row]
    skips = [b["step"] - 1 + b.get("skipped_batches", 0) for a, b in zip(steps, steps[1:]) if b["skipped"] > a["skipped"]]
    caught = sum(n in stream.bad for n in skips)
    return found | {"skipped": len(skips), "caught": caught, "trouble": len(stream.bad), "rewinds": len(result["rewinds"])}


if __name__ == "__main__":
    main()
