"""Which depth is best for a number of FLOPs, and is it what lm/train/dial.py chooses for them? On the demo's text.

python -m benchmarks.isoflop [--out=runs/isoflop] [--input=FILES] [--plot=docs/images/isoflop.svg]

For each budget of FLOPs, models of several depths train until it is spent (Hoffmann et al. 2022, approach 2): the deeper the
model, the fewer tokens. Width, batch, learning rate and weight decay are those of the dial for that length. What is in
OUT/losses.jsonl is not run again, so the same line resumes. The plot shows the validation loss by parameters, a parabola
through each budget's losses, its minimum, and the size for which 20 tokens a parameter spend the budget. The last line printed
is one JSON object: for each budget both sizes, and the loss at the dial's size above the minimum, in nats.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from configs.train import demo
from lm.model import sizing
from lm.train import dial
from lm.train.values import model_of

BUDGETS = (2.5e11, 6e11, 1.5e12)  # FLOPs of a run
DEPTHS = (2, 3, 4, 5, 6)
ASPECT, HEAD, VOCABULARY, LENGTH = 12, 12, 512, 64  # so narrow that a CPU trains all of them in minutes
SPAN = (0.8, 200.0)  # tokens a parameter; sizes beyond are far from the minimum
BATCHES = 24  # of validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/isoflop"))
    parser.add_argument("--input", help="training text, as config.data.input; default: this Python installation")
    parser.add_argument("--plot", type=Path, help="where the plot goes; default: OUT/isoflop.svg")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    file = options.out / "losses.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    losses = {(run["flops"], run["depth"]): run["loss"] for run in done}
    configs = {(flops, depth): config_of(flops, depth, options.input) for flops in BUDGETS for depth in DEPTHS}
    configs = {key: config for key, config in configs.items() if config is not None}
    for key, config in configs.items():
        if key not in losses:
            losses[key] = loss_of(config, options.out)
            with file.open("a") as f:
                f.write(json.dumps({"flops": key[0], "depth": key[1], "loss": losses[key]}) + "\n")
            print(f"{key[0]:.3g} FLOPs, depth {key[1]}: loss {losses[key]:.4f}", flush=True)
    found = {flops: fitted([(size(configs[key]), losses[key]) for key in configs if key[0] == flops]) for flops in BUDGETS}
    chosen = {flops: size_of_dial(flops, [configs[key] for key in configs if key[0] == flops]) for flops in BUDGETS}
    runs = {key: (size(config), losses[key]) for key, config in configs.items()}
    plot(runs, found, chosen, options.plot or options.out / "isoflop.svg")
    print(json.dumps({f"{flops:g}": summary(*found[flops], chosen[flops]) for flops in BUDGETS}))


def config_of(flops: float, depth: int, text: str | None):
    """Return the config of a model that spends `flops` on training, or None if its tokens a parameter are not in SPAN."""
    config = demo.get_config()
    config.data.input, config.sequence_length, config.accumulate = text, LENGTH, 1
    config.model.update(vocab_size=VOCABULARY, head_dim=HEAD, tie_embeddings=True, remat="none")
    config.dial.update(depth=depth, aspect=ASPECT)
    dial.shape(config, ())
    tokens = flops / sizing.flops_per_token(model_of(config), LENGTH)
    config.dial.tokens_per_parameter = tokens / size(config)
    if not SPAN[0] <= config.dial.tokens_per_parameter <= SPAN[1]:
        return None
    dial.horizon(config, ())
    return config


def size(config) -> int:
    return sum(sizing.parameters(model_of(config))["active"].values())


def loss_of(config, out: Path) -> float:
    """Train, and return the validation loss in nats a token."""
    import jax

    from data.text.batches import TextBatches
    from data.text.pipeline import prepare_text
    from lm.parallel.mesh import make_mesh
    from lm.train.feed import Feed
    from lm.train.step import make_trainer, state_shardings

    dataset, mesh = prepare_text(config, out)[1], make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        state = jax.jit(trainer.init, out_shardings=state_shardings(trainer, mesh))()
        step = jax.jit(trainer.step, donate_argnums=0)
        batches = TextBatches(dataset, "train", batch_size=config.batch_size, seed=config.seed)
        valid = Feed(TextBatches(dataset, "valid", batch_size=32, shuffle=False), mesh)
        feed = Feed(batches, mesh)
        for n in range(config.steps):
            state, _ = step(state, feed.to_devices(batches.batch(n)))
        evaluate = jax.jit(trainer.evaluate)
        sums = [evaluate(state.params, batch) for batch in valid.spread(BATCHES)]
    return float(sum(one["objective"] for one in sums) / sum(one["weight"] for one in sums))


def fitted(points: list[tuple[int, float]]) -> tuple[np.ndarray, float]:
    """Return the parabola of loss by ln(parameters), and the parameters at its minimum within the points."""
    x, y = np.log([n for n, _ in points]), [loss for _, loss in points]
    parabola = np.polyfit(x, y, 2)
    best = -parabola[1] / (2 * parabola[0]) if parabola[0] > 0 else x[int(np.argmin(y))]
    return parabola, float(np.exp(np.clip(best, min(x), max(x))))


def size_of_dial(flops: float, configs: list) -> float:
    """Return the parameters for which 20 tokens each spend `flops`, between those of the configs."""
    sizes = [size(config) for config in configs]
    spent = [20 * n * sizing.flops_per_token(model_of(config), LENGTH) for n, config in zip(sizes, configs, strict=True)]
    return float(np.exp(np.interp(math.log(flops), np.log(spent), np.log(sizes))))


def summary(parabola: np.ndarray, best: float, chosen: float) -> dict:
    above = float(np.polyval(parabola, math.log(chosen)) - np.polyval(parabola, math.log(best)))
    return {"best": round(best), "dial": round(chosen), "nats_above_the_minimum": round(above, 4)}


def plot(runs: dict, found: dict, chosen: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "isoflop"  # the same file each time
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for flops, colour in zip(BUDGETS, plt.cm.viridis(np.linspace(0, 0.8, len(BUDGETS))), strict=True):
        points = sorted(point for key, point in runs.items() if key[0] == flops)
        parabola, best = found[flops]
        x = np.linspace(math.log(points[0][0]), math.log(points[-1][0]), 60)
        axis.plot(np.exp(x), np.polyval(parabola, x), "-", color=colour, label=f"{flops:.3g} FLOPs")
        axis.plot(*zip(*points, strict=True), "o", color=colour, markersize=4)
        axis.plot(best, np.polyval(parabola, math.log(best)), "v", color=colour, markersize=9)
        axis.plot(chosen[flops], np.polyval(parabola, math.log(chosen[flops])), "*", color=colour, markersize=13)
    axis.plot([], [], "v", color="grey", label="minimum")
    axis.plot([], [], "*", color="grey", label="20 tokens a parameter")
    axis.set(xscale="log", xlabel="parameters", ylabel="validation loss, nats a token")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
