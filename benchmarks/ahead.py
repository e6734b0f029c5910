"""Seconds a step of GRPO whose rollouts are sampled ahead (rl.max_lag), beside those of sampling and training in turns.

python -m benchmarks.ahead [--lags=0,1,4 --steps=30 --rounds=3 --load=small/16/64 --epochs=6]

Model and load are those of benchmarks/grpo.py. With more `epochs`, passes over the rollouts, updates take longer. Each lag runs
in a process of its own, in turns. Figures are medians over all steps but the first three. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import grpo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lags", default="0,1,4", help="values of rl.max_lag; the first is what others are compared with")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each lag in each round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each lag")
    parser.add_argument("--load", default="small/16/64", help="model, tokens of a completion, completions of a step")
    parser.add_argument("--epochs", type=int, default=6, help="updates of a step")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    model, tokens, completions = options.load.split("/")
    if options.worker:
        folder, lag = options.worker.rsplit(":", 1)
        size = int(tokens), int(completions), options.steps + grpo.WARM
        print(json.dumps(grpo.ours(Path(folder), *size, "float32", int(lag), options.epochs)))
        return
    lags = [int(lag) for lag in options.lags.split(",")]
    found: dict[int, dict[str, list[float]]] = {lag: {} for lag in lags}
    with tempfile.TemporaryDirectory() as folder:
        grpo.prepare(Path(folder), grpo.MODELS[model])
        for lag in lags * options.rounds:
            keys = [f"--{name}={getattr(options, name)}" for name in ("steps", "load", "epochs")]
            line = [sys.executable, "-m", "benchmarks.ahead", f"--worker={folder}:{lag}", *keys]
            done = subprocess.run(line, cwd=grpo.REPO, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            for key, values in json.loads(done.stdout.splitlines()[-1]).items():
                found[lag].setdefault(key, []).extend(values)
            print(lag, medians(found[lag]), "load of the machine", os.getloadavg()[0], flush=True)
    seconds = {lag: medians(times) for lag, times in found.items()}
    ratios = {lag: round(times["step"] / seconds[lags[0]]["step"], 3) for lag, times in seconds.items()}
    from lm.runs.provenance import machine

    about = {"load": options.load, "epochs": options.epochs, "machine": machine()}
    print(json.dumps({"ratio": ratios, "seconds": seconds} | about))


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


if __name__ == "__main__":
    main()
