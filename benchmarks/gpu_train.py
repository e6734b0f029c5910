"""Training speed on one NVIDIA GPU beside PyTorch: the 1.2 B shape of configs/train/1b.py, bfloat16.

python -m benchmarks.gpu_train [--lengths=2048,8192] [--tokens=16384] [--steps=10] [--rounds=2]
python -m benchmarks.gpu_train --tiny     # a small shape, on any device: whether everything runs

Ours is the real step (lm.train.step). The peer is the plain Llama of benchmarks/peers.py with torch.compile, SDPA (flash
attention), autocast to bfloat16 and fused AdamW. Both have float32 parameters, see the same number of tokens a step, and are
given one document a row. Each runs in a process of its own, in turns; figures are medians over all steps. Ours first tries the
remat policies and slices of KNOBS for a few steps, and takes the fastest that fits. The last line is one JSON object.
"""

import argparse
import dataclasses
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers import Shape, build_torch
from benchmarks.train import model_keys, random_batch

REPO = Path(__file__).parent.parent
KNOBS = {"remat": ("none", "matmuls", "full"), "accumulate": (1, 2, 4)}
TINY_KNOBS = {"remat": ("none",), "accumulate": (1, 4)}
WARMUP = 3  # steps; the first compiles
TINY = Shape(layers=2, width=64, heads=4, kv_heads=2, head_size=16, feed_forward=128, vocab=256, length=128, batch=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="2048,8192", help="tokens of a row, one or several")
    parser.add_argument("--tokens", type=int, default=16_384, help="of a step")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each competitor in each round")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each competitor")
    parser.add_argument("--tiny", action="store_true", help="a small shape, on any device")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        task = json.loads(options.worker)
        run = {"lmcraft": ours, "torch": peer}[task.pop("competitor")]
        print(json.dumps(run(Shape(**task.pop("shape")), **task)))
        return
    if not options.tiny and not has_gpu():
        print("gpu_train: no NVIDIA GPU here; --tiny runs a small shape on any device", file=sys.stderr)
        sys.exit(2)
    shapes = [TINY] if options.tiny else [shape_of(int(length), options.tokens) for length in options.lengths.split(",")]
    knobs = TINY_KNOBS if options.tiny else KNOBS
    print(json.dumps({"results": [compared(shape, knobs, options.steps, options.rounds) for shape in shapes]}))


def has_gpu() -> bool:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.startswith("GPU")
    except OSError:
        return False


def shape_of(length: int, tokens: int) -> Shape:
    """Return the shape of configs/train/1b.py with rows of `length`."""
    model = importlib.import_module("configs.train.1b").get_config().model
    return Shape(
        layers=model.num_layers,
        width=model.embed_dim,
        heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        head_size=model.head_dim,
        feed_forward=model.mlp_dim,
        vocab=model.vocab_size,
        tied=model.tie_embeddings,
        length=length,
        batch=max(1, tokens // length),
    )


def compared(shape: Shape, tried_knobs: dict[str, tuple], steps: int, rounds: int) -> dict:
    """Return the chosen settings, and of each competitor tokens/s, MFU and peak memory."""
    tried = {}
    for choice in itertools.product(*tried_knobs.values()):
        knobs = dict(zip(tried_knobs, choice))
        if shape.batch % knobs["accumulate"] == 0:
            tried[choice] = in_process("lmcraft", shape, steps=3, **knobs)
            print(f"T {shape.length}, {knobs}: {shown(shape, tried[choice])}", flush=True)
    fitting = {choice: result for choice, result in tried.items() if "step_seconds" in result}
    if not fitting:
        sys.exit(f"gpu_train: no setting ran: {next(iter(tried.values()))['failed']}")
    best = dict(zip(tried_knobs, min(fitting, key=lambda choice: statistics.median(fitting[choice]["step_seconds"]))))
    seconds: dict[str, list[float]] = {"lmcraft": [], "torch": []}
    last = {}
    for round_, name in itertools.product(range(rounds), seconds):
        last[name] = in_process(name, shape, steps=steps, **best if name == "lmcraft" else {})
        print(f"T {shape.length}, round {round_ + 1}, {name}: {shown(shape, last[name])}", flush=True)
        seconds[name] += last[name].get("step_seconds", [])
    tokens = shape.batch * shape.length
    flops, peak = last["lmcraft"].get("flops_per_token", 0), last["lmcraft"].get("peak_flops")
    competitors = {}
    for name, times in seconds.items():
        rate = tokens / statistics.median(times) if times else None
        competitors[name] = {
            "tokens_per_second": rate and round(rate),
            "mfu": round(rate * flops / peak, 4) if rate and peak else None,
            "peak_gib": last[name].get("peak_gib"),
            "loss": last[name].get("loss"),
            "failed": last[name].get("failed"),
        }
    rates = [competitors[name]["tokens_per_second"] for name in seconds]
    return {
        "shape": dataclasses.asdict(shape),
        "device": last["lmcraft"].get("device"),
        "chosen": best,
        "ratio": round(rates[0] / rates[1], 3) if all(rates) else None,
        **competitors,
    }


def shown(shape: Shape, result: dict) -> str:
    if "failed" in result:
        return result["failed"]
    memory = f", {result['peak_gib']} GiB" if result["peak_gib"] else ""
    return f"{shape.batch * shape.length / statistics.median(result['step_seconds']):,.0f} tokens/s{memory}"


def in_process(competitor: str, shape: Shape, **settings) -> dict:
    """Return the result of a competitor in a process of its own, or {"failed": the last line that it wrote}."""
    task = json.dumps({"competitor": competitor, "shape": dataclasses.asdict(shape), **settings})
    environment = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    command = [sys.executable, "-m", "benchmarks.gpu_train", f"--worker={task}"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        telling = [line for line in lines if "RESOURCE_EXHAUSTED" in line or "OutOfMemory" in line or "Error" in line]
        return {"failed": (telling or lines or ["no output"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def timed(step, steps: int) -> tuple[list[float], float]:
    """Return the seconds of each step after the warm-up, and the last loss. step() -> loss, when the device is done."""
    times, loss = [], 0.0
    for _ in range(steps + WARMUP):
        begin = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - begin)
    return times[WARMUP:], loss


def ours(shape: Shape, steps: int, remat: str, accumulate: int) -> dict:
    import jax

    from configs.train import default
    from lm.model import sizing
    from lm.parallel.mesh import make_mesh, place_rows
    from lm.train.chips import peak_flops
    from lm.train.step import make_trainer, model_config_of, state_shardings

    config = default.get_config()
    config.accumulate, config.batch_size, config.sequence_length = accumulate, shape.batch, shape.length
    config.optimizer.learning_rate = 1e-4
    longest = max(shape.length, config.model.max_positions)
    config.model.update(model_keys(shape), max_positions=longest, remat=remat)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        state = jax.jit(trainer.init, out_shardings=state_shardings(trainer, mesh))()
        batch = random_batch(shape)
        batch = dict(zip(batch, place_rows(*batch.values())))
        compiled = jax.jit(trainer.step, donate_argnums=0)

        def step() -> float:
            nonlocal state
            state, metrics = compiled(state, batch)
            return float(metrics["loss"])

        times, loss = timed(step, steps)
    device, known = jax.devices()[0], peak_flops()
    used = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "step_seconds": times,
        "loss": loss,
        "peak_gib": used and round(used / 2**30, 2),
        "device": device.device_kind,
        "peak_flops": known and known[0] / jax.device_count(),
        "flops_per_token": sizing.flops_per_token(model_config_of(config), shape.length),
    }


def peer(shape: Shape, steps: int) -> dict:
    import torch

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, loss_of = build_torch(shape)
    model.to(device).train()
    loss_of = torch.compile(loss_of)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens_BT = torch.randint(0, shape.vocab, (shape.batch, shape.length), device=device)

    def step() -> float:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_of(tokens_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()  # waits for the device

    times, loss = timed(step, steps)
    used = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"step_seconds": times, "loss": loss, "peak_gib": used and round(used / 2**30, 2)}


if __name__ == "__main__":
    main()
