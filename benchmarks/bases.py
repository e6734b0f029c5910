"""Does a better base make a better assistant? The stages of `make demo` after a base of each recipe, over seeds.

python -m benchmarks.bases [--seeds=3] [--out=runs/bases]

A base is trained by the former default recipe (AdamW) or by today's, tuned on instructions, and then by reinforcement learning,
by the verbs as a user calls them and with the demo's configs. A finished stage is not run again. For each stage the last line
says the measure on held-out data over the seeds, and the paired difference.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import recipe
from lm.compare.__main__ import paired_t

ADAMW = {
    "model.qk_norm": "none",
    "model.init": "gpt2",
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 4e-3,
    "optimizer.schedule": "cosine",
    "optimizer.final": 0.1,
    "optimizer.warmup": 50,
    "optimizer.b1": 0.9,
}
RECIPES = {"adamw": ADAMW, "default": {}}
MEASURES = {"base": "valid_bits_per_byte", "sft": "valid_reward", "grpo": "valid_reward"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bases"))
    options = parser.parse_args()
    text, found = recipe.corpus(argparse.Namespace(out=options.out, data=None)), {}
    for seed in range(options.seeds):
        for name, changes in RECIPES.items():
            base = options.out / f"{name}{seed}"
            run("train", "configs/train/demo.py", base, {"data.input": text, "seed": seed} | changes)
            run("align", "configs/align/demo.py:sft", base / "sft", {"init_from": base, "seed": seed})
            run("align", "configs/align/demo.py:grpo", base / "grpo", {"init_from": base / "sft", "seed": seed})
            for stage, measure in MEASURES.items():
                value = last(base if stage == "base" else base / stage, measure)
                found.setdefault(stage, {}).setdefault(name, []).append(value)
                print(f"{name}, seed {seed}, {stage}: {measure} {value:.4f}", flush=True)
    report = {stage: values | paired_t(values["adamw"], values["default"])._asdict() for stage, values in found.items()}
    print(json.dumps(report))


def run(verb: str, config: str, workdir: Path, changes: dict[str, object]) -> None:
    """Run a verb to its end; one that has ended only says so."""
    command = [sys.executable, f"{verb}.py", f"--config={config}", f"--workdir={workdir.absolute()}"]
    command += [f"--config.{key}={value.absolute() if isinstance(value, Path) else value}" for key, value in changes.items()]
    done = subprocess.run(command, cwd=recipe.REPO, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


def last(workdir: Path, measure: str) -> float:
    """Return the last value of a measure in a run's metrics."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line[measure] for line in lines if measure in line][-1]


if __name__ == "__main__":
    main()
