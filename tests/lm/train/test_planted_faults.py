"""Planted faults are found within three steps and rewound, and the final loss is that of the run without them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lm.parallel.mesh import make_mesh
from lm.train import events, loop
from lm.train.events.divergence import SKIPPED
from lm.train.history import load_metrics
from lm.train.step import Trainer, make_trainer
from tests.lm.examples import tiny_config

STEPS, EVERY, V = 320, 20, 64
FIRST = (190, 179, 173)  # the first bad batch of each seed; batch 179 is read by step 180, which saves a checkpoint


def rows(config, seed: int, n: int, garbage: bool = False) -> dict[str, np.ndarray]:
    """Batch n: a token follows from the one before, except for one in ten."""
    rng = np.random.default_rng([seed, n])
    B, T = config.batch_size, config.sequence_length
    drawn = rng.integers(0, V, (B, T + 1))
    tokens = drawn.copy()
    for t in range(1, 0 if garbage else T + 1):
        tokens[:, t] = np.where(rng.random(B) < 0.9, (5 * tokens[:, t - 1] + 3) % V, drawn[:, t])
    ones = np.ones((B, T), np.int32)
    places = {"segment_ids": ones, "positions": ones * np.arange(T, dtype=np.int32)}
    return {"tokens": tokens[:, :-1].astype(np.int32), "targets": tokens[:, 1:].astype(np.int32), **places} | {
        "weights": ones.astype(np.float32)
    }


class Planted:
    """A stream whose batches from `first` on are bad: 20 of random tokens, or marked for `faulty`."""

    def __init__(self, config, seed: int, fault: str, first: int):
        self.config, self.seed, self.fault, self.first = config, seed, fault, first

    def start(self, step):
        pass

    def next(self, step, params, wait):
        n = step - 1 - self.first
        batch = rows(self.config, self.seed, step - 1, self.fault == "garbage" and 0 <= n < 20)
        marked = {"rate": 0 <= n < 8, "bit": n == 0}.get(self.fault, False)
        return {name: jnp.asarray(x) for name, x in batch.items()} | {"marked": jnp.asarray(marked)}, {}

    def ids(self, step):
        return [step - 1]

    def close(self):
        pass


def faulty(trainer: Trainer, fault: str) -> Trainer:
    """The trainer, but after a marked batch its update is 100 times as large, or a bit of a parameter has flipped."""

    def step(state, batch, frozen=None):
        marked = batch["marked"]
        after, metrics = trainer.step(state, {name: x for name, x in batch.items() if name != "marked"}, frozen)
        if fault == "rate":
            moved = jax.tree.map(lambda new, old: jnp.where(marked, old + 100 * (new - old), new), after.params, state.params)
            return after._replace(params=moved), metrics
        params = jax.tree.map(lambda x: x, after.params)
        weight = params["stacks"][0][0]["feed_forward"]["down"]["weight"]
        bits = lax.bitcast_convert_type(weight.get_value(), jnp.uint32)
        flip = np.zeros(bits.shape, np.uint32)
        flip[1, 3, 5] = 1 << 30
        flipped = lax.bitcast_convert_type(bits ^ flip, jnp.float32)
        weight.set_value(jnp.where(marked, flipped, weight.get_value()))
        return after._replace(params=params), metrics

    return trainer._replace(step=step)


def config_of(seed: int):
    config = tiny_config(vocab_size=V)
    config.update(steps=STEPS, seed=seed, valid_every=0, checkpoint_every=EVERY, batch_size=32)
    config.optimizer.update(learning_rate=1e-2, warmup=20, schedule="wsd")
    return config


def final_loss(config, seed, fault, first, workdir) -> tuple[float, dict]:
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        used = faulty(trainer, fault) if fault != "garbage" else trainer
        if fault == "garbage":
            used = trainer._replace(step=lambda s, b, f=None: trainer.step(s, {k: x for k, x in b.items() if k != "marked"}, f))
        result = loop.train(config, used, mesh, Planted(config, seed, fault, first), workdir, events.usual(config))
        evaluate = jax.jit(trainer.evaluate)
        sums = [evaluate(result["params"], rows(config, seed, 10**6 + i)) for i in range(20)]
    return sum(float(x["objective"]) for x in sums) / sum(float(x["weight"]) for x in sums), result


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_faults(seed, tmp_path):
    config, first = config_of(seed), FIRST[seed]
    clean, undisturbed = final_loss(config, seed, "garbage", STEPS, tmp_path / "clean")
    assert not undisturbed["rewinds"] and undisturbed["skipped"] <= 1 and clean < 0.3 * np.log(V)
    for fault in ("garbage", "rate", "bit"):
        workdir = tmp_path / fault
        loss, result = final_loss(config, seed, fault, first, workdir)
        skipped = [row for row in lines(workdir / SKIPPED) if row["rewind"] == 1]
        bad = [row["step"] for i, row in enumerate(skipped) if row["skipped"] > (skipped[i - 1]["skipped"] if i else 0)]
        # Without a skipped step the state could not be saved. Step first + 1 reads the first bad batch.
        found = (bad[0] if bad else result["rewinds"][0]["at"]) - (first + 1)
        print(f"seed {seed}, {fault}: loss {loss:.4f}, without {clean:.4f}, found after {found} steps")
        assert 0 <= found <= 3, fault
        assert 1 <= len(result["rewinds"]) <= 3 and result["step"] == STEPS
        train, _ = load_metrics(workdir / "metrics.jsonl")
        assert [row["step"] for row in train] == list(range(1, STEPS + 1))
        assert loss == pytest.approx(clean, rel=0.01), fault


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
