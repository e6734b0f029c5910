"""Training speed and memory beside its peers, in one run on this machine, and the input pipeline beside what training eats.

python -m benchmarks.train [--shape=14m] [--steps=12] [--rounds=2] [--peers=hf,torch,flax] [--dtypes=bfloat16]

Ours is train.py by its default flags, as a process: its steps from the seventh on, with the default recipe (lmcraft) and with
the peers' optimizer (lmcraft_adamw). The PyTorch peers run in float32, and in bfloat16 where the processor multiplies it. They
keep their memory from step to step, which makes them up to 2.4 times as fast as without a setting (--plain).
Each competitor runs in a process of its own, in turns (ours, HF, PyTorch, Flax, ours, …), so that a slow minute of the machine
hits all alike; figures are medians over all steps. The last line is one JSON object. `of_products` is the share of the fastest
product of 2048 × 2048 matrices here, in bfloat16 or float32, by XLA or PyTorch: the floor of a step.

To limit all to AVX2: NUMBA_CPU_NAME=haswell XLA_FLAGS=--xla_cpu_max_isa=AVX2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2.
"""

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import HUGE_PAGES, SHAPES, STATE, Shape, measure

REPO = Path(__file__).parent.parent
PEERS = ("hf", "torch", "flax")
OURS = {"lmcraft": "", "lmcraft_adamw": "default.adamw(config)"}  # recipes, as a line of a config file
WARMUP = 6  # of our steps
CONFIG = """
from configs.train import default

def get_config():
    config = default.get_config()
    {recipe}
    config.batch_size, config.sequence_length, config.steps = {batch}, {length}, 1000
    config.model.update({model})
    config.tokenizer, config.data.max_bytes, config.data.max_valid_bytes = {tokenizer!r}, 3_000_000, 50_000
    return config
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", default="14m", choices=SHAPES, help="14 M parameters, GPT-2 124M's or SmolLM2-135M's sizes, or a layer"
    )
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each competitor in each round")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each competitor")
    parser.add_argument("--peers", default=",".join(PEERS), help="which of hf, torch, flax")
    parser.add_argument(
        "--dtypes", default="", help="of the PyTorch peers: float32,bfloat16; default: those that are fast here"
    )
    parser.add_argument("--plain", action="store_true", help="leave the peers' memory to glibc's defaults")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.worker:
        print(json.dumps(WORKERS[options.worker]()))
        return

    floor = max(map(in_process, WORKERS))
    fast = ("float32", "bfloat16") if multiplies_bfloat16() else ("float32",)
    dtypes = options.dtypes.split(",") if options.dtypes else fast
    peers = [(peer, dtype) for peer in filter(None, options.peers.split(",")) for dtype in dtypes]
    peers = [(peer, dtype) for peer, dtype in peers if peer != "flax" or dtype == dtypes[-1]]
    seconds: dict[str, list[float]] = {name: [] for name in (*OURS, *map(":".join, peers))}
    peak = dict.fromkeys(seconds, 0)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_in(Path(folder), min(shape.vocab, 8192))
        for round_ in range(options.rounds):
            for name in seconds:
                if name in OURS:
                    found = ours(shape, OURS[name], tokenizer, options.steps)
                else:
                    peer, dtype = name.split(":")
                    found = measure(peer, shape, steps=options.steps, dtype=dtype, plain=options.plain)
                seconds[name] += found["step_seconds"]
                peak[name] = max(peak[name], found["peak_bytes"])
            shown = ", ".join(f"{name} {rate(shape, times):,.0f} tokens/s" for name, times in seconds.items())
            print(f"round {round_ + 1}: {shown}", flush=True)
    rates = {name: rate(shape, times) for name, times in seconds.items()}
    best = max((name for name in rates if name not in OURS), key=rates.__getitem__, default=None)
    pipeline = input_rate(shape)
    from lm.runs.provenance import machine

    flops = shape.flops / (shape.batch * shape.length)
    print(
        json.dumps(
            {
                "shape": dataclasses.asdict(shape),
                "tokens_per_second": {name: round(value) for name, value in rates.items()},
                "fastest_peer": best,
                "ratio": {name: round(rates[name] / rates[best], 3) for name in OURS} if best else {},
                "peak_gib": {name: round(value / 2**30, 2) for name, value in peak.items()},
                "gflops_of_products": round(floor / 1e9),
                "of_products": {name: round(value * flops / floor, 3) for name, value in rates.items()},
                "input_tokens_per_second": round(pipeline),
                "input_over_training": round(pipeline / rates["lmcraft"], 1),
                "machine": machine(),
            }
        )
    )


def rate(shape: Shape, times: list[float]) -> float:
    return shape.batch * shape.length / statistics.median(times)


def multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16, and PyTorch is not kept from it: without, that takes minutes a step."""
    from lm.train.chips import dtype_here

    return dtype_here()[0] == "bfloat16" and "ATEN_CPU_CAPABILITY" not in os.environ


def in_process(worker: str):
    """Return what a worker of WORKERS returns, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train", f"--worker={worker}"]
    environment = {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("our own worker failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))
    return json.loads(done.stdout.splitlines()[-1])


def ours(shape: Shape, recipe: str, tokenizer: str, steps: int) -> dict:
    """Run train.py by its default flags on this Python's text until it has done the steps. Return what a peer returns."""
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder) / "config.py", Path(folder) / "run" / "metrics.jsonl"
        model, batch = model_keys(shape), shape.batch
        config.write_text(CONFIG.format(recipe=recipe, batch=batch, length=shape.length, model=model, tokenizer=tokenizer))
        command = [sys.executable, "train.py", f"--config={config}", f"--workdir={log.parent}"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment.pop("GLIBC_TUNABLES", None)
        with (Path(folder) / "log").open("w+") as output:
            process = subprocess.Popen(command, cwd=REPO, env=environment, stdout=output, stderr=subprocess.STDOUT)
            while process.poll() is None and (not log.exists() or log.read_text().count("\n") < WARMUP + steps):
                time.sleep(0.5)
            if process.poll() is not None:
                output.seek(0)
                raise RuntimeError(f"train.py ended with {process.returncode}:\n{output.read()[-2000:]}")
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.kill()
            process.wait()
        lines = [json.loads(line) for line in log.read_text().splitlines()[: WARMUP + steps]]
    times = [shape.batch * shape.length / line["tokens_per_second"] for line in lines[WARMUP:]]
    return {"step_seconds": times, "peak_bytes": int(re.findall(r"VmHWM:\s*(\d+)", status)[0]) * 1024}


def tokenizer_in(folder: Path, vocab_size: int) -> str:
    """Train a tokenizer on this Python's text, so that no run has to. Return its file."""
    from data.sources import open_sources
    from data.text.sentencepiece_tokenizer import train
    from data.text.split import survey

    sources = [source for source in open_sources(None, max_bytes=8_000_000) if source.name == "code"]
    kept = survey(sources, valid_fraction=0.0, seed=0)
    texts = (document.text for document, _ in kept.documents(sources[0]))
    train(texts, folder / "t.model", vocab_size=vocab_size, sample_bytes=2_000_000, seed=0, threads=2)
    return str(folder / "t.model")


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
    dtypes = (torch.bfloat16, torch.float32) if multiplies_bfloat16() else (torch.float32,)
    return max(fastest(lambda x: x @ x, torch.ones((2048, 2048), dtype=dtype)) for dtype in dtypes)


def fastest(square, x) -> float:
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        square(x)
        times.append(time.perf_counter() - begin)
    return 2 * 2048**3 / min(times)


WORKERS = {"xla_products": xla_products, "torch_products": torch_products}


def model_keys(shape: Shape) -> dict:
    """Return the keys of our model's config at this shape."""
    states = {"attention_pattern": ("global",) if shape.mixer == "attention" else (shape.mixer,)}
    if shape.mixer in ("delta", "mamba"):
        value = STATE if shape.mixer == "delta" else 64
        sizes = dict(num_heads=2 * shape.width // value, num_key_heads=shape.num_key_heads, key_dim=STATE, value_dim=value)
        states["recurrent"] = dict(sizes, bias=shape.mixer == "mamba")
    elif shape.mixer == "conv":
        states["recurrent"] = dict(kernel=3)
    return states | dict(
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
    from data.text.split import survey
    from data.text.tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        sources = [source for source in open_sources(None, max_bytes=8_000_000) if source.name == "code"]
        kept = survey(sources, valid_fraction=0.0, seed=0)
        tokenizer = load_tokenizer(tokenizer_in(Path(folder), min(shape.vocab, 8192)))
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
