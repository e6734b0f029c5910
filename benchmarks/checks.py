"""What the checks of a long run cost: the spike guard in the step, what watches the loop, and the verification of checkpoints.

python -m benchmarks.checks [--shape=14m] [--steps=20] [--rounds=5]

The real loop (lm.train.loop) trains on random tokens, in turns with all checks and with none, in one process, so that a slow
minute of the machine hits both alike. `ratio` is the median of the rounds' ratios of median step times, with checks over
without, and `cpu_ratio` the same of the processor's time, which other work on the machine hardly changes; it holds the
background threads too. `save` is what a checkpoint costs in addition, because its files are hashed and read back:
seconds, and the share of the default of checkpoint_every steps. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.peers import SHAPES
from benchmarks.train import model_keys, random_batch

WARM = 3  # steps of each turn that are not counted


class Rows:
    """A stream of one batch that notes the time and the processor's time at the beginning of each step."""

    def __init__(self, batch):
        self._batch, self.times = batch, []

    def start(self, step):
        pass

    def next(self, step, params, wait):
        self.times.append((time.perf_counter(), time.process_time()))
        return self._batch, {}

    def ids(self, step):
        return None

    def close(self):
        pass


def unwatched():
    """Return an event in the place of Health that watches nothing."""
    from lm.train.loop import Event

    class Nothing(Event):
        def start(self, run):
            run.health = self

        def enter(self, phase, busy=False):
            return phase

        def saved(self, step, phase):
            pass

    return Nothing()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="14m", choices=SHAPES)
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns with checks, and without")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    import jax

    from configs.train import default
    from lm.parallel.mesh import make_mesh
    from lm.runs.provenance import machine
    from lm.train import events, loop
    from lm.train.step import make_trainer

    shape = SHAPES[options.shape]
    trainers, times = {}, {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2 * options.rounds):
            checks = turn % 2 == 0
            config = default.get_config()
            config.update(batch_size=shape.batch, sequence_length=shape.length, steps=options.steps + WARM, samples=())
            config.update(valid_every=0, checkpoint_every=0)
            config.model.update(model_keys(shape), scan_layers=False)
            config.guard.update(on=checks, warmup=1)
            health, *others = events.usual(config)
            beside = [health if checks else unwatched(), *others]
            mesh = make_mesh(config.mesh)
            with jax.set_mesh(mesh):
                trainer = trainers.setdefault(checks, make_trainer(config))
                stream = Rows(random_batch(shape))
                workdir = Path(folder) / str(turn)
                workdir.mkdir()
                loop.train(config, trainer, mesh, stream, workdir, beside)
            rows = stream.times[WARM:]
            spent = [[after[i] - before[i] for before, after in zip(rows, rows[1:])] for i in range(2)]
            times[checks].append([statistics.median(values) for values in spent])
            print(f"{'with checks' if checks else 'without':>11}: {1000 * times[checks][-1][0]:.1f} ms a step", flush=True)
        save = verification(Path(folder) / "0")
    step = statistics.median(seconds for seconds, _ in times[False])
    every = default.get_config().checkpoint_every
    ratios = [statistics.median(a[i] / b[i] for a, b in zip(times[True], times[False])) for i in range(2)]
    print(
        json.dumps(
            {
                "step_seconds": round(step, 4),
                "ratio": round(ratios[0], 4),
                "cpu_ratio": round(ratios[1], 4),
                "save": {"seconds": round(save, 3), "share": round(save / (every * step), 5), "every": every},
                "machine": machine(),
            }
        )
    )


def verification(workdir: Path) -> float:
    """Return the seconds that the files of the newest checkpoint take to be hashed twice: as written, and as read back."""
    from lm.runs.damage import damage
    from lm.runs.workdir import steps_saved

    begin = time.perf_counter()
    assert damage(workdir / "checkpoints" / str(steps_saved(workdir)[-1])) is None
    return 2 * (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
