"""Does a recipe keep its gain as models grow? Four sizes at equal tokens a weight, a fitted curve, and the compute it saves.

python -m benchmarks.scaling [--arms=adamw,default] [--seeds=3] [--tokens=10] [--data=TEXT] [--out=runs/scaling]

Arms, rows and scores are those of the judge (benchmarks/recipe.py), each arm at its own learning rate for the size. N counts
the weights that a token is multiplied with. A run has 10·N tokens, near the optimum that nanochat found for this count (10.5),
or --tokens times N; 10 make C = 6·N·10·N FLOPs of compute. The curve of each arm and seed is bits per byte = a · C^−b. The
compute multiplier of an arm at a size is the compute at which the first arm's curve reaches the arm's bits per byte, over C;
its interval is Student's t over the logarithms of the seeds. The last line is one JSON object. What is in OUT/runs.jsonl is
not run again.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import numpy as np

from benchmarks import recipe

SIZES = ("0.15M", "0.3M", "0.6M", "1M")
BATCH = 4096  # tokens of a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--data", help="training text, as config.data.input; default: this Python installation")
    parser.add_argument("--arms", default="adamw,default", help="comma-separated; the first is the base")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=float, default=10, help="of a run, for each weight")
    parser.add_argument("--plot", type=Path, help="where the plot goes; default: OUT/scaling.svg")
    parser.add_argument("--nanochat", type=Path, help="as for benchmarks.recipe")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.data = options.data or "python"
    runs, compute = recipe.Runs(options), {size: flops(size, options.tokens) for size in SIZES}
    arms, scores = options.arms.split(","), {}
    for seed in range(options.seeds):
        for size in SIZES:
            for arm in arms:
                steps = round(options.tokens * weights(size) / BATCH)
                score = runs(arm=arm, size=size, seed=seed, factor=1.0, steps=steps)
                scores.setdefault(arm, {}).setdefault(size, []).append(score["bits_per_byte"])
    report = {size: {arm: summary(scores, compute, arms[0], arm, size) for arm in arms} for size in SIZES}
    plot(scores, compute, options.plot or options.out / "scaling.svg")
    for size, of_arms in report.items():
        print(f"{size}, {compute[size]:.2g} FLOPs: {of_arms}")
    print(json.dumps(report))


def weights(size: str) -> int:
    """Return the number of weights that a token is multiplied with."""
    from lm.model import sizing
    from lm.train.values import model_of

    return sum(piece.size for piece in sizing.pieces(model_of(recipe.sized(size, ""))) if piece.is_matrix)


def flops(size: str, tokens: float) -> float:
    """Return the FLOPs of a run with so many tokens for each weight."""
    return 6 * tokens * float(weights(size)) ** 2


def fitted(compute: dict[str, float], bits: dict[str, float]) -> tuple[float, float]:
    """Return (ln a, b) of bits = a · C^−b, by least squares of the logarithms."""
    slope, start = np.polyfit([math.log(compute[size]) for size in SIZES], [math.log(bits[size]) for size in SIZES], 1)
    return float(start), -float(slope)


def summary(scores: dict, compute: dict[str, float], base: str, arm: str, size: str) -> dict[str, object]:
    """Return the mean bits per byte of an arm at a size, and its compute multiplier with a 95 % interval."""
    multipliers = []
    for seed, bits in enumerate(scores[arm][size]):
        start, b = fitted(compute, {size: of_seeds[seed] for size, of_seeds in scores[base].items()})
        multipliers.append((start - math.log(bits)) / b - math.log(compute[size]))
    mean, half = statistics.fmean(multipliers), half_interval(multipliers)
    numbers = [math.exp(x) for x in (mean, mean - half, mean + half)]
    return {"bits_per_byte": round(statistics.fmean(scores[arm][size]), 4), "multiplier": [round(x, 3) for x in numbers]}


def half_interval(values: list[float]) -> float:
    """Return half of the 95 % interval of a mean, by Student's t; infinite for one value."""
    import scipy.stats

    n = len(values)
    return float(scipy.stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5 if n > 1 else math.inf


def plot(scores: dict, compute: dict[str, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "scaling"  # the same file each time
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    x = np.geomspace(min(compute.values()), max(compute.values()))
    for arm, colour in zip(scores, plt.cm.viridis(np.linspace(0, 0.8, len(scores))), strict=True):
        start, b = fitted(compute, {size: statistics.fmean(bits) for size, bits in scores[arm].items()})
        axis.plot(x, np.exp(start) * x**-b, "-", color=colour, label=f"{arm}: {math.exp(start):.3g} · C^−{b:.4f}")
        for size, bits in scores[arm].items():
            axis.plot([compute[size]] * len(bits), bits, "o", color=colour, markersize=4)
    axis.set(xscale="log", yscale="log", xlabel="training compute, FLOPs", ylabel="bits per byte of held-out text")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:.2g}")
    axis.xaxis.set_minor_formatter("")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
