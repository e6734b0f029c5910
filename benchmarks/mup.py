"""Does the best learning rate stay where it is as the model gets wider? With μP and without, on the demo's text.

python -m benchmarks.mup [--out=runs/mup] [--plot=docs/mup.png]

And does a step move wide models as far as narrow ones (the coordinate check, Yang et al. 2022, appendix D.1)? Every
(parametrisation, width, learning rate) is one short run of the real training step; its figure is the mean loss of the
last tenth of the steps, on text not seen before. What is in OUT/losses.jsonl is not run again, so the same line resumes. The
last line printed is one JSON object: for each parametrisation the best learning rate by width.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from configs.train import demo
from data.text.batches import TextBatches
from data.text.pipeline import prepare_text
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh
from lm.train.feed import Feed
from lm.train.step import make_trainer, model_config_of, state_shardings

WIDTHS = (64, 128, 256, 512)
RATES = tuple(2.0**-k for k in range(10, 5, -1))
HEAD = 32  # of every width: μP lets the number of heads grow
TAIL = 0.1  # of the steps, whose losses are averaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mup"))
    parser.add_argument("--plot", type=Path, help="where the plot goes; default: OUT/mup.png")
    parser.add_argument("--steps", type=int, default=200, help="of each run, 4,096 tokens each")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    file = options.out / "losses.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    losses = {(run["mup"], run["width"], run["rate"]): run["loss"] for run in done if run["steps"] == options.steps}
    todo = [(mup, width, rate) for width in sorted(options.widths) for mup in (True, False) for rate in RATES]
    dataset = None
    for mup, width, rate in tqdm([run for run in todo if run not in losses], desc="runs", dynamic_ncols=True):
        if dataset is None:
            _, dataset, _ = prepare_text(shape(HEAD, mup=False, rate=1.0, steps=1), options.out)
        loss = losses[mup, width, rate] = run_loss(shape(width, mup, rate, options.steps), dataset)
        with file.open("a") as f:
            f.write(json.dumps({"mup": mup, "width": width, "rate": rate, "steps": options.steps, "loss": loss}) + "\n")

    if dataset is None:
        _, dataset, _ = prepare_text(shape(HEAD, mup=False, rate=1.0, steps=1), options.out)
    moves = {
        mup: [moved(shape(width, mup, 2.0**-7, options.steps), dataset) for width in sorted(options.widths)]
        for mup in (True, False)
    }
    best = {mup: {w: min(RATES, key=lambda rate: losses[mup, w, rate]) for w in options.widths} for mup in (True, False)}
    plot(losses, best, moves, options.plot or options.out / "mup.png")
    print(json.dumps({"mup": best[True], "standard": best[False]}))


def shape(width: int, mup: bool, rate: float, steps: int):
    """The demo's training config with a two-layer model of this width."""
    config = demo.get_config()
    config.batch_size, config.accumulate, config.steps = 32, 2, steps
    config.model.update(
        vocab_size=2048,
        num_layers=2,
        embed_dim=width,
        num_heads=width // HEAD,
        num_kv_heads=width // HEAD,
        head_dim=HEAD,
        mlp_dim=3 * width,
        mup_base_dim=WIDTHS[0] if mup else 0,
    )
    config.optimizer.learning_rate, config.optimizer.warmup = rate, 2 * steps // 5  # a short one leaves high rates to luck
    return config


def run_loss(config, dataset: Path) -> float:
    """Nats a token over the run's last batches, each seen once."""
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        state = jax.jit(trainer.init, out_shardings=state_shardings(trainer, mesh))()
        step = jax.jit(trainer.step, donate_argnums=0)
        batches = TextBatches(dataset, "train", batch_size=config.batch_size, seed=config.seed)
        feed = Feed(batches, mesh)
        seen = []
        for n in range(config.steps):
            state, metrics = step(state, feed.to_devices(batches.batch(n)))
            seen.append(metrics["loss"])
    return float(np.mean(seen[-max(1, round(TAIL * config.steps)) :]))


def moved(config, dataset: Path, steps: int = 4) -> float:
    """Mean |change| of the numbers in the residual stream before the last norm, over a few steps without warm-up."""
    config.optimizer.update(schedule="constant", warmup=0)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        graph = skeleton(model_config_of(config))[0]
        batches = TextBatches(dataset, "train", batch_size=config.batch_size, seed=config.seed)
        feed = Feed(batches, mesh)
        batch = feed.to_devices(batches.batch(0))
        inputs = batch["tokens"], batch["segment_ids"], batch["positions"]
        look = jax.jit(lambda params: nnx.merge(graph, params).residual(*inputs))
        state = jax.jit(trainer.init, out_shardings=state_shardings(trainer, mesh))()
        step, before = jax.jit(trainer.step), look(state.params)
        for n in range(steps):
            state, _ = step(state, feed.to_devices(batches.batch(n)))
        return float(np.abs(np.asarray(look(state.params) - before, np.float32)).mean())


def plot(losses: dict, best: dict, moves: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, mup in zip(axes, (False, True)):
        widths = sorted(best[mup])
        for width, colour in zip(widths, plt.cm.viridis(np.linspace(0, 0.85, len(widths))), strict=True):
            axis.plot(RATES, [losses[mup, width, rate] for rate in RATES], "-", color=colour, label=f"width {width}")
            axis.plot(best[mup][width], losses[mup, width, best[mup][width]], "o", color=colour)
        axis.set(xscale="log", xlabel="learning rate", title="μP" if mup else "standard parametrisation")
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    low = min(loss for loss in losses.values() if np.isfinite(loss))
    for axis in axes[:2]:
        axis.set(ylabel="loss, nats a token", ylim=(low - 0.05, low + 1.2))
    axes[1].legend(frameon=False)
    for mup, name in ((False, "standard"), (True, "μP")):
        axes[2].plot(sorted(best[mup]), moves[mup], "o-", label=name)
    axes[2].set_xscale("log", base=2)
    axes[2].set(yscale="log", xlabel="width", ylabel="mean |change| of the residual stream", title="after four steps")
    axes[2].legend(frameon=False)
    axes[2].grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
