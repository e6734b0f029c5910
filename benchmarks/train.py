"""Training speed and memory beside its peers, in one run on this machine, and the input pipeline beside what training eats.

python -m benchmarks.train [--shape=14m] [--steps=6] [--rounds=2] [--tune]

Ours is what train.py does by its defaults, with the default recipe (lmcraft) and with the peers' optimizer (lmcraft_adamw).
--tune first tries slices and dtypes, and unrolls the layers. Each competitor runs in a process of its own, in turns (ours, HF,
PyTorch, Flax, ours, …), so that a slow minute of the machine hits all alike; figures are medians over all steps. The last line
is one JSON object. `of_products` is the share of the machine's own fastest product of 2048 × 2048 matrices, in bfloat16 or
float32, by XLA or PyTorch: the floor of a step.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import HUGE_PAGES, SHAPES, Shape, measure

REPO = Path(__file__).parent.parent
PEERS = ("hf", "torch", "flax")
ACCUMULATE = (8, 4, 2, 1)  # slices of the batch that --tune tries; the result is the same, the cache use is not
OURS = {"lmcraft": "default", "lmcraft_adamw": "adamw"}  # recipes
BFLOAT16 = {"amx_bf16", "avx512_bf16"}  # CPU flags; without any, float32 products are tried beside bfloat16 ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="14m", choices=SHAPES, help="14 M parameters, GPT-2 124M's or SmolLM2-135M's sizes")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each competitor in each round")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each competitor")
    parser.add_argument("--tune", action="store_true", help="do not take the defaults: try slices and dtypes, unroll layers")
    parser.add_argument("--peers", default=",".join(PEERS), help="which of hf, torch, flax")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.worker:
        print(json.dumps(WORKERS[options.worker.split(":")[0]](shape, options.steps, *options.worker.split(":")[1:])))
        return

    peers = list(filter(None, options.peers.split(",")))
    floor = max(in_process(worker, options.shape, 1) for worker in ("xla_products", "torch_products"))
    chosen = ":".join(map(str, in_process("choose", options.shape, 1))) if options.tune else "0:auto"
    seconds: dict[str, list[float]] = {name: [] for name in (*OURS, *peers)}
    peak = dict.fromkeys(seconds, 0)
    for round_ in range(options.rounds):
        for name in seconds:
            if name in OURS:
                found = in_process(f"ours:{chosen}:{OURS[name]}", options.shape, options.steps)
            else:
                found = measure(name, shape, steps=options.steps)
            seconds[name] += found["step_seconds"]
            peak[name] = max(peak[name], found["peak_bytes"])
        shown = ", ".join(f"{name} {rate(shape, times):,.0f} tokens/s" for name, times in seconds.items())
        print(f"round {round_ + 1}: {shown}", flush=True)
    rates = {name: rate(shape, times) for name, times in seconds.items()}
    pipeline = input_rate(shape)
    from lm.runs.provenance import machine

    flops = shape.flops / (shape.batch * shape.length)
    print(
        json.dumps(
            {
                "shape": dataclasses.asdict(shape),
                "tokens_per_second": {name: round(value) for name, value in rates.items()},
                "ratio": {peer: {name: round(rates[name] / rates[peer], 3) for name in OURS} for peer in peers},
                "peak_gib": {name: round(value / 2**30, 2) for name, value in peak.items()},
                "gflops_of_products": round(floor / 1e9),
                "of_products": {name: round(value * flops / floor, 3) for name, value in rates.items()},
                "tuned": options.tune and chosen,
                "input_tokens_per_second": round(pipeline),
                "input_over_training": round(pipeline / rates["lmcraft"], 1),
                "machine": machine(),
            }
        )
    )


def rate(shape: Shape, times: list[float]) -> float:
    return shape.batch * shape.length / statistics.median(times)


def in_process(worker: str, shape: str, steps: int):
    """Return what a worker of WORKERS returns, from a process of its own. worker: its name and arguments, between colons."""
    command = [sys.executable, "-m", "benchmarks.train", f"--worker={worker}", f"--shape={shape}", f"--steps={steps}"]
    environment = {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("our own worker failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))
    return json.loads(done.stdout.splitlines()[-1])


def choose(shape: Shape, steps: int) -> tuple[int, str]:
    """Return the slices and the compute type that are fastest here."""
    from lm.runs.provenance import machine

    dtypes = ("bfloat16",) if BFLOAT16 & set(machine()["flags"]) else ("bfloat16", "float32")
    slices = [n for n in ACCUMULATE if shape.batch % n == 0]
    return min(itertools.product(slices, dtypes), key=lambda choice: min(train(shape, *choice, "adamw", steps)))


def ours(shape: Shape, steps: int, accumulate: str, dtype: str, recipe: str) -> dict:
    times = train(shape, int(accumulate), dtype, recipe, steps)
    return {"step_seconds": times, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def train(shape: Shape, accumulate: int, dtype: str, recipe: str, steps: int) -> list[float]:
    """Return the seconds of the real training step (lm.train.step) on random tokens, after two steps of warm-up.

    accumulate, dtype: 0 and "auto" are the defaults. recipe: "default" or "adamw".
    """
    import jax

    from configs.train import default
    from lm.parallel.mesh import make_mesh
    from lm.train.rates import choose_rate
    from lm.train.start import adopt, choose_slices
    from lm.train.step import make_trainer, state_shardings

    config = default.get_config()
    if recipe == "adamw":
        default.adamw(config)
    config.batch_size, config.sequence_length = shape.batch, shape.length
    config.model.update(model_keys(shape), scan_layers=accumulate == 0)
    config.accumulate, config.dtype = accumulate, dtype
    mesh = make_mesh(config.mesh)
    with contextlib.redirect_stdout(sys.stderr):  # what they choose
        adopt(config, None)
        print(choose_slices(config, mesh))
        choose_rate(config)
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


def xla_products(*_) -> float:
    """Return the FLOP/s of XLA's fastest product of 2048 × 2048 matrices."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    matrices = [jnp.ones((2048, 2048), dtype) for dtype in (jnp.bfloat16, jnp.float32)]
    return max(fastest(lambda x: product(x, x).block_until_ready(), x) for x in matrices)


def torch_products(*_) -> float:
    """Return the FLOP/s of PyTorch's fastest product of 2048 × 2048 matrices."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return max(fastest(lambda x: x @ x, torch.ones((2048, 2048), dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))


def fastest(square, x) -> float:
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        square(x)
        times.append(time.perf_counter() - begin)
    return 2 * 2048**3 / min(times)


WORKERS = {"choose": choose, "ours": ours, "xla_products": xla_products, "torch_products": torch_products}


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
