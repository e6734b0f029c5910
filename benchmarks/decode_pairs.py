"""Decode speed of the engine beside llama.cpp on a machine that others use too: short turns of two live processes.

python -m benchmarks.decode_pairs --checkpoint=FOLDER [--folder=engine-benchmark --pairs=9 --rounds=2 --only=int8,int4]

Both processes hold the same weights and share one core. Each turn is one request as in benchmarks/engine.py ("one"), a second
long, so whatever else the machine does hits both alike. The ratio is the median over a round's pairs. For AVX2 alone set
NUMBA_CPU_NAME=haswell and XLA_FLAGS=--xla_cpu_max_isa=AVX2; the wheel of xllamacpp has no AVX-512, and a line says so.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.engine import PEER, REPO, alone, llama_cpp, ours, pin, prepare, requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("engine-benchmark"))
    parser.add_argument("--pairs", type=int, default=9, help="turns of each in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="bfloat16,int8,int4", help="our formats")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.loads, options.cores = "one", "1"
    if options.worker:
        work(*options.worker.split("/"), options)
        os._exit(0)  # llama.cpp's threads do not end
    prepare(options)
    for dtype in options.only.split(","):
        processes = [started(kind, options) for kind in (f"lmcraft/{dtype}", f"llama.cpp/{PEER[dtype]}")]
        for number in range(options.rounds):
            turns = [[asked(process, seed) for process in processes] for seed in range(options.pairs)]
            ours_, theirs = (statistics.median(rates) for rates in zip(*turns, strict=True))
            ratio = statistics.median(mine / other for mine, other in turns)
            print(f"{dtype}, round {number + 1}: {ours_:.1f} and {theirs:.1f} tokens/s, {ratio:.2f} ×", flush=True)
        for process in processes:
            process.kill()


def started(kind: str, options: argparse.Namespace) -> subprocess.Popen:
    """Return a process that has loaded its weights and waits for seeds."""
    command = [sys.executable, "-m", "benchmarks.decode_pairs", f"--checkpoint={options.checkpoint.resolve()}"]
    command += [f"--folder={options.folder.resolve()}", f"--worker={kind}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=REPO, text=True, **pipes)
    print(f"{kind}: {process.stdout.readline().strip()}", flush=True)
    return process


def asked(process: subprocess.Popen, seed: int) -> float:
    process.stdin.write(f"{seed}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def work(peer: str, dtype: str, options: argparse.Namespace) -> None:
    """Answer each line of stdin, a seed, by the tokens a second of a turn. First say which vector instructions are used."""
    pin(1)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp's own lines
    answer = {"lmcraft": ours, "llama.cpp": llama_cpp}[peer](options, dtype, 1)
    answer(requests("one", 99)[:1])
    print(instructions(peer), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(alone(answer, int(line))), file=out, flush=True)


def instructions(peer: str) -> str:
    if peer == "llama.cpp":
        import xllamacpp

        return xllamacpp.get_system_info()
    from lm.kernels.native.vectors import has

    return ", ".join(name for name in ("avx2", "avxvnni", "avx512f", "avx512vnni") if has(name)) or "no AVX2"


if __name__ == "__main__":
    main()
