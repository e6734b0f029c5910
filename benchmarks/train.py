"""Training speed beside its peers, in one run on this machine, and the input pipeline beside what training eats.

python -m benchmarks.train [--steps=10]

Each competitor runs in a process of its own, in turns (ours, HF, PyTorch, ours, HF, PyTorch, …), so that a slow minute of
the machine hits all alike; figures are medians over all steps. The last line is one JSON object.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import Shape, measure

REPO = Path(__file__).parent.parent
ACCUMULATE = (8, 4, 1)  # slices of the batch tried in our own warm-up; the result is the same, the cache use is not
BFLOAT16 = {"amx_bf16", "avx512_bf16"}  # CPU flags; without any, float32 products are tried beside bfloat16 ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each competitor in each round")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each competitor")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(ours(Shape(), options.steps)))
        return

    steps: dict[str, list[float]] = {"lmcraft": [], "hf": [], "torch": []}
    mine: dict = {}
    for round_ in range(options.rounds):
        mine = in_process(options.steps)
        steps["lmcraft"] += mine["step_seconds"]
        for peer in ("hf", "torch"):
            steps[peer] += measure(peer, Shape(), steps=options.steps)["step_seconds"]
        shown = ", ".join(f"{name} {rate(times):,.0f} tokens/s" for name, times in steps.items())
        print(f"round {round_ + 1}: {shown}", flush=True)
    pipeline = input_rate(Shape())
    rates = {name: rate(times) for name, times in steps.items()}
    from lm.reports.page import machine

    print(
        json.dumps(
            {
                "shape": dataclasses.asdict(Shape()),
                "tokens_per_second": {name: round(value) for name, value in rates.items()},
                "ratio": {peer: round(rates["lmcraft"] / rates[peer], 3) for peer in ("hf", "torch")},
                "chosen": {key: mine[key] for key in ("accumulate", "dtype")},
                "input_tokens_per_second": round(pipeline),
                "input_over_training": round(pipeline / rates["lmcraft"], 1),
                "machine": machine(),
            }
        )
    )


def rate(times: list[float]) -> float:
    return Shape().batch * Shape().length / statistics.median(times)


def in_process(steps: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.train", "--worker", f"--steps={steps}"]
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("our own worker failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))
    return json.loads(done.stdout.splitlines()[-1])


def ours(shape: Shape, steps: int) -> dict:
    """The real training step (lm.train.step) on random tokens, with the slices and compute type that are fastest here."""
    import jax

    from configs.train import default
    from lm.parallel.mesh import make_mesh
    from lm.reports.page import machine
    from lm.train.step import make_trainer, state_shardings

    def run(accumulate: int, dtype: str, steps: int) -> list[float]:
        config = default.get_config()
        config.accumulate, config.dtype = accumulate, dtype
        config.batch_size, config.sequence_length = shape.batch, shape.length
        config.model.update(model_keys(shape), scan_layers=False)
        mesh = make_mesh(config.mesh)
        with jax.set_mesh(mesh):
            trainer = make_trainer(config)
            state = jax.jit(trainer.init, out_shardings=state_shardings(trainer, mesh))()
            batch = random_batch(shape)
            step = jax.jit(trainer.step, donate_argnums=0)
            times = []
            for _ in range(steps + 2):
                begin = time.perf_counter()
                state, metrics = step(state, batch)
                float(metrics["loss"])
                times.append(time.perf_counter() - begin)
        return times[2:]

    dtypes = ("bfloat16",) if BFLOAT16 & set(machine()["flags"]) else ("bfloat16", "float32")
    accumulate, dtype = min(itertools.product(ACCUMULATE, dtypes), key=lambda choice: min(run(*choice, 3)))
    return {"accumulate": accumulate, "dtype": dtype, "step_seconds": run(accumulate, dtype, steps)}


def model_keys(shape: Shape) -> dict:
    """Return the keys of our model's config at this shape."""
    return dict(
        vocab_size=shape.vocab,
        num_layers=shape.layers,
        embed_dim=shape.width,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_size,
        mlp_dim=shape.feed_forward,
        tie_embeddings=shape.tied,
    )


def random_batch(shape: Shape) -> dict:
    """Return a batch of random tokens, one document a row, as the training step takes it."""
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, shape.vocab, (shape.batch, shape.length)).astype(np.int32)
    ones = np.ones_like(tokens)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": ones,
        "positions": np.cumsum(ones, axis=1, dtype=np.int32) - 1,
        "weights": ones.astype(np.float32),
    }


def input_rate(shape: Shape, seconds: float = 5.0) -> float:
    """Tokens/s of the input pipeline alone: packed rows from disk, shuffled, prefetched, batched."""
    from data.sources import open_sources
    from data.text.batches import TextBatches, read_ahead
    from data.text.dataset import prepare
    from data.text.sentencepiece_tokenizer import train
    from data.text.split import survey

    with tempfile.TemporaryDirectory() as folder:
        sources = [source for source in open_sources(None, max_bytes=8_000_000) if source.name == "code"]
        kept = survey(sources, valid_fraction=0.0, seed=0)
        texts = (document.text for document, _ in kept.documents(sources[0]))
        tokenizer = train(texts, Path(folder) / "t.model", vocab_size=shape.vocab, sample_bytes=2_000_000, seed=0, threads=2)
        prepare(Path(folder) / "data", sources, tokenizer, sequence_length=shape.length, survey=kept)
        iterator = read_ahead(TextBatches(Path(folder) / "data", batch_size=shape.batch).batch)
        next(iterator)
        begin, batches = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            next(iterator)
            batches += 1
        iterator.close()
        return batches * shape.batch * shape.length / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
