"""How much host memory does importing a published checkpoint take, in copies of it?

    python -m benchmarks.import_memory [--shrink=4 --layers=32 --shards=8 --devices=8] [--gguf=q8_0]

Writes random bfloat16 weights in the shape of Llama 3 8B, every width divided by `shrink`, as sharded safetensors; imports them
in a process of their own onto fake CPU devices, fsdp over all, the checkpoint's save included; and prints JSON. The devices'
memory is the host's here, so one copy is the least that there can be. `copies` is what the process's peak (VmHWM) lies above
what it had with all modules imported and a first program compiled, in sizes of the imported model: that of the checkpoint, or
for a quantised GGUF file of the float32 that it becomes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
MIB = 2**20


def llama_8b(shrink: int, layers: int) -> dict:
    """config.json of Llama 3 8B, narrower by `shrink`; the heads keep their size."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128_256 // shrink,
        "hidden_size": 4096 // shrink,
        "intermediate_size": 14_336 // shrink,
        "num_hidden_layers": layers,
        "num_attention_heads": 32 // shrink,
        "num_key_value_heads": 8 // shrink,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def write_checkpoint(folder: Path, hf: dict, shards: int) -> int:
    """Writes config.json and random weights, a tensor at a time. Returns the bytes of one copy."""
    import ml_dtypes
    import numpy as np

    from lm.convert import families, files
    from lm.convert.rows import places

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hf))
    family = families.family_of(hf)
    shapes = {place.row.theirs: place.row.theirs_shape for place in places(family, family.from_hf(hf))}
    planned = {name: (np.dtype(ml_dtypes.bfloat16), shape) for name, shape in shapes.items()}
    size = sum(files.nbytes_of(*tensor) for tensor in planned.values())
    rng = np.random.default_rng(0)
    for place in files.lay_out(folder, planned, -(-size // shards)).values():
        # Any sign and mantissa, and an exponent that keeps it finite and small.
        bits = rng.integers(0, 2**16, place.shape, np.uint16) & np.uint16(0xBFFF)
        files.write(place, bits.view(ml_dtypes.bfloat16))
    return size


def write_gguf(folder: Path, dtype: str) -> Path:
    """Writes the same model as a GGUF file beside its folder."""
    run = [sys.executable, "-m", "lm.convert"]
    workdir, file = folder.with_name("for_gguf"), folder.with_suffix(".gguf")
    for command in (
        ["import", f"--from={folder}", f"--workdir={workdir}"],
        ["export", f"--workdir={workdir}", f"--to={file}", f"--dtype={dtype}"],
    ):
        subprocess.run([*run, *command], cwd=REPOSITORY, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)
    return file


def measure(folder: Path, workdir: Path, devices: int) -> dict:
    """Imports in a process of its own; returns its memory in MiB before and at the peak, and the seconds it took."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "benchmarks.import_memory", f"--measure={folder}", f"--workdir={workdir}"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the import failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(folder: Path, workdir: Path) -> dict:
    """What `measure` runs, in the process that it starts."""
    import jax
    import jax.numpy as jnp

    from lm.convert.to_workdir import to_workdir
    from lm.parallel.mesh import make_mesh

    jax.block_until_ready(jax.jit(lambda x: x + 1)(jnp.ones(8)))
    before, begin = _status("VmRSS"), time.perf_counter()
    to_workdir(folder, workdir, make_mesh({"fsdp": -1}))
    return {"before": before, "peak": _status("VmHWM"), "seconds": time.perf_counter() - begin}


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("shrink", 4), ("layers", 32), ("shards", 8), ("devices", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--gguf", choices=("bf16", "q8_0", "q4_0"), help="import a GGUF file of these matrices")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workdir", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(args.measure, args.workdir)))
        return
    with tempfile.TemporaryDirectory() as folder:
        hf = llama_8b(args.shrink, args.layers)
        read = Path(folder) / "published"
        size = write_checkpoint(read, hf, args.shards) / MIB
        if args.gguf:
            read, size = write_gguf(read, args.gguf), size * (1 if args.gguf == "bf16" else 2)
        found = measure(read, Path(folder) / "workdir", args.devices)
    found["copies"] = (found["peak"] - found["before"]) / size
    print(json.dumps({"checkpoint": size, **found, "unit": "MiB", "devices": args.devices, "shards": args.shards}))


if __name__ == "__main__":
    main()
