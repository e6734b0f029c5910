"""What does the spike guard cost a sound run, and what does it save of a troubled one? Small models, several seeds.

python -m benchmarks.guard [--seeds=6] [--input=FILES] [--out=runs/guard] [--kinds=clean,garbage] [--arms=off,on]

Each run is the real loop (lm/train/loop.py) with a model of 0.2 M parameters, 550 steps and the demo's learning rate. Trouble
comes at steps that the seed draws, the same for every arm:

    clean     none: a skipped step is a false alarm
    garbage   8 single batches of random tokens
    shard     8 such batches in a row
    row       8 batches in a row that repeat one row of random tokens
    gain      8 single steps whose loss, and so gradient, is 100 times as large
    gradient  8 single steps whose gradient alone is 20 times as large
    rate      8 steps in a row whose update is 30 times as large
    minority  1 batch in 25 is of another kind, here the text with its pieces renamed; also measured on that kind

A finished run stays in OUT/runs.jsonl, so the same line resumes. Prints, for each kind and arm, the skipped steps, the trouble
among them, rewinds, the validation's bits per byte and its difference from `off`, seed by seed: mean ± 95 % interval
(Student's t). The last line is one JSON object.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

KINDS = ("clean", "garbage", "shard", "row", "gain", "gradient", "rate", "minority")
STEPS, FIRST, TIMES = 550, 200, 8
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # of Student's t, by seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, choices=T95)
    parser.add_argument("--input", help="training text, as config.data.input; default: this Python installation")
    parser.add_argument("--out", type=Path, default=Path("runs/guard"))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--arms", default="off,on")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "runs.jsonl"
    runs = {tuple(run["key"]): run for run in map(json.loads, file.open() if file.exists() else ())}
    arms, found = options.arms.split(","), {}
    for kind in options.kinds.split(","):
        for seed in range(options.seeds):
            for arm in arms:
                if (kind, arm, seed) not in runs:
                    runs[kind, arm, seed] = measured(kind, arm, seed, options)
                    with file.open("a") as f:
                        f.write(json.dumps(runs[kind, arm, seed]) + "\n")
        for arm in arms:
            ours, off = ([runs[kind, name, seed] for seed in range(options.seeds)] for name in (arm, "off"))
            found[f"{kind} {arm}"] = summary(ours, off)
            print(kind, arm, found[f"{kind} {arm}"], flush=True)
    print(json.dumps(found))


def summary(ours: list[dict], off: list[dict]) -> dict:
    """Return sums and means over the seeds, and paired differences from the runs without a guard."""
    sums = {name: sum(run[name] for run in ours) for name in ("skipped", "caught", "trouble", "rewinds")}
    for name in ("bits_per_byte", "minority"):
        values, others = (np.array([run[name] for run in runs if name in run]) for runs in (ours, off))
        if len(values):
            apart = values - others
            within = T95[len(apart)] * apart.std(ddof=1) / len(apart) ** 0.5
            sums |= {name: round(values.mean(), 4), f"{name} − off": f"{apart.mean():+.4f} ± {within:.4f}"}
    return sums


def config_of(seed: int, arm: str, options):
    from configs.train import demo

    config = demo.get_config()
    config.update(seed=seed, steps=STEPS, batch_size=8, accumulate=1, dtype="float32", valid_every=0)
    config.data.input = options.input
    config.model.update(
        vocab_size=1024, num_layers=2, embed_dim=64, num_heads=2, num_kv_heads=2, head_dim=32, mlp_dim=192, remat="none"
    )
    config.guard.on = arm != "off"
    return config


class Troubled:
    """The batches of a run, some of them spoilt. `bad`: their numbers from 0."""

    def __init__(self, batches, mesh, kind: str, seed: int, vocab_size: int):
        from lm.train.feed import Feed

        self._batches, self._feed, self._kind, self._vocab_size = batches, Feed(batches, mesh), kind, vocab_size
        rng = np.random.default_rng(seed)
        chosen = rng.choice(np.arange(FIRST, STEPS - 50), TIMES, replace=False)
        if kind in ("shard", "row", "rate"):
            chosen = chosen[0] + np.arange(TIMES)
        self.bad = {"clean": set(), "minority": set(range(12, STEPS, 25))}.get(kind, set(chosen.tolist()))

    def start(self, step):
        pass

    def next(self, step, params, wait):
        n = step - 1
        batch, spoilt = dict(self._batches.batch(n)), n in self.bad
        if spoilt and self._kind in ("garbage", "shard", "row"):
            random = np.random.default_rng(n).integers(0, self._vocab_size, batch["tokens"].shape, np.int32)
            random = np.broadcast_to(random[:1], random.shape) if self._kind == "row" else random
            batch |= {"tokens": random, "targets": np.roll(random, -1, axis=1)}
        if spoilt and self._kind == "minority":
            batch = renamed(batch, self._vocab_size)
        ones = np.ones(len(batch["tokens"]), np.float32)
        faults = {name: np.float32(by if spoilt and self._kind == name else 1) * ones for name, by in (("gain", 100), ("gradient", 20), ("rate", 30))}
        return self._feed.to_devices(batch | faults), {}

    def ids(self, step):
        return [step - 1]

    def close(self):
        pass


def renamed(batch: dict, vocab_size: int) -> dict:
    """Return the batch in another alphabet: as learnable, and unknown to a model of the first one."""
    return batch | {name: (vocab_size - 1 - batch[name]).astype(batch[name].dtype) for name in ("tokens", "targets")}


TRAINERS: dict = {}


def trainer_of(config):
    """Return a trainer whose batches also say how many times too large the loss and the update are: gain_B, rate_B."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from lm.train.step import Objective, make_trainer, pretraining

    plain = pretraining(z_loss=config.optimizer.z_loss, mtp_loss=config.optimizer.mtp_loss)

    def loss(model, batch, frozen, key):
        total, sums = plain.loss(model, batch, frozen, key)
        if "gain" in batch:  # not in a batch of the validation
            total = total * jnp.max(batch["gain"])
            total = total + (jnp.max(batch["gradient"]) - 1) * (total - lax.stop_gradient(total))
        return total, sums

    trainer = make_trainer(config, Objective(loss, plain.weight))

    def step(state, batch, frozen=None):
        rate = jnp.max(batch["rate"])
        after, metrics = trainer.step(state, {name: x for name, x in batch.items() if name != "rate"}, frozen)
        wrong = jax.tree.map(lambda new, old: jnp.where(rate == 1, new, old + rate * (new - old)), after.params, state.params)
        return after._replace(params=wrong), metrics

    return trainer._replace(step=step)


def measured(kind: str, arm: str, seed: int, options) -> dict:
    """Train in a fresh workdir, and return its record."""
    import functools

    import jax

    from data.text.batches import TextBatches
    from data.text.pipeline import prepare_text
    from lm.model.transformer import build
    from lm.parallel.mesh import make_mesh
    from lm.train import loop
    from lm.train.evaluator import Evaluator, valid_batches
    from lm.train.feed import Feed, summed
    from lm.train.step import model_config_of

    config = config_of(seed, arm, options)
    same = config_of(0, arm, options)  # the data and the compiled program do not depend on the seed
    tokenizer, dataset, _ = prepare_text(same, options.out)
    workdir, mesh = options.out / "run", make_mesh(config.mesh)
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir()
    with jax.set_mesh(mesh):
        if arm not in TRAINERS:
            TRAINERS[arm] = trainer_of(same)
        trainer = TRAINERS[arm]
        batches = TextBatches(dataset, "train", batch_size=config.batch_size, seed=seed)
        stream = Troubled(batches, mesh, kind, seed, config.model.vocab_size)
        validate = Evaluator(trainer, valid_batches(dataset, 8), mesh, tokenizer, config.model.vocab_size)
        start = functools.partial(build, model_config_of(config), seed)
        try:
            result = loop.train(config, trainer, mesh, stream, validate, workdir, start)
        except loop.Diverged as diverged:
            return {"key": [kind, arm, seed], "diverged": str(diverged)}
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        steps = [row for row in rows if "grad_norm" in row]
        before = np.array([0] + [row["skipped"] for row in steps])
        skips = [row["step"] + row.get("skipped_batches", 0) for row, was in zip(steps, before) if row["skipped"] > was]
        record = {
            "key": [kind, arm, seed],
            "bits_per_byte": float(result["valid"]["bits_per_byte"]),
            "skipped": result["skipped"],
            "caught": sum(step - 1 in stream.bad for step in skips),
            "trouble": len(stream.bad),
            "rewinds": len(result["rewinds"]),
            "losses": [row["loss"] for row in steps],
            "norms": [row["grad_norm"] for row in steps],
        }
        if kind == "minority":
            feed, split = Feed(batches, mesh), TextBatches(dataset, "valid", batch_size=8, shuffle=False)
            evaluate = functools.partial(jax.jit(trainer.evaluate), result["params"])
            sums = summed(evaluate, (feed.to_devices(renamed(split.batch(n), config.model.vocab_size)) for n in range(8)))
            record["minority"] = float(sums["objective"] / sums["weight"])
    return record


if __name__ == "__main__":
    main()
